"""The options that the benchmarks share, and what they do with a document: print, write, draw."""

import argparse
import json
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import documents
import presentation
from presets import PRESETS


def make_parser(
    description: str, name: str, *, presets: list[str], batch: list[int], providers: list[str], rounds: str
) -> argparse.ArgumentParser:
    """A parser with the shared options of benchmark `name`, and these defaults."""
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("--preset", nargs="+", choices=list(PRESETS), default=presets, metavar="PRESET")
    parser.add_argument("--batch", type=int, nargs="+", default=batch)
    parser.add_argument("--steps", type=int, default=50)
    parser.add_argument("--threads", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--providers", nargs="+", choices=providers, metavar="PROVIDER")
    parser.add_argument("--rounds", type=int, help=f"default: {rounds}")
    parser.add_argument(
        "--json", metavar="FILE", help=f"write the results; a folder gets MACHINE/DATE-COMMIT-{name}.json"
    )
    parser.add_argument("--from", dest="source", metavar="FILE", help="read results instead of measuring")
    parser.add_argument("--markdown", metavar="FILE", help="write the tables; - prints them")
    parser.add_argument("--figure", metavar="FILE", help="draw the results, .svg or .png")
    parser.add_argument("--cell", help=argparse.SUPPRESS)
    return parser


def run(
    options: argparse.Namespace, run_cell: Callable[[dict], dict], measure: Callable[[], dict], report: ModuleType
) -> int:
    """Run the one cell of this process, or measure or read a document and give what was asked for.

    Args:
        run_cell: measures a cell.
        measure: makes the document of all cells.
        report: has `markdown(document)` and `figure(document, path)`.

    Returns:
        The exit code: 1 when a contender was wrong or broke, else 0.
    """
    if options.cell:
        Path(options.json).write_text(json.dumps(run_cell(json.loads(options.cell))), encoding="utf-8")
        return 0
    if options.source:
        document = documents.read(options.source)
    else:
        document = documents.rounded(measure())
        print(presentation.verdict(document))
        if options.json:
            print(f"written: {documents.write(options.json, document)}")
    if options.markdown == "-":
        print(report.markdown(document))
    elif options.markdown:
        Path(options.markdown).write_text(report.markdown(document) + "\n", encoding="utf-8")
    if options.figure:
        report.figure(document, options.figure)
    red = [row for row in document["rows"] + document.get("scaling", []) if row["gate"] in ("fail", "error")]
    return 1 if red else 0

"""All parts of a report together, and their files."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from ..errors import UsageError
from ..training.run_directory import CONFIG, strict_json, write_atomic
from . import comparisons, paper, render, tables
from .collect import Collection, LeftOut, collect
from .folds import join_folds
from .groups import Group, Series, group_runs, series_of

PAGE = "index.html"
FIGURES = ("figure3", "figure4", "robustness", "recovery", "calibration")
NAMES = (
    *(f"table{number}.{kind}" for number in range(1, 6) for kind in ("md", "csv", "tex")),
    *(f"comparisons.{kind}" for kind in ("md", "csv")),
    *(f"{name}.svg" for name in FIGURES),
    "report.json",
    PAGE,
)
"""Every file that a report may have; those of an older report that this one lacks are removed."""


@dataclass(frozen=True)
class Built:
    """What was made."""

    files: tuple[Path, ...]  # the page first, where there is one
    text: str  # the tables that hold numbers, in Markdown
    sentences: tuple[str, ...]  # what was left out
    summary: dict  # of JSON types


def build(
    paths: Sequence[Path],
    out: Path,
    *,
    split: str = "test",
    sha256: str | None = None,
    against: str | None = None,
    drawn: bool = True,
) -> Built:
    """Make the report of the runs in `paths` in the directory `out`.

    Args:
        split, sha256: see `collect`.
        against: label of the row that all others are compared with.
        drawn: make figures and the page, which need the extra ``viz``.

    Raises:
        UsageError, DataError, FileAccessError: as `collect` and `against_reference`; or `out` is a file or a run.
    """
    if (out.exists() and not out.is_dir()) or (out / CONFIG).exists():
        raise UsageError(f"--out: must be a directory for a report, got {out}, which is a file or a run. Use another.")
    collection = join_folds(collect(paths, split=split, sha256=sha256))
    groups, duplicates = group_runs(collection.runs)
    series = series_of(groups)
    left_out = (*collection.left_out, *duplicates)
    data, reason = _comparable(collection, split)
    made = tables.build(series, data, reason)
    pairs = comparisons.against_reference(series, against)
    contents: dict[str, str] = {}
    for table in made:
        for kind, write in (("md", render.to_markdown), ("csv", render.to_csv), ("tex", render.to_latex)):
            contents[f"table{table.number}.{kind}"] = write(table)
    contents["comparisons.md"], contents["comparisons.csv"] = comparisons.to_markdown(pairs), comparisons.to_csv(pairs)
    sentences = [*map(str, left_out), *comparisons.refusals(pairs)]
    if drawn:
        from . import figures
        from .page import page

        pictures = figures.figures(groups, series)
        contents |= {f"{figure.name}.svg": figure.svg for figure in pictures if figure.svg is not None}
        sentences += [f"{f.title} is left out: {f.caption}" for f in pictures if f.svg is None]
        contents[PAGE] = page(collection, left_out, groups, series, made, pairs, pictures, out)
    summary = _summary(collection, groups, series, left_out, made, pairs, data, sorted({*contents, "report.json"}), out)
    contents["report.json"] = strict_json(summary, "report.json", indent=2) + "\n"
    shown = [render.to_markdown(table) for table in made if any(_filled(row) for s in table.sections for row in s.rows)]
    return Built(_write(out, contents), "\n".join(shown), tuple(sentences), summary)


def _comparable(collection: Collection, split: str) -> tuple[str | None, str]:
    if split != "test":
        return None, f"the report is of the {split} split"
    run = collection.runs[0]
    known = [run.modalities for run in collection.runs if run.modalities is not None]
    return paper.data_set(run.source, len(run.own.predictions.labels), known[0] if known else None)


def _filled(row: tables.TableRow) -> bool:
    return any(row.cells.values())


def _write(out: Path, contents: Mapping[str, str]) -> tuple[Path, ...]:
    out.mkdir(parents=True, exist_ok=True)
    for name in NAMES:
        if name not in contents:
            (out / name).unlink(missing_ok=True)
    for name, text in contents.items():
        write_atomic(out / name, text.encode("utf-8", "replace"))
    return tuple(out / name for name in sorted(contents, key=lambda name: (name != PAGE, name)))


def _summary(
    collection: Collection,
    groups: Sequence[Group],
    series: Sequence[Series],
    left_out: Sequence[LeftOut],
    made: Sequence[tables.Table],
    pairs: Sequence[comparisons.Pair],
    data: str | None,
    files: Sequence[str],
    out: Path,
) -> dict:
    return {
        "out": str(out),
        "files": list(files),
        "data": {"source": collection.runs[0].source, "sha256": collection.runs[0].sha256, "paper": data},
        "groups": [
            {"label": g.label, "settings": _plain(g.values), "runs": {str(r.seed): str(r.path) for r in g.runs}}
            for g in groups
        ],
        "left_out": [{"path": str(entry.path), "reason": entry.reason} for entry in left_out],
        "tables": {f"table{table.number}": _rows(table) for table in made},
        "comparisons": [
            {
                "section": pair.section,
                "condition": pair.condition,
                "first": pair.first,
                "second": pair.second,
                "refusal": pair.refusal,
                **(_found(pair) if pair.comparison else {}),
            }
            for pair in pairs
        ],
    }


def _rows(table: tables.Table) -> list[dict]:
    """Each row: condition -> metric -> [mean, deviation, n], as fractions."""
    return [
        {"section": section.name, "row": list(row.stub), "cells": {c: _lists(cell) for c, cell in row.cells.items()}}
        for section in table.sections
        for row in section.rows
    ]


def _lists(cell: Mapping) -> dict:
    return {metric: list(statistics) for metric, statistics in cell.items()}


def _found(pair: comparisons.Pair) -> dict:
    found = pair.comparison
    differences = {
        metric: {"estimate": d.estimate, "low": d.low, "high": d.high, "better": d.better}
        for metric, d in found.differences.items()
    }
    return {"seeds": list(found.seeds), "clips": found.clips, "differences": differences}


def _plain(values: Mapping) -> dict:
    """Settings as JSON can hold them; those of other versions may be anything that YAML has."""
    simple = (str, int, float, bool, type(None))
    return {key: value if isinstance(value, simple) else str(value) for key, value in values.items()}

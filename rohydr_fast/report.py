"""``python -m rohydr_fast.report``: from finished runs to tables, figures and one page."""

import sys
from pathlib import Path

from .cli import Parser, make_parser, print_json, run
from .errors import UsageError


def parser() -> Parser:
    """The options of the command."""
    result = make_parser("rohydr_fast.report", "Tables 1 to 5, Figures 3 and 4, and one page from finished runs.")
    result.add_argument("runs", type=str, nargs="+", help="run directories, or folders that hold some at any depth")
    result.add_argument("--out", type=str, help="directory for the report; files of an older report are replaced")
    result.add_argument("--split", type=str, default="test", help="test or valid")
    result.add_argument("--data-sha256", type=str, help="report on these data (beginning of the checksum)")
    result.add_argument("--against", type=str, help="row that the others are compared with (default: the full model)")
    result.add_argument("--tables-only", action="store_true", help="no figures and no page: needs no other package")
    result.add_argument("--json", action="store_true", help="print one JSON object as the last line")
    return result


def main(argv: list[str] | None = None) -> int:
    """Run the command; returns its exit code."""
    return run(parser(), _command, argv)


def _command(options) -> None:
    if options.out is None:
        raise UsageError("--out: must name the directory of the report. Write for example --out report.")
    if options.split not in ("test", "valid"):
        raise UsageError(f"--split: must be test or valid, got {options.split!r}. Choose one of them.")
    if not options.tables_only:
        _check_extra()
    from .reporting.document import build

    built = build(
        [Path(path) for path in options.runs],
        Path(options.out),
        split=options.split,
        sha256=options.data_sha256,
        against=options.against,
        drawn=not options.tables_only,
    )
    for sentence in built.sentences:
        print(f"note: {sentence}", file=sys.stderr)
    print(built.text)
    print(f"report: {built.files[0]} and {len(built.files) - 1} other files beside it")
    if options.json:
        print_json(built.summary)


def _check_extra() -> None:
    try:
        import jinja2  # noqa: F401
        import matplotlib  # noqa: F401
    except ImportError as error:
        raise UsageError(
            f"report: figures and page need {error.name}, which is not installed. "
            'Run: pip install "rohydr_fast[viz]", or use --tables-only.'
        ) from None


if __name__ == "__main__":
    sys.exit(main())

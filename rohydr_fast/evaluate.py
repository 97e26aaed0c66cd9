"""``python -m rohydr_fast.evaluate``: a trained run under every missing rate, or every set of modalities."""

import sys
from dataclasses import fields
from pathlib import Path

from .cli import Parser, make_parser, print_json, run


def parser() -> Parser:
    """The options of the command."""
    result = make_parser("rohydr_fast.evaluate", "Evaluate a run over missing rates or sets of modalities.")
    result.add_argument("directories", type=str, nargs="+", help="run directory; several give mean and deviation")
    result.add_argument(
        "--protocol",
        type=str,
        default="rates",
        help="rates (Table 1), fixed (Table 2), natural, or as in training: exact, fractions, batch-table, "
        "per-modality, mixed",
    )
    result.add_argument("--missing-rate", type=str, help="one rate for a protocol of training, instead of 0.0 to 0.7")
    result.add_argument("--samples", type=int, default=1, help="recoveries drawn and averaged for each clip")
    result.add_argument("--sampler", type=str, help="ancestral, ddim, dpm++2m or unipc, instead of the run's")
    result.add_argument("--steps", type=int, help="reverse steps K, instead of the run's")
    result.add_argument("--eta", type=float, help="of --sampler ddim, 0 to 1")
    result.add_argument("--split", type=str, default="test", help="test or valid")
    result.add_argument("--data", type=str, help="another place of the run's data file")
    result.add_argument("--seed", type=int, help="seed of patterns and noise (default: the run's)")
    result.add_argument("--checkpoint", type=str, default="best", help="best or last")
    result.add_argument("--backend", type=str, default="auto", help="auto, reference, cpp, triton or cuda")
    result.add_argument("--json", action="store_true", help="print one JSON object as the last line")
    return result


def main(argv: list[str] | None = None) -> int:
    """Run the command; returns its exit code."""
    return run(parser(), _command, argv)


def _command(options) -> None:
    from .distributed import joined
    from .evaluation.runs import COLUMNS, Evaluation, evaluate_run
    from .evaluation.tables import aggregate, aggregate_table, metrics_table
    from .ops.registry import backend, select

    asked = Evaluation(**{field.name: getattr(options, field.name) for field in fields(Evaluation)})
    select("reverse_loop", options.backend)
    documents, sentences = [], {}
    with joined() as team, backend(options.backend):
        for directory in options.directories:
            document, notes = evaluate_run(Path(directory), asked, data=options.data)
            documents.append(document)
            sentences |= dict.fromkeys(notes)
    if not team.leads:
        return
    rows = [document["rows"] for document in documents]
    print(metrics_table(rows[0], COLUMNS) if len(rows) == 1 else aggregate_table(aggregate(rows), COLUMNS[:-1]))
    for sentence in sentences:
        print(f"note: {sentence}")
    if options.json:
        print_json(documents[0] if len(documents) == 1 else {"runs": documents})


if __name__ == "__main__":
    sys.exit(main())

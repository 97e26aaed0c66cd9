"""``python -m rohydr_fast.evaluate``: a trained run under every missing rate, or every set of modalities."""

import sys
from pathlib import Path

from .cli import Parser, make_parser, print_json, run
from .errors import UsageError

COLUMNS = (
    ("realised_missing_rate", "rate"),
    ("Non0_acc_2", "ACC2"),
    ("Non0_F1_score", "F1"),
    ("Mult_acc_7", "ACC7"),
    ("MAE", "MAE"),
    ("Corr", "Corr"),
    ("n", "n"),
)


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
    from .evaluation.tables import aggregate, aggregate_table, metrics_table
    from .ops.registry import backend, select

    for name, choices in (("split", ("test", "valid")), ("checkpoint", ("best", "last"))):
        value = getattr(options, name)
        if value not in choices:
            raise UsageError(f"--{name}: must be {' or '.join(choices)}, got {value!r}. Choose one of them.")
    if options.samples < 1:
        raise UsageError(f"--samples: must be 1 or more, got {options.samples}. Use for example --samples 8.")
    select("reverse_loop", options.backend)
    documents, sentences = [], {}
    with backend(options.backend):
        for directory in options.directories:
            document, notes = _evaluate(Path(directory), options)
            documents.append(document)
            sentences |= dict.fromkeys(notes)
    rows = [document["rows"] for document in documents]
    print(metrics_table(rows[0], COLUMNS) if len(rows) == 1 else aggregate_table(aggregate(rows), COLUMNS[:-1]))
    for sentence in sentences:
        print(f"note: {sentence}")
    if options.json:
        print_json(documents[0] if len(documents) == 1 else {"runs": documents})


def _evaluate(directory: Path, options) -> tuple[dict, list[str]]:
    """Evaluate one run under the protocol, keep the result in its directory, return it with the notes on its data."""
    from .data.loading import load
    from .errors import DataError
    from .evaluation.metrics import metrics
    from .evaluation.predict import evaluate_split
    from .evaluation.protocols import protocol_rows
    from .evaluation.tables import metrics_table
    from .training.experiment import config_from, notes, save_predictions
    from .training.run_directory import RunDirectory
    from .training.trainer import load_model

    run_directory = RunDirectory.open(directory)
    config = config_from(run_directory.read_config(), run_directory)
    model, state = load_model(run_directory.checkpoint(options.checkpoint))
    sampler = model.recovery.resample(options.sampler, options.steps, options.eta)
    pairs = protocol_rows(options.protocol, model.config.modalities, options.missing_rate)
    dataset = load(options.data or config.data, nonfinite=config.nonfinite)
    if dataset.sha256 != state["data_sha256"]:
        raise DataError(
            f"{dataset.source}: must be the file that the run was trained on (SHA-256 {state['data_sha256'][:12]}), "
            f"got {dataset.sha256[:12]}. Name the right file with --data."
        )
    split = getattr(dataset, options.split)
    seed = config.seed if options.seed is None else options.seed
    changed = any(value is not None for value in (options.sampler, options.steps, options.eta))
    drawn = "".join(f"-{name}{value}" for name, value in sampler.items() if changed and value)
    drawn += f"-samples{options.samples}" if options.samples > 1 else ""
    rows = {}
    for name, spec in pairs:
        predictions = evaluate_split(
            model, dataset, split, spec, seed=seed, samples=options.samples, batch_size=config.batch_size
        )
        rows[name] = {"realised_missing_rate": predictions.rate, **metrics(predictions.mean, split.labels)}
        save_predictions(run_directory, split, f"{options.protocol}-{name}{drawn}", predictions)
    document = {
        "run_dir": str(run_directory.path),
        "protocol": options.protocol,
        "split": options.split,
        "checkpoint": options.checkpoint,
        "samples": options.samples,
        **sampler,
        "seed": seed,
        "rows": rows,
    }
    table = metrics_table(rows, COLUMNS)
    run_directory.write_evaluation(f"{options.protocol}-{options.split}{drawn}", document, table)
    return document, [sentence for _, spec in pairs for sentence in notes(dataset, spec)]


if __name__ == "__main__":
    sys.exit(main())

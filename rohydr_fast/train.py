"""``python -m rohydr_fast.train``: train RoHyDR and print a table of what it reached."""

import sys
from dataclasses import fields
from pathlib import Path

from .cli import Parser, make_parser, print_json, run
from .config import TrainConfig
from .errors import UsageError

OTHER_OPTIONS = ("seeds", "out", "resume", "tensorboard", "profile", "json", "config", "debug")


def parser() -> Parser:
    """One option for each field of `TrainConfig`, and the few that are not settings of a model."""
    result = make_parser("rohydr_fast.train", "Train RoHyDR on emotion recognition with missing modalities.")
    result.add_argument("--config", action="config", help="YAML file with options; flags override it")
    for option in fields(TrainConfig):
        result.add_argument(
            "--" + option.name.replace("_", "-"),
            type=option.type,
            default=option.default,
            help=option.metadata["help"],
        )
    result.add_argument("--seeds", type=int, nargs="+", help="several seeds, one run each, and a table over all")
    result.add_argument("--out", type=str, help="run directory (default: a new one under runs/)")
    result.add_argument("--resume", type=str, help="go on with the run in this directory, or auto: the newest of --out")
    result.add_argument("--tensorboard", action="store_true", help="write curves to tensorboard/ in the run directory")
    result.add_argument(
        "--profile", action="store_true", help="profile three batches into profile/ in the run directory"
    )
    result.add_argument("--json", action="store_true", help="print one JSON object as the last line")
    return result


def main(argv: list[str] | None = None) -> int:
    """Run the command; returns its exit code."""
    return run(parser(), lambda options: _command(options, argv), argv)


def _command(options, argv: list[str] | None) -> None:
    from .distributed import joined

    with joined() as team:
        runs = _runs(options, argv, alone=team.size == 1)
        if team.leads:
            _report(runs, options.json)


def _runs(options, argv: list[str] | None, alone: bool):
    from .training import experiment
    from .training.several import Runs, train_seeds
    from .training.watching import Watch

    watch = Watch(options.tensorboard, options.profile)
    out = Path(options.out) if options.out else None
    if options.resume:
        auto = options.resume == "auto"
        if options.seeds or (out and not auto):
            raise UsageError("--resume: must stand without --out and --seeds. The run directory holds its settings.")
        asked = parser().parse_args(argv, defaults=False)  # a default that is given would be as lost as another value
        given = [f.name for f in fields(TrainConfig) if hasattr(asked, f.name)]
        if given:
            raise UsageError(
                f"--resume: must stand without other settings, got --{given[0].replace('_', '-')}. "
                "The run directory holds them."
            )
        path = experiment.newest_run(out or Path("runs")) if auto else Path(options.resume)
        return Runs((experiment.resume(path, fall_back=auto, watch=watch),))
    if out is None and not alone:
        raise UsageError(
            "--out: must be given for several processes, so that they find the run after a restart. Add it."
        )
    settings = {name: value for name, value in vars(options).items() if name not in OTHER_OPTIONS}
    config = TrainConfig(**settings)
    return train_seeds(config, tuple(options.seeds or [config.seed]), out, watch)


def _report(runs, as_json: bool) -> None:
    results = runs.results
    first, last = results[0].summary, results[-1].summary
    rates = [result.summary["realised_missing_rate"] for result in results]
    print(
        f"test split, missing {first['missing']}, realised rate {sum(rates) / len(rates):.4f}, "
        f"{len(results)} run{'s' * (len(results) > 1)}, best of up to {last['epochs']} epochs on validation"
    )
    print(runs.table)
    for note in results[0].notes:
        print(f"note: {note}")
    for result in results:
        print(f"run: {result.summary['run_dir']}")
    if not as_json:
        return
    if len(results) == 1:
        print_json(first)
    else:
        names = {name: {key: list(value) for key, value in row.items()} for name, row in runs.metrics.items()}
        print_json({"runs": [result.summary for result in results], "mean_std_n": names})


if __name__ == "__main__":
    sys.exit(main())

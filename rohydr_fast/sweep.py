"""``python -m rohydr_fast.sweep``: the runs of a table or figure, or a search for settings on validation data."""

import sys
import time
from dataclasses import fields
from pathlib import Path

from .cli import Parser, make_parser, print_json, run
from .config import METHODS, TrainConfig
from .errors import RohydrError, UsageError

PLANNED = ("seed", "fold", "method", "missing_rate", "available", "protocol")
"""Settings of a run that the plan decides."""


class SweepIncomplete(RohydrError):
    """Some runs failed; the others are done."""


def parser() -> Parser:
    """What to run, and one option for each setting of a run that the plan leaves open."""
    result = make_parser("rohydr_fast.sweep", "Run what a table or figure of the paper needs, or search for settings.")
    result.add_argument("--config", action="config", help="YAML file with options; flags override it")
    result.add_argument("--table", type=int, help="1 rates, 2 available sets, 3 HDDM and UR, 4 D and MR, 5 strategies")
    result.add_argument("--figure", type=int, help="3 curves over epochs, 4 the lambdas")
    result.add_argument("--search", type=int, help="so many trials of an Optuna search, by validation MAE alone")
    result.add_argument("--seeds", type=int, nargs="+", default=[1, 2, 3], help="one run each")
    result.add_argument("--methods", type=str, nargs="+", default=list(METHODS), help=f"among {', '.join(METHODS)}")
    result.add_argument("--rates", type=float, nargs="+", help="of --per-rate (default: 0.0 to 0.7)")
    result.add_argument("--per-rate", action="store_true", help="a model for each rate, not one for all")
    result.add_argument("--jobs", type=int, help="runs side by side (default: as many as there are cores)")
    result.add_argument("--out", type=str, required=True, help="directory of the sweep; the same command goes on there")
    result.add_argument("--dry-run", action="store_true", help="print the runs, and run none")
    result.add_argument("--json", action="store_true", help="print one JSON object as the last line")
    for option in fields(TrainConfig):
        if option.name not in PLANNED:
            result.add_argument(
                "--" + option.name.replace("_", "-"),
                type=option.type,
                default=option.default,
                help=option.metadata["help"],
            )
    return result


def main(argv: list[str] | None = None) -> int:
    """Run the command; returns its exit code."""
    return run(parser(), _command, argv)


def _command(options) -> None:
    base = TrainConfig(**{f.name: getattr(options, f.name) for f in fields(TrainConfig) if f.name not in PLANNED})
    out = Path(options.out)
    if options.jobs is not None and options.jobs < 1:
        raise UsageError(f"--jobs: must be 1 or more, got {options.jobs}. Leave it out to use every core.")
    if options.search is not None:
        if options.table is not None or options.figure is not None:
            raise UsageError("--search: must stand without --table and --figure. Run them one after the other.")
        from .sweeping.search import search

        found = search(base, trials=options.search, seed=options.seeds[0], out=out)
        print(found.table)
        print(f"best settings: python -m rohydr_fast.train --config {out / 'best.yaml'}")
        if options.json:
            print_json(found.document)
        return
    _sweep(options, base, out)


def _sweep(options, base: TrainConfig, out: Path) -> None:
    from .evaluation.protocols import RATES
    from .sweeping.plan import Asked, plan

    asked = Asked(
        options.table, options.figure, tuple(options.seeds), tuple(options.methods), tuple(options.rates or RATES),
        options.per_rate, base,
    )  # fmt: skip
    jobs = plan(asked)
    if options.dry_run:
        for job in jobs:
            print(f"{job.name}: {', '.join(asked.protocol for asked in job.evaluations) or 'its own pattern'}")
        print(f"{len(jobs)} runs of up to {base.max_epochs()} epochs of the preset {base.preset}")
        return

    import os

    from .sweeping.execution import DONE, FAILED, SKIPPED, UNAVAILABLE, Outcome, execute

    started, count = time.perf_counter(), 0

    def report(outcome: Outcome, left: int) -> None:
        nonlocal count
        count += 1
        rest = (time.perf_counter() - started) / count * left
        why = f": {outcome.sentence}" if outcome.sentence else ""
        print(
            f"{outcome.name} {outcome.state} in {outcome.seconds:.0f} s{why} ({left} left, about {rest / 60:.0f} min)",
            file=sys.stderr,
            flush=True,
        )

    outcomes = execute(jobs, out, options.jobs or os.cpu_count() or 1, report)
    names = {state: [o.name for o in outcomes if o.state == state] for state in (DONE, SKIPPED, UNAVAILABLE, FAILED)}
    print(
        f"{len(names[DONE])} runs done, {len(names[SKIPPED])} were done before, "
        f"{len(names[UNAVAILABLE])} not available on these data, {len(names[FAILED])} failed"
    )
    for outcome in outcomes:
        if outcome.state == UNAVAILABLE:
            print(f"note: {outcome.name}: {outcome.sentence}")
    print(f"tables and figures: python -m rohydr_fast.report {out} --out {out / 'report'}")
    if options.json:
        print_json({"out": str(out), **{state.replace(" ", "_"): found for state, found in names.items()}})
    failed = [outcome for outcome in outcomes if outcome.state == FAILED]
    if failed:
        raise SweepIncomplete(
            f"{len(failed)} of {len(jobs)} runs failed, the first: {failed[0].name}: {failed[0].sentence} "
            "Mend that and give the same command again: it runs what is missing."
        )


if __name__ == "__main__":
    sys.exit(main())

"""What recovery gains, and which settings make it gain more: variants of a run under the same masks, with intervals.

    python benchmarks/recovery_study.py [VARIANT ...] --out DIR [--data synthetic:1284/1000/4000] [--seeds 1 2 3]
        [--epochs N] [--rates 0.3 0.5 0.7] [--split valid] [--samples 1] [--against method=zero] [--markdown FILE]

A variant is settings of `python -m rohydr_fast.train` with commas between, such as prediction=v,chain_grad=none; the
word default changes nothing. One model for all patterns is trained for each variant and seed, at the rates all are
evaluated on the same clips with the same modalities missing, and each variant is held against the first one and against
`--against`. The share of the gap is how far its MAE and ACC2 come from those of `--against` to the best that the
generating model allows. The test split is read with `--split test` alone. The same command goes on where it stopped.
"""

import argparse
import json
import statistics
import sys
from dataclasses import dataclass, fields, replace
from pathlib import Path

from rohydr_fast.config import TrainConfig
from rohydr_fast.data.dataset import Dataset
from rohydr_fast.data.missing_spec import MissingSpec
from rohydr_fast.errors import RohydrError, UsageError
from rohydr_fast.evaluation.protocols import protocol_rows
from rohydr_fast.evaluation.runs import Evaluation
from rohydr_fast.evaluation.tables import markdown
from rohydr_fast.models.recovery import METHOD_CLASSES
from rohydr_fast.reporting.collect import Row, read_run
from rohydr_fast.reporting.comparisons import interval
from rohydr_fast.reporting.predictions import Reader
from rohydr_fast.reporting.statistics import Comparison, compare
from rohydr_fast.sweeping.execution import FAILED, Outcome, execute
from rohydr_fast.sweeping.plan import Job
from rohydr_fast.training.experiment import read_dataset

DEFAULT = "default"


@dataclass(frozen=True)
class Variant:
    """One row of the table: how it was trained, and how many recoveries are drawn for a prediction."""

    text: str
    config: TrainConfig
    samples: int = 1

    @property
    def label(self) -> str:
        """Its settings, and the recoveries drawn where they are several."""
        return self.text if self.samples == 1 else f"{self.text}, {self.samples} samples"


def parse(text: str, base: TrainConfig) -> TrainConfig:
    """`base` with the settings of a variant."""
    if text == DEFAULT:
        return base
    kinds = {field.name: field.type for field in fields(TrainConfig)}
    changes = {}
    for part in text.split(","):
        name, _, value = part.partition("=")
        kind = {str | None: str, int | None: int}.get(kinds.get(name), kinds.get(name))
        try:
            changes[name] = kind(value)
        except (TypeError, ValueError):
            raise UsageError(
                f"variant: must be settings with commas between, got {text!r}. Write for example lr=0.001,draws=4."
            ) from None
    return replace(base, **changes)


def asked(variant: Variant, rate: float, split: str) -> Evaluation:
    """What a variant's runs are asked at one rate."""
    return Evaluation("exact", missing_rate=f"{rate:g}", samples=variant.samples, split=split)


@dataclass(frozen=True)
class Found:
    """What the runs of one variant say: by seed, one row for each rate."""

    rows: dict[int, list[Row]]
    samples_per_second: float

    def mean(self, name: str, rate: int | None = None) -> float:
        """A metric, over seeds and rates, or at one of the rates."""
        return statistics.mean(row.metrics[name] for rows in self.rows.values() for row in _at(rows, rate))

    def recovery(self, name: str) -> float | None:
        """The quality of recovery over modalities, seeds and rates."""
        qualities = [q[name] for rows in self.rows.values() for row in rows for q in row.recovery.values()]
        return statistics.mean(qualities) if qualities else None


def _at(values: list, rate: int | None) -> list:
    return values if rate is None else values[rate : rate + 1]


def gather(variant: Variant, seeds: list[int], rates: list[float], split: str, out: Path, reader: Reader) -> Found:
    """Everything that a variant's finished runs hold."""
    names = [MissingSpec("exact", rate=rate).name for rate in rates]
    rows, speeds = {}, []
    for seed in seeds:
        place = out / f"{variant.text}-seed{seed}"
        run, _ = read_run(place, split, reader)
        found = {row.name: row for e in run.evaluations if e.samples == variant.samples for row in e.rows}
        rows[seed] = [found[name] for name in names]
        speeds.append(json.loads((place / "timing.jsonl").read_text().splitlines()[-1])["train_samples_per_s"])
    return Found(rows, statistics.median(speeds))


def difference(first: Found, second: Found, rate: int | None = None) -> Comparison:
    """First minus second, over all rates or at one."""
    sides = (
        {seed: [row.predictions for row in _at(rows, rate)] for seed, rows in found.rows.items()}
        for found in (first, second)
    )
    return compare(*sides)


def best(found: Found, dataset: Dataset, split: str, rate: int | None = None) -> dict[str, float]:
    """What the generating model allows under the masks of these runs: MAE and ACC2, over seeds and rates."""
    scores = [
        dataset.known_best.metrics_for(split, row.predictions.missing)
        for rows in found.rows.values()
        for row in _at(rows, rate)
    ]
    return {name: statistics.mean(score[name] for score in scores) for name in ("MAE", "Non0_acc_2")}


def main_table(found: dict[str, Found], against: str) -> str:
    """A row for each variant, against the first and against `against`, over all rates."""
    first = next(iter(found.values()))
    header = ["variant", "ACC2", "MAE", "MAE less that of the first", f"MAE less that of {against}", "ACC2 likewise",
              "error of recovery", "cosine", "clips/s"]  # fmt: skip
    rows = []
    for label, one in found.items():
        to_first, to_other = (None if one is other else difference(one, other) for other in (first, found[against]))
        rows.append(
            [
                label,
                f"{100 * one.mean('Non0_acc_2'):.2f}",
                f"{one.mean('MAE'):.4f}",
                *(_interval(to, "MAE") for to in (to_first, to_other)),
                _interval(to_other, "Non0_acc_2"),
                *("-" if one.recovery(n) is None else f"{one.recovery(n):.3f}" for n in ("relative_mse", "cosine")),
                f"{one.samples_per_second:.0f}",
            ]
        )
    return markdown(header, rows, 1)


def gap_table(found: dict[str, Found], against: str, rates: list[float], dataset: Dataset, split: str) -> str:
    """At each rate: what `against` reaches, what is possible, and the share of that gap that each variant closes."""
    header = ["rate", "variant", "MAE", "share of the gap, %", "ACC2", "share of the gap, %"]
    rows, zero = [], found[against]
    for place, rate in [*enumerate(rates), (None, "mean")]:
        limit = best(zero, dataset, split, place)
        rows.append(
            [str(rate), "*best reachable*", f"{limit['MAE']:.4f}", "100", f"{100 * limit['Non0_acc_2']:.2f}", "100"]
        )
        for label, one in found.items():
            row = [str(rate), label]
            for name, scale, digits in (("MAE", 1, 4), ("Non0_acc_2", 100, 2)):
                row.append(f"{scale * one.mean(name, place):.{digits}f}")
                row.append("0" if one is zero else _share(one, zero, limit, name, place))
            rows.append(row)
    return markdown(header, rows, 2)


def _share(one: Found, zero: Found, limit: dict[str, float], name: str, rate: int | None) -> str:
    """The difference to `zero` and its interval, in percent of the gap at its estimate."""
    gap = limit[name] - zero.mean(name, rate)
    found = difference(one, zero, rate).differences[name]
    low, high = sorted(100 * value / gap for value in (found.low, found.high))
    return f"{100 * found.estimate / gap:.0f} [{low:.0f}, {high:.0f}]"


def _interval(comparison: Comparison | None, metric: str) -> str:
    if comparison is None:
        return "-"
    found = comparison.differences[metric]
    return interval(metric, found) + ("" if found.better is None else " *")


def run(options: argparse.Namespace) -> str:
    """Train what is missing, evaluate, and make both tables."""
    base = TrainConfig(
        data=options.data, preset=options.preset, missing_rate="mixed", patience=0, epochs=options.epochs
    )
    variants = []
    for text in dict.fromkeys([*options.variants, options.against]):
        config = parse(text, base)
        draws = METHOD_CLASSES[config.method].draws
        variants += [Variant(text, config, samples) for samples in (options.samples if draws else [1])]
    jobs = [
        Job(
            f"{text}-seed{seed}",
            replace(config, seed=seed),
            tuple(asked(v, rate, options.split) for v in variants if v.text == text for rate in options.rates),
        )
        for seed in options.seeds
        for text, config in {v.text: v.config for v in variants}.items()
    ]

    def told(outcome: Outcome, left: int) -> None:
        why = f": {outcome.sentence}" if outcome.sentence else ""
        print(
            f"{outcome.name} {outcome.state} in {outcome.seconds:.0f} s{why} ({left} left)", file=sys.stderr, flush=True
        )

    outcomes = execute(jobs, options.out, options.jobs, told)
    failed = [outcome for outcome in outcomes if outcome.state == FAILED]
    if failed:
        raise RohydrError(f"{failed[0].name}: {failed[0].sentence} Mend that and give the same command again.")
    reader, dataset = Reader(), read_dataset(base)
    found = {v.label: gather(v, options.seeds, options.rates, options.split, options.out, reader) for v in variants}
    tables = [main_table(found, options.against)]
    if dataset.known_best is not None:
        tables.append(gap_table(found, options.against, options.rates, dataset, options.split))
    return "\n".join(tables) + "\n\\* the 95 % interval excludes 0.\n"


def main() -> int:
    """Print the tables."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("variants", nargs="*", default=[DEFAULT, "method=regress"])
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--data", default="synthetic:1284/1000/4000")
    parser.add_argument("--preset", default="tiny")
    parser.add_argument("--epochs", type=int)
    parser.add_argument("--seeds", nargs="+", type=int, default=[1, 2, 3])
    parser.add_argument("--rates", nargs="+", type=float, default=[0.3, 0.5, 0.7])
    parser.add_argument("--samples", nargs="+", type=int, default=[1])
    parser.add_argument("--split", choices=("valid", "test"), default="valid")
    parser.add_argument("--against", default="method=zero", help="a variant too; give it after the others")
    parser.add_argument("--jobs", type=int, default=2)
    parser.add_argument("--markdown", type=Path)
    options = parser.parse_args()
    try:
        for rate in options.rates:
            protocol_rows("exact", missing_rate=f"{rate:g}")
        text = run(options)
    except RohydrError as error:
        print(f"recovery_study: error: {error}", file=sys.stderr)
        return error.exit_code
    print(text)
    if options.markdown:
        options.markdown.write_text(text)
    return 0


if __name__ == "__main__":
    sys.exit(main())

"""Several runs that differ in their seed, from one call, and what they reached together."""

import csv
import sys
from collections.abc import Iterable
from dataclasses import dataclass, fields, replace
from pathlib import Path

import numpy as np

from ..config import TrainConfig
from ..distributed import restarted, team
from ..errors import DataError, UsageError
from ..evaluation.tables import aggregate, aggregate_table
from .experiment import Result, resume, start
from .run_directory import CONFIG
from .watching import NOTHING, Watch

MMSA_METRICS = (
    *("Has0_acc_2", "Has0_F1_score", "Non0_acc_2", "Non0_F1_score", "Mult_acc_5", "Mult_acc_7", "MAE", "Corr"),
)
"""Columns of MMSA's tables of MOSI and MOSEI, in its order."""


@dataclass(frozen=True)
class Runs:
    """Finished runs, one for each seed."""

    results: tuple[Result, ...]

    @property
    def directories(self) -> tuple[Path, ...]:
        """Where they lie; `RoHyDR.from_pretrained` takes each."""
        return tuple(Path(result.summary["run_dir"]) for result in self.results)

    @property
    def metrics(self) -> dict[str, dict]:
        """Row of the final table -> metric -> (mean, standard deviation, n) over seeds, on the test split."""
        return aggregate([result.rows for result in self.results])

    @property
    def table(self) -> str:
        """The final table in Markdown: of the run, or the mean over seeds."""
        return self.results[0].table if len(self.results) == 1 else aggregate_table(self.metrics)

    def to_csv(self, path: str | Path, model: str | None = None) -> None:
        """Add a row to a table as MMSA writes it: ``Model``, then for each metric (mean, deviation) times 100.

        Args:
            path: made when it is not there.
            model: name of the row; the method's by default.

        Raises:
            DataError: the file has other columns.
        """
        path, header = Path(path), ["Model", *MMSA_METRICS]
        new = not path.exists()
        if not new:
            with open(path, newline="") as file:
                there = next(csv.reader(file), None)
            if there != header:
                raise DataError(f"{path}: must have the columns {', '.join(header)}, got {there}. Use another file.")
        cells = []
        for name in MMSA_METRICS:
            values = [result.summary["test"][name] for result in self.results]
            known = np.array([np.nan if value is None else value for value in values], float)
            cells.append(str((round(float(known.mean()) * 100, 2), round(float(known.std()) * 100, 2))))
        with open(path, "a", newline="") as file:
            writer = csv.writer(file, lineterminator="\n")
            if new:
                writer.writerow(header)
            writer.writerow([model or next(iter(self.results[0].rows)), *cells])


def run(
    dataset: str = TrainConfig.data,
    missing_rate: float | str = TrainConfig.missing_rate,
    seeds: Iterable[int] = (1,),
    *,
    out: str | Path | None = None,
    **settings,
) -> Runs:
    """Train and test once for each seed; what `python -m rohydr_fast.train --seeds` does.

    Args:
        dataset: a file in MMSA's schema, or synthetic.
        missing_rate: 0 to 1, mixed, or ``a=0.3,t=0.1,v=0.5``.
        seeds: one run each.
        out: directory of the run, or of ``seed{S}`` for each of several; new ones under ``runs/`` by default.
        settings: any other field of `config.TrainConfig`.

    Raises:
        UsageError: an unknown or impossible setting, a seed twice, `out` is taken; before anything is trained.
        DataError, FileAccessError: of the file.
    """
    known = {field.name for field in fields(TrainConfig)} - {"data", "missing_rate", "seed"}
    unknown = sorted(set(settings) - known)
    if unknown:
        raise UsageError(
            f"run: settings must be among {', '.join(sorted(known))}, got {unknown[0]!r}. Change its name."
        )
    rate = missing_rate if isinstance(missing_rate, str) else f"{missing_rate:g}"
    config = TrainConfig(data=str(dataset), missing_rate=rate, **settings)
    return train_seeds(config, tuple(seeds), None if out is None else Path(out))


def train_seeds(config: TrainConfig, seeds: tuple[int, ...], out: Path | None, watch: Watch = NOTHING) -> Runs:
    """A run of `config` for each seed, see `run`."""
    if len(set(seeds)) != len(seeds) or not seeds:
        raise UsageError(f"--seeds: must be some that differ from each other, got {list(seeds)}. Name each seed once.")
    configs = [replace(config, seed=seed) for seed in seeds]
    places = [out / f"seed{seed}" if out and len(seeds) > 1 else out for seed in seeds]
    results = []
    for one, place in zip(configs, places, strict=True):
        results.append(_start_or_resume(one, place, watch))
        if len(seeds) > 1 and team().leads:  # should a later one fail, this is told
            print(f"seed {one.seed}: {results[-1].summary['run_dir']}", file=sys.stderr)
    return Runs(tuple(results))


def _start_or_resume(config: TrainConfig, place: Path | None, watch: Watch) -> Result:
    """After a failure torchrun gives the same command again: then the run that is there goes on."""
    if restarted() and place is not None and (place / CONFIG).is_file():
        return resume(place, fall_back=True, watch=watch)
    return start(config, place, watch=watch)

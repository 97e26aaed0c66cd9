"""Cross-validation in a report: the folds of one seed are one run, which has predicted every clip once."""

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from ..errors import DataError
from ..evaluation.metrics import metrics
from .collect import Collection, Evaluation, LeftOut, Row, Run
from .predictions import ClipPredictions
from .settings import identity


def join_folds(collection: Collection) -> Collection:
    """The collection with all runs that differ in `--fold` alone joined; a seed that lacks a fold is left out.

    Predictions are put one after the other and their metrics computed again over all clips. What a row says beyond
    metrics (recovery, intervals), and curves over epochs, are means over folds: of a row by clips, of a curve up to
    the last epoch that all folds have.

    Raises:
        DataError: nothing is left.
    """
    runs: list[Run] = []
    left_out = list(collection.left_out)
    together: dict[str, dict[int, Run]] = defaultdict(dict)
    for run in collection.runs:
        if not run.settings.values.get("folds"):
            runs.append(run)
            continue
        key = identity({**run.settings.values, "fold": None, "missing": run.settings.missing, "seed": run.seed})
        fold = run.settings.values["fold"]
        if fold in together[key]:
            there = together[key][fold].path
            left_out.append(
                LeftOut(run.path, f"fold {fold} of the same settings and seed is already there, in {there}.")
            )
        else:
            together[key][fold] = run
    for by_fold in together.values():
        folds = next(iter(by_fold.values())).settings.values["folds"]
        absent = sorted(set(range(1, folds + 1)) - set(by_fold))
        if absent:
            reason = f"fold {', '.join(map(str, absent))} of {folds} is not there, and every clip must be tested once."
            left_out += [LeftOut(run.path, reason) for run in by_fold.values()]
            continue
        joined, unused = _join([by_fold[fold] for fold in sorted(by_fold)])
        runs.append(joined)
        left_out += unused
    if not runs:
        raise DataError(f"report: no run is left to report on, {len(left_out)} left out. {left_out[-1]}")
    return Collection(tuple(runs), tuple(left_out))


def _join(folds: Sequence[Run]) -> tuple[Run, list[LeftOut]]:
    first, unused = folds[0], []
    found: dict[tuple[str, int], list[Evaluation]] = defaultdict(list)
    for run in folds:
        for evaluation in run.evaluations:
            found[evaluation.protocol, evaluation.samples].append(evaluation)
    evaluations = []
    for (protocol, samples), parts in found.items():
        if len(parts) == len(folds) and all(_names(part) == _names(parts[0]) for part in parts):
            rows = zip(*(part.rows for part in parts), strict=True)
            evaluations.append(Evaluation(protocol, samples, tuple(_join_rows(same) for same in rows)))
        else:
            reason = f"the evaluation {protocol} is not there for all of its {len(folds)} folds. Evaluate the others."
            unused.append(LeftOut(first.path, reason))
    values = {key: value for key, value in first.settings.values.items() if key != "fold"}
    run = replace(
        first,
        settings=replace(first.settings, values=values),
        result={"best_epoch": ", ".join(str(run.result.get("best_epoch")) for run in folds)},
        own=_join_rows([run.own for run in folds]),
        epochs=tuple(_mean(same, np.ones(len(folds))) for same in zip(*(run.epochs for run in folds), strict=False)),
        evaluations=tuple(evaluations),
        speeds=tuple(speed for run in folds for speed in run.speeds),
    )
    return run, unused


def _names(evaluation: Evaluation) -> list[str]:
    return [row.name for row in evaluation.rows]


def _join_rows(rows: Sequence[Row]) -> Row:
    """One pattern over the clips of all folds."""
    parts = [row.predictions for row in rows]
    together = ClipPredictions(
        **{name: np.concatenate([getattr(part, name) for part in parts]) for name in ClipPredictions.__annotations__}
    )
    clips = np.array([len(part.labels) for part in parts], float)
    beyond = _mean([{"rate": r.rate, "recovery": r.recovery, "uncertainty": r.uncertainty} for r in rows], clips)
    return Row(rows[0].name, metrics=metrics(together.prediction, together.labels), predictions=together, **beyond)


def _mean(values: Sequence, weights: np.ndarray):
    """Means of the numbers in documents of one form; what one of them lacks, or is no number, is None unless equal."""
    if all(isinstance(value, dict) for value in values):
        keys = [key for key in values[0] if all(key in value for value in values)]
        return {key: _mean([value[key] for value in values], weights) for key in keys}
    if all(value == values[0] for value in values):
        return values[0]
    numbers = all(isinstance(value, int | float) and not isinstance(value, bool) for value in values)
    return float(np.average(values, weights=weights)) if numbers else None

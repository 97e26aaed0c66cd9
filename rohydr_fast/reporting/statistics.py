"""Paired bootstrap intervals of the difference between two methods, over seeds and clips."""

import functools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from ..errors import DataError
from .predictions import ClipPredictions

LEVEL = 0.95
RESAMPLES = 2000

METRICS = {"Non0_acc_2": +1, "MAE": -1}
"""What is compared, and the sign of a better value."""


@dataclass(frozen=True)
class Difference:
    """First minus second in one metric, with its interval; None where the metric is undefined."""

    estimate: float | None
    low: float | None
    high: float | None
    better: str | None  # "first" or "second"; None where the interval holds 0


@dataclass(frozen=True)
class Comparison:
    """What `compare` found, and from how much."""

    seeds: tuple[int, ...]  # those that both have
    clips: int
    signed_clips: int  # with a label other than 0: those of Non0_acc_2
    differences: dict[str, Difference]

    @property
    def clips_only(self) -> bool:
        """One seed: the interval says nothing about other seeds."""
        return len(self.seeds) == 1


def compare(
    first: Mapping[int, Sequence[ClipPredictions]],
    second: Mapping[int, Sequence[ClipPredictions]],
    *,
    names: tuple[str, str] = ("first", "second"),
    resamples: int = RESAMPLES,
    seed: int = 0,
) -> Comparison:
    """The interval of the difference between two methods, by resampling seeds and clips.

    Runs are paired by seed and clips by id. All seeds share one test split, so each of the `resamples` draws takes S of
    the S seeds and, for all of them alike, N of the N clips, both with replacement. A plain bootstrap of few seeds is
    too narrow: its variance is (S - 1) / S of the right one, which is itself an estimate. So the weights of the seeds
    are moved away from 1 / S by ``sqrt(S / (S - 1)) t / z``, t and z the quantiles of Student's distribution (S - 1
    degrees) and the normal one: over seeds alone the interval is about as wide as a paired t interval (0.72 of it for
    S = 2, of which there are only three different draws).

    Args:
        first, second: seed -> predictions of the test split, one for each condition; several are averaged, condition by
            condition (a mean over missing rates).
        names: of the two methods, for messages.
        seed: of the resampling; the same seed gives the same interval.

    Returns:
        Differences first - second of `METRICS`, as fractions (ACC2) and in units of the label (MAE).

    Raises:
        DataError: no seed in common, or clips, labels or missing patterns that differ; the message names them.
    """
    seeds = tuple(sorted(set(first) & set(second)))
    if not seeds:
        raise DataError(
            f"{names[0]} and {names[1]}: must have a seed in common, got seeds {_listed(first)} and {_listed(second)}. "
            "Train both with the same seeds."
        )
    reference = first[seeds[0]][0]
    gaps: dict[str, list] = {metric: [] for metric in METRICS}
    for number in seeds:
        differences = [
            _differences(*_paired(one, other, reference, names, number))
            for one, other in zip(first[number], second[number], strict=True)
        ]
        for metric in METRICS:
            gaps[metric].append(np.mean([difference[metric] for difference in differences], axis=0))
    signed = reference.labels != 0
    counted = {"Non0_acc_2": signed, "MAE": np.ones(len(signed), bool)}
    return Comparison(
        seeds,
        len(signed),
        int(signed.sum()),
        {
            metric: _interval(np.stack(gaps[metric]), counted[metric], METRICS[metric], resamples, seed)
            for metric in METRICS
        },
    )


def _differences(one: ClipPredictions, other: ClipPredictions) -> dict[str, np.ndarray]:
    """Each (N,): whether the sign is right, and the absolute error, of `one` minus those of `other`."""
    labels = one.labels.astype(np.float64)
    right = [((p.prediction > 0) == (labels > 0)).astype(np.float64) for p in (one, other)]
    errors = [np.abs(p.prediction.astype(np.float64) - labels) for p in (one, other)]
    return {"Non0_acc_2": right[0] - right[1], "MAE": errors[0] - errors[1]}


def _paired(
    one: ClipPredictions, other: ClipPredictions, reference: ClipPredictions, names: tuple[str, str], seed: int
) -> tuple[ClipPredictions, ClipPredictions]:
    """Both with their clips in the order of `reference`."""
    found = [predictions.ordered_as(reference.ids) for predictions in (one, other)]
    for name, predictions, ordered in zip(names, (one, other), found, strict=True):
        if ordered is None:
            unpaired = sorted(set(predictions.ids.tolist()) ^ set(reference.ids.tolist()))
            what = f"{len(unpaired)} without a partner, {unpaired[0]!r} first" if unpaired else "one id several times"
            raise DataError(
                f"{names[0]} and {names[1]}: must have predictions for the same clips, got {what} ({name}, seed "
                f"{seed}). Evaluate both on the same data."
            )
        if not np.array_equal(ordered.labels, reference.labels):
            raise _differing("labels", names, seed, reference.ids, ordered.labels != reference.labels)
    if not np.array_equal(found[0].missing, found[1].missing):
        rows = (found[0].missing != found[1].missing).any(axis=1)
        raise _differing("missing patterns", names, seed, reference.ids, rows)
    return found[0], found[1]


def _differing(what: str, names: tuple[str, str], seed: int, ids: np.ndarray, rows: np.ndarray) -> DataError:
    return DataError(
        f"{names[0]} and {names[1]}: must have the same {what}, got {int(rows.sum())} clips where they differ, "
        f"{str(ids[rows][0])!r} first (seed {seed}). Evaluate both with the same protocol and data."
    )


def _interval(gaps: np.ndarray, counted: np.ndarray, sign: int, resamples: int, seed: int) -> Difference:
    """Interval of the mean over seeds and counted clips of `gaps` (S, N)."""
    if not counted.any():
        return Difference(None, None, None, None)
    seeds, clips = gaps.shape
    estimate = float(gaps[:, counted].mean())
    clip_weights, seed_weights = _clip_counts(clips, resamples, seed), _seed_weights(seeds, resamples, seed)
    drawn = clip_weights @ counted.astype(np.float32)  # float32: a large test split is bound by memory
    usable = drawn > 0
    by_seed = (clip_weights @ (gaps * counted).T.astype(np.float32))[usable] / drawn[usable, None]  # (R, S)
    means = (by_seed * seed_weights[usable]).sum(axis=1)
    low, high = (float(q) + 0.0 for q in np.quantile(means, [(1 - LEVEL) / 2, (1 + LEVEL) / 2]))  # + 0.0: no -0
    better = None
    if low > 0 or high < 0:
        better = "first" if (low > 0) == (sign > 0) else "second"
    return Difference(estimate, low, high, better)


@functools.lru_cache(maxsize=4)
def _clip_counts(clips: int, resamples: int, seed: int) -> np.ndarray:
    """(R, N) float32: how often each draw took each clip."""
    generator = np.random.Generator(np.random.PCG64([seed, 0]))
    counts = np.empty((resamples, clips), np.float32)
    for row in counts:
        row[:] = np.bincount(generator.integers(clips, size=clips), minlength=clips)
    return counts


@functools.lru_cache(maxsize=32)
def _seed_weights(seeds: int, resamples: int, seed: int) -> np.ndarray:
    """(R, S) weights that sum to 1, some of them negative."""
    if seeds == 1:
        return np.ones((resamples, 1))
    generator = np.random.Generator(np.random.PCG64([seed, 1]))
    counts = generator.multinomial(seeds, np.full(seeds, 1 / seeds), size=resamples)
    upper = (1 + LEVEL) / 2
    widening = math.sqrt(seeds / (seeds - 1)) * student_quantile(upper, seeds - 1) / student_quantile(upper, math.inf)
    return 1 / seeds + widening * (counts / seeds - 1 / seeds)


@functools.cache
def student_quantile(probability: float, degrees: float) -> float:
    """Quantile of Student's t distribution, for a probability above 0.5 and `degrees` >= 1 (infinity: the normal).

    With t = sqrt(degrees) tan(theta) the density becomes cos(theta)^(degrees - 1), smooth on [0, pi / 2].
    """
    if math.isinf(degrees):
        theta = np.linspace(0, 10, 100_001)
        density, scale = np.exp(-(theta**2) / 2), theta
    else:
        theta = np.linspace(0, math.pi / 2, 100_001)
        density, scale = np.cos(theta) ** (degrees - 1), None
    mass = np.concatenate([[0], np.cumsum((density[1:] + density[:-1]) / 2)])
    found = float(np.interp(2 * probability - 1, mass / mass[-1], theta))
    return found if scale is not None else math.sqrt(degrees) * math.tan(found)


def _listed(seeds: Mapping[int, object]) -> str:
    return ", ".join(map(str, sorted(seeds))) or "none"

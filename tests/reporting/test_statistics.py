"""Bootstrap intervals: known answers, coverage, and what may not be paired."""

import math

import numpy as np
import pytest

from rohydr_fast.errors import DataError
from rohydr_fast.reporting.predictions import ClipPredictions
from rohydr_fast.reporting.statistics import METRICS, compare, student_quantile

CLIPS = 120


def predictions(values: np.ndarray, labels: np.ndarray, **changes) -> ClipPredictions:
    clips = len(labels)
    arrays = {
        "ids": np.array([f"clip_{i}" for i in range(clips)]),
        "labels": labels.astype(np.float32),
        "prediction": np.asarray(values, np.float32),
        "std": np.zeros(clips, np.float32),
        "missing": np.arange(3 * clips).reshape(clips, 3) % 2 == 0,
    }
    return ClipPredictions(**{**arrays, **changes})


@pytest.fixture
def labels(rng):
    return np.round(rng.uniform(-3, 3, CLIPS))  # some are 0


@pytest.fixture
def rng():
    return np.random.default_rng(5)


def noisy(rng, labels, seeds=(1, 2, 3), noise=1.0, shift=0.0) -> dict[int, list[ClipPredictions]]:
    return {seed: [predictions(labels + shift + rng.normal(0, noise, len(labels)), labels)] for seed in seeds}


def test_identical_predictions_give_exactly_zero(rng, labels):
    same = noisy(rng, labels)
    found = compare(same, same)
    for metric in METRICS:
        difference = found.differences[metric]
        assert (difference.estimate, difference.low, difference.high, difference.better) == (0, 0, 0, None)
    assert (found.seeds, found.clips, found.signed_clips) == ((1, 2, 3), CLIPS, int((labels != 0).sum()))


def test_the_estimate_is_the_difference_of_the_metrics(rng, labels):
    from rohydr_fast.evaluation.metrics import metrics

    one, other = noisy(rng, labels), noisy(rng, labels, noise=2.0)
    found = compare(one, other)
    for metric in METRICS:
        means = [np.mean([metrics(p.prediction, labels)[metric] for [p] in runs.values()]) for runs in (one, other)]
        assert found.differences[metric].estimate == pytest.approx(means[0] - means[1], abs=1e-7)


def test_a_constant_shift_of_the_error_is_found_exactly(labels):
    """Every clip of every seed is worse by 0.5, so no resampling can change the difference."""
    one = {seed: [predictions(labels + 0.25, labels)] for seed in (1, 2)}
    other = {seed: [predictions(labels + 0.75, labels)] for seed in (1, 2)}
    difference = compare(one, other).differences["MAE"]
    assert (difference.low, difference.high) == pytest.approx((-0.5, -0.5))
    assert difference.better == "first"
    assert compare(other, one).differences["MAE"].better == "second"


def test_better_accuracy_is_higher_and_better_error_lower(rng, labels):
    found = compare(noisy(rng, labels, noise=0.3), noisy(rng, labels, noise=4.0))
    assert found.differences["Non0_acc_2"].estimate > 0 > found.differences["MAE"].estimate
    assert {difference.better for difference in found.differences.values()} == {"first"}


def test_nothing_is_better_when_the_interval_holds_zero(rng, labels):
    found = compare(noisy(rng, labels), noisy(rng, labels))
    for difference in found.differences.values():
        assert difference.low < 0 < difference.high and difference.better is None


def test_the_same_seed_gives_the_same_interval(rng, labels):
    one, other = noisy(rng, labels), noisy(rng, labels)
    assert compare(one, other) == compare(one, other)
    assert compare(one, other) != compare(one, other, seed=1)


def test_one_seed_resamples_clips_only(rng, labels):
    one, other = noisy(rng, labels, seeds=(4, 5)), noisy(rng, labels, seeds=(5, 6))
    found = compare(one, other)
    assert found.seeds == (5,) and found.clips_only
    gaps = np.abs(one[5][0].prediction - labels) - np.abs(other[5][0].prediction - labels)
    half = 1.96 * gaps.std() / math.sqrt(CLIPS)
    difference = found.differences["MAE"]
    assert (difference.high - difference.low) / 2 == pytest.approx(half, rel=0.1)


def test_several_conditions_are_averaged(rng, labels):
    rates = [predictions(labels + shift, labels) for shift in (0.2, 0.6)]
    base = [predictions(labels, labels)] * 2
    assert compare({1: rates}, {1: base}).differences["MAE"].estimate == pytest.approx(0.4, abs=1e-6)


def test_clips_are_paired_by_id_in_any_order(rng, labels):
    one, other = noisy(rng, labels), noisy(rng, labels)
    order = rng.permutation(CLIPS)
    shuffled = {
        seed: [
            ClipPredictions(*(getattr(p, name)[order] for name in ("ids", "labels", "prediction", "std", "missing")))
            for p in runs
        ]
        for seed, runs in other.items()
    }
    assert compare(one, shuffled) == compare(one, other)


@pytest.mark.parametrize(("seeds", "expected"), [(2, 0.72), (3, 1.0), (5, 1.0)])
def test_seeds_alone_give_the_width_of_a_paired_t_interval(seeds, expected):
    """All clips of a seed differ by the same amount, so clips add nothing. Two seeds give only three distinct draws."""
    ratios = []
    for trial in range(40):
        amounts = np.random.default_rng(trial).normal(0, 0.1, seeds)
        zeros = np.zeros(20)
        one = {seed: [predictions(zeros + 1 + amount, zeros)] for seed, amount in enumerate(amounts)}
        other = {seed: [predictions(zeros + 1, zeros)] for seed in range(seeds)}
        difference = compare(one, other).differences["MAE"]
        half = student_quantile(0.975, seeds - 1) * amounts.std(ddof=1) / math.sqrt(seeds)
        ratios.append((difference.high - difference.low) / 2 / half)
    assert np.mean(ratios) == pytest.approx(expected, abs=0.1)


@pytest.mark.parametrize("seeds", [1, 3, 5])
def test_coverage_is_about_nominal(seeds):
    """d = seed + clip + rest, all normal: the interval must hold the true mean in 95 % of the trials, or a little more.

    With one seed the interval is of that seed's own mean over clips.
    """
    rng, held, trials = np.random.default_rng(seeds), 0, 200
    zeros, truth = np.zeros(80), 0.05
    for _ in range(trials):
        of_clip, seed_effects = rng.normal(0, 0.3, 80), rng.normal(0, 0.04, seeds)
        gaps = truth + seed_effects[:, None] + of_clip + rng.normal(0, 0.3, (seeds, 80))
        one = {seed: [predictions(zeros + 5 + gaps[seed], zeros)] for seed in range(seeds)}
        other = {seed: [predictions(zeros + 5, zeros)] for seed in range(seeds)}
        difference = compare(one, other, resamples=400).differences["MAE"]
        target = truth + (seed_effects[0] if seeds == 1 else 0)
        held += difference.low <= target <= difference.high
    assert 0.91 <= held / trials <= 1 if seeds > 1 else 0.90 <= held / trials <= 0.99


def test_quantiles_of_students_t():
    known = {1: 12.7062, 2: 4.3027, 4: 2.7764, 9: 2.2622, 30: 2.0423, math.inf: 1.95996}
    assert {degrees: student_quantile(0.975, degrees) for degrees in known} == pytest.approx(known, rel=1e-4)


def test_an_undefined_metric_has_no_interval():
    zeros = np.zeros(9)
    found = compare({1: [predictions(zeros + 1, zeros)]}, {1: [predictions(zeros - 2, zeros)]})
    accuracy = found.differences["Non0_acc_2"]
    assert (accuracy.estimate, accuracy.low, accuracy.high, accuracy.better) == (None, None, None, None)
    assert found.differences["MAE"].better == "first"


def refused(labels, match, **changes):
    one = {1: [predictions(labels, labels)]}
    other = {1: [predictions(labels, changes.pop("with_labels", labels), **changes)]}
    with pytest.raises(DataError, match=match):
        compare(one, other, names=("rohydr", "zero"))


def test_other_clips_are_refused_by_name(labels):
    ids = np.array([f"clip_{i}" for i in range(CLIPS)])
    ids[7] = "stranger"
    refused(labels, r"rohydr and zero.*2 without a partner, 'clip_7'", ids=ids)


def test_a_repeated_id_is_refused(labels):
    ids = np.array([f"clip_{i}" for i in range(CLIPS)])
    ids[7] = "clip_8"
    refused(labels, "rohydr and zero", ids=ids)


def test_other_labels_are_refused_by_name(labels):
    changed = labels.copy()
    changed[3] += 1
    refused(labels, "same labels, got 1 clips where they differ, 'clip_3'", with_labels=changed)


def test_another_missing_pattern_is_refused_by_name(labels):
    missing = predictions(labels, labels).missing.copy()
    missing[5, 1] ^= True
    refused(labels, "same missing patterns, got 1 clips.*'clip_5'", missing=missing)


def test_no_common_seed_is_refused(rng, labels):
    with pytest.raises(DataError, match="rohydr and zero: must have a seed in common, got seeds 1 and 2, 3"):
        compare(noisy(rng, labels, (1,)), noisy(rng, labels, (2, 3)), names=("rohydr", "zero"))

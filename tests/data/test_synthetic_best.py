"""The best predictor is the best: against dense algebra, frequencies, other predictors and perturbations."""

from itertools import combinations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rohydr_fast.data import synthetic
from rohydr_fast.data.synthetic import SPLITS, Sampler, Shape
from rohydr_fast.data.synthetic_best import LABEL_NOISE, LABEL_WEIGHTS, OBSERVATIONS, KnownBest, Population
from rohydr_fast.errors import UsageError
from rohydr_fast.modalities import MODALITIES

TINY = Shape("tiny", (64, 8, 8), {"a": 2, "t": 3, "v": 2}, {"a": 4, "t": 3, "v": 5}, "own", 5, typical=0.8)
SMALL = Shape("small", (4000, 8, 20_000), {"a": 3, "t": 6, "v": 4}, {"a": 6, "t": 5, "v": 7}, "own", 5, typical=0.7)
ALL_SETS = [",".join(chosen) for size in (1, 2, 3) for chosen in combinations(MODALITIES, size)]


@pytest.fixture(scope="module")
def data():
    return synthetic.generate()


@pytest.fixture(scope="module")
def small():
    """20,000 test clips of a small population, 4,000 training clips, and the best predictor of both."""
    sampler = Sampler(SMALL, seed=11)
    splits = {name: sampler.split(name) for name in SPLITS}
    return splits, KnownBest(sampler.population, splits)


@pytest.mark.parametrize("m", MODALITIES)
def test_the_nonlinearity_is_strictly_increasing_and_inverted(m):
    population = Population({"a": 3, "t": 3, "v": 3})
    x = np.repeat(np.linspace(-12, 12, 2001)[:, None], 3, axis=1)
    observed = population.observe(m, x)
    assert (np.diff(observed, axis=0) > 0).all()
    np.testing.assert_allclose(population.invert(m, observed), x, atol=1e-9)
    np.testing.assert_allclose(population.invert(m, observed.astype(np.float32)), x, atol=1e-5)
    slopes = np.diff(observed[:, 0])
    assert slopes.max() > 2 * slopes.min(), "the map is linear"


# The best predictor against dense algebra


def dense_covariance(population: Population, lengths: dict[str, int]) -> tuple[np.ndarray, dict[str, slice]]:
    """Covariance of [y*, z, x_a, x_t, x_v], each x flattened as (step, channel), written out element by element."""
    rows = [np.concatenate([LABEL_WEIGHTS, [LABEL_NOISE]])]
    rows += [np.eye(5)[k] for k in range(4)]
    own, where, total = [np.zeros((5, 5))], {}, 5
    for m, seen in OBSERVATIONS.items():
        steps, dim, loadings = lengths[m], population.dims[m], population.loadings[m]
        tau = (np.arange(steps) + 0.5) / steps
        patterns = [np.ones(steps), np.sqrt(2) * np.cos(np.pi * tau), np.sqrt(2) * np.cos(2 * np.pi * tau)]
        at_step = [sum(b[step] * u for b, u in zip(patterns, loadings, strict=True)) for step in range(steps)]
        to_factors = np.concatenate(at_step)  # (steps * dim, cues and speaker factors)
        strengths = np.zeros((to_factors.shape[1], 5))
        strengths[np.arange(4), np.arange(4)] = seen.strengths
        rows.extend(to_factors @ strengths)
        noise = seen.correlation ** np.abs(np.subtract.outer(np.arange(steps), np.arange(steps)))
        own.append(to_factors @ to_factors.T + np.kron(noise, np.eye(dim)))
        where[m] = slice(total, total + steps * dim)
        total += steps * dim
    from_causes = np.array(rows)  # columns: z and e, all of unit variance
    covariance = from_causes @ from_causes.T
    for block, at in zip(own[1:], where.values(), strict=True):
        covariance[at, at] += block
    return covariance, where


@pytest.mark.parametrize("available", ALL_SETS)
def test_the_posterior_is_that_of_the_dense_gaussian(available):
    sampler = Sampler(TINY, seed=5)
    split = sampler.split("train")
    population, chosen = sampler.population, available.split(",")
    parts = [population.information(m, split.features[m], split.starts[m], split.lengths[m]) for m in chosen]
    mean, std = population.label_posterior(sum(p for p, _ in parts), sum(s for _, s in parts))
    for i in range(len(split)):
        lengths = {m: int(split.lengths[m][i]) for m in MODALITIES}
        covariance, where = dense_covariance(population, lengths)
        index = np.concatenate([np.arange(where[m].start, where[m].stop) for m in chosen])
        x = np.concatenate([population.invert(m, split.features[m][i, : lengths[m]]).ravel() for m in chosen])
        gain = np.linalg.solve(covariance[np.ix_(index, index)], covariance[index, 0])
        assert abs(gain @ x - mean[i]) < 1e-8
        assert abs(np.sqrt(covariance[0, 0] - gain @ covariance[index, 0]) - std[i]) < 1e-8
    assert len({tuple(split.lengths[m][i] for m in MODALITIES) for i in range(len(split))}) > 3, "lengths do not vary"


def test_the_clips_are_drawn_from_the_dense_gaussian():
    shape = Shape("tiny", (200_000, 1, 1), TINY.dims, TINY.steps, "full", 5)
    sampler = Sampler(shape, seed=8)
    split = sampler.split("train")
    z = np.concatenate([sampler.causes("train", rows)[0] for rows in sampler.blocks(200_000)])
    x = [sampler.population.invert(m, split.features[m]).reshape(len(split), -1) for m in MODALITIES]
    drawn = np.concatenate([z, *x], axis=1)
    expected = dense_covariance(sampler.population, shape.steps)[0][1:, 1:]
    variance = np.diag(expected)
    error = np.sqrt((np.outer(variance, variance) + expected**2) / len(split))  # Isserlis
    assert (np.abs(drawn.T @ drawn / len(split) - expected) < 5 * error).all()
    assert (np.abs(drawn.mean(0)) < 5 * np.sqrt(variance / len(split))).all()


def test_the_predictions_are_those_of_the_rounded_and_clipped_label():
    population = Population(TINY.dims)
    mean, std = np.array([-4.0, -0.3, 0.02, 1.5, 2.9]), np.array([0.5, 0.9, 1.4, 0.3, 1.0])
    probabilities = population.label_probabilities(mean, std)
    normal = np.random.default_rng(0).standard_normal(400_000)
    for i in range(len(mean)):
        labels = np.round(np.clip(mean[i] + std[i] * normal, -3, 3) * 5) / 5
        frequency = (np.abs(labels[:, None] - population.grid()) < 1e-9).mean(0)
        assert np.abs(frequency - probabilities[i]).max() < 0.004
    np.testing.assert_allclose(probabilities.sum(1), 1.0, atol=1e-12)


@settings(max_examples=40, deadline=None)
@given(length=st.integers(1, 9), start=st.integers(0, 5), after=st.integers(0, 5), m=st.sampled_from(MODALITIES))
def test_padding_before_or_after_a_clip_changes_nothing(length, start, after, m):
    population = Population(TINY.dims)
    clip = population.observe(m, np.random.default_rng(length).standard_normal((1, length, TINY.dims[m])))
    padded = np.pad(clip, ((0, 0), (start, after), (0, 0)))
    bare = population.information(m, clip, np.array([0]), np.array([length]))
    same = population.information(m, padded, np.array([start]), np.array([length]))
    np.testing.assert_allclose(same[0], bare[0], atol=1e-12)
    np.testing.assert_allclose(same[1], bare[1], atol=1e-12)


# The best predictor against frequencies


@pytest.mark.parametrize("available", ["a", "t", "a,v", "a,t,v"])
def test_probabilities_are_calibrated(small, available):
    splits, best = small
    labels = splits["test"].labels.astype(np.float64)
    predicted = best.predict("test", available)
    order = np.argsort(predicted["p_positive"])
    for rows in np.array_split(order, 20):
        for p, event in ((predicted["p_positive"], labels > 0), (predicted["p_negative"], labels < 0)):
            error = np.sqrt((p[rows] * (1 - p[rows])).sum()) / len(rows)
            assert abs(event[rows].mean() - p[rows].mean()) < 4.5 * error + 1e-4
        residual = labels[rows] - predicted["mean"][rows]
        assert abs(residual.mean()) < 4.5 * residual.std() / np.sqrt(len(rows))
        # Half of the labels lie at or below the median, and half at or above.
        above = (labels - predicted["median"])[rows]
        for share in ((above < 1e-6).mean(), (above > -1e-6).mean()):
            assert share > 0.5 - 4.5 * 0.5 / np.sqrt(len(rows))


@pytest.mark.parametrize("available", ["v", "t", "a,t,v"])
def test_no_change_of_the_mean_lowers_the_squared_error(small, available):
    splits, best = small
    split = splits["test"]
    labels, mean = split.labels.astype(np.float64), best.predict("test", available)["mean"]
    rng = np.random.default_rng(2)
    changes = [np.ones_like(mean), mean, mean**2, np.sign(mean)]
    for m in available.split(","):
        features = split.features[m].reshape(len(split), -1)
        features = (features - features.mean(0)) / features.std(0)
        changes += [np.tanh(features @ rng.standard_normal(features.shape[1]) / 3) for _ in range(5)]
    for change in changes:
        change = change / change.std() if change.std() > 0 else change
        slope = change * (mean - labels)  # half the derivative of the squared error along the change
        assert abs(slope.mean()) < 4.5 * slope.std() / np.sqrt(len(slope))
        for size in (-0.2, 0.2):
            assert ((mean + size * change - labels) ** 2).mean() > ((mean - labels) ** 2).mean()


@pytest.mark.parametrize("shift", [-0.2, 0.2])
def test_no_shift_of_the_median_lowers_the_absolute_error(small, shift):
    splits, best = small
    labels, median = splits["test"].labels, best.predict("test", "t")["median"]
    assert np.abs(median + shift - labels).mean() > np.abs(median - labels).mean()


# The best predictor against other predictors


def ridge(train, test, chosen, penalty=10.0) -> np.ndarray:
    """Ridge regression of the label on each channel's mean over the real steps."""

    def means(split):
        parts = [split.features[m].sum(1) / split.lengths[m][:, None] for m in chosen]
        return np.concatenate(parts, axis=1).astype(np.float64)

    x, other = means(train), means(test)
    center, spread = x.mean(0), x.std(0)
    x, other = (x - center) / spread, (other - center) / spread
    weights = np.linalg.solve(x.T @ x + penalty * np.eye(x.shape[1]), x.T @ (train.labels - train.labels.mean()))
    return other @ weights + train.labels.mean()


@pytest.mark.parametrize("available", ["t", "a,v", "a,t,v"])
def test_ridge_regression_learns_something_and_never_beats_the_best(small, available):
    splits, best = small
    labels = splits["test"].labels.astype(np.float64)
    learned, known = ridge(splits["train"], splits["test"], available.split(",")), best.predict("test", available)
    wrong = ((learned > 0) != (labels > 0)).astype(float)
    known_wrong = ((known["p_positive"] > known["p_negative"]) != (labels > 0)).astype(float)
    excesses = [
        (learned - labels) ** 2 - (known["mean"] - labels) ** 2,
        np.abs(learned - labels) - np.abs(known["median"] - labels),
        (wrong - known_wrong)[labels != 0],
    ]
    for difference in excesses:
        assert difference.mean() > -3 * difference.std() / np.sqrt(len(difference))
    assert ((learned - labels) ** 2).mean() < 0.97 * labels.var()


def test_more_modalities_are_never_worse(small):
    _, best = small
    scores = {available: best.metrics("test", available) for available in ALL_SETS}
    for less, more in [(x, y) for x in ALL_SETS for y in ALL_SETS if set(x.split(",")) < set(y.split(","))]:
        assert scores[more]["MAE"] < scores[less]["MAE"]
        assert scores[more]["Corr"] > scores[less]["Corr"]
        assert scores[more]["Non0_acc_2"] > scores[less]["Non0_acc_2"] - 0.005
        assert scores[more]["Mult_acc_7"] > scores[less]["Mult_acc_7"] - 0.005


def test_each_metric_belongs_to_its_own_best_decision(small):
    splits, best = small
    labels, predicted = splits["test"].labels, best.predict("test", "t")
    scores, kept = best.metrics("test", "t"), labels != 0
    sign = predicted["p_positive"] > predicted["p_negative"]
    assert scores["Non0_acc_2"] == pytest.approx((sign == (labels > 0))[kept].mean())
    assert scores["MAE"] == pytest.approx(np.abs(predicted["median"] - labels).mean(), abs=1e-6)
    assert scores["Corr"] == pytest.approx(np.corrcoef(predicted["mean"], labels)[0, 1], abs=1e-6)
    assert scores["Has0_acc_2"] == pytest.approx(((predicted["p_negative"] < 0.5) == (labels >= 0)).mean())
    rounded = (np.round(predicted["mean"]) == np.round(labels)).mean()
    assert scores["Mult_acc_7"] > rounded - 0.003
    assert scores["Has0_acc_2"] > ((predicted["mean"] >= 0) == (labels >= 0)).mean() - 0.003
    assert scores["n"] == 20_000


# Missing patterns


def test_a_mixed_pattern_is_the_pool_of_its_sets(data):
    best, labels = data.known_best, data.test.labels
    missing = np.random.default_rng(4).random((len(labels), 3)) < 0.5
    missing[missing.all(1)] = [True, False, True]
    pooled = np.empty(len(labels))
    for available in ALL_SETS:
        rows = (missing == [m not in available for m in MODALITIES]).all(1)
        pooled[rows] = best.predict("test", available)["median"][rows]
    assert best.metrics_for("test", missing)["MAE"] == pytest.approx(np.abs(pooled - labels).mean(), abs=1e-6)
    none_missing = np.zeros((len(labels), 3), dtype=bool)
    assert best.metrics_for("test", none_missing) == best.metrics("test", "a,t,v")


def test_a_missing_modality_is_not_read():
    sampler = Sampler(TINY, seed=6)
    split = sampler.split("train")
    before = KnownBest(sampler.population, {"train": split}).predict("train", "a,v")["mean"]
    split.features["t"][1:] = np.nan
    after = KnownBest(sampler.population, {"train": split})
    missing = np.tile([False, True, False], (len(split), 1))
    missing[0] = [True, False, False]  # one clip has text
    assert np.isfinite(after.metrics_for("train", missing)["MAE"])
    del split.features["t"]
    assert np.array_equal(KnownBest(sampler.population, {"train": split}).predict("train", "a,v")["mean"], before)


def test_a_clip_that_lacks_a_modality_counts_as_missing_it():
    sampler = Sampler(TINY, seed=7)
    split = sampler.split("train")
    expected = KnownBest(sampler.population, {"train": split}).predict("train", "a,t")["mean"]
    split.lengths["v"][:] = 0
    split.features["v"][:] = 0
    without = KnownBest(sampler.population, {"train": split}).predict("train", "a,t,v")["mean"]
    np.testing.assert_array_equal(without, expected)


def test_wrong_questions_to_the_known_best_are_refused(data):
    with pytest.raises(UsageError, match="split must be one of"):
        data.known_best.metrics("dev", "a")
    with pytest.raises(UsageError, match=r"missing must have shape \(686, 3\)"):
        data.known_best.metrics_for("test", np.zeros((3, 3), dtype=bool))
    with pytest.raises(UsageError, match="a, t, v"):
        data.known_best.predict("test", "x")

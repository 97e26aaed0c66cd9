"""Intervals whose coverage is known."""

import math

import numpy as np
import pytest

from rohydr_fast.errors import DataError, UsageError
from rohydr_fast.evaluation.uncertainty import (
    LEVELS,
    calibration,
    conformal_radius,
    coverage,
    interval_of_draws,
)


def test_the_interval_of_draws_is_their_middle():
    draws = np.arange(101.0)[None].repeat(3, 0)
    low, high = interval_of_draws(draws, 0.8)
    assert low == pytest.approx([10] * 3) and high == pytest.approx([90] * 3)
    low, high = interval_of_draws(draws[:, :1])
    assert (low == high).all()


@pytest.mark.parametrize(
    ("n", "nominal", "rank"), [(9, 0.8, 8), (4, 0.8, 4), (99, 0.9, 90), (10, 0.5, 6), (3, 0.8, None), (1, 0.5, 1)]
)
def test_the_radius_is_a_ranked_error(n, nominal, rank):
    errors = np.arange(1, n + 1.0)
    found = conformal_radius(np.random.default_rng(0).permutation(errors), np.zeros(n), nominal)
    assert found == (math.inf if rank is None else errors[rank - 1])


@pytest.mark.parametrize("nominal", [0.5, 0.8, 0.95])
def test_exchangeable_clips_are_covered_as_often_as_promised(nominal):
    rng, held = np.random.default_rng(0), []
    for _ in range(400):
        labels, valid = rng.standard_t(3, 50), rng.standard_t(3, 20)
        radius = conformal_radius(np.zeros(20), valid, nominal)
        held.append(coverage(np.full(50, -radius), np.full(50, radius), labels)["coverage"])
    # Between nominal and nominal + 1 / (n + 1), over what is drawn.
    assert nominal - 0.02 < np.mean(held) < nominal + 1 / 21 + 0.02


def test_draws_that_know_only_a_part_of_the_noise_cover_too_little():
    rng = np.random.default_rng(0)
    truth = rng.normal(size=2_000)
    labels, valid_labels = truth + rng.normal(size=2_000), truth + rng.normal(size=2_000)
    draws = truth[:, None] + 0.1 * rng.normal(size=(2_000, 16))
    found = calibration(draws, labels, truth, valid_labels)
    assert found["draws"]["coverage"] < 0.2 and abs(found["conformal"]["coverage"] - 0.8) < 0.03
    assert [level["nominal"] for level in found["levels"]] == list(LEVELS)
    conformal = [level["conformal"] for level in found["levels"]]
    assert conformal == sorted(conformal)


def test_draws_from_the_right_distribution_cover_as_they_say():
    rng = np.random.default_rng(0)
    truth = rng.normal(size=1_000)
    draws = truth[:, None] + rng.normal(size=(1_000, 200))
    found = calibration(draws, truth + rng.normal(size=1_000), truth, truth)
    assert abs(found["draws"]["coverage"] - 0.8) < 0.04


def test_one_draw_has_no_interval_of_its_own():
    found = calibration(np.zeros((3, 1)), np.zeros(3), np.zeros(2), np.ones(2))
    assert "draws" not in found and found["conformal"] == {"nominal": 0.8, "coverage": 1.0, "mean_width": None}


def test_what_cannot_be_is_a_sentence():
    with pytest.raises(UsageError, match="between 0 and 1"):
        interval_of_draws(np.zeros((1, 2)), 1.0)
    for bad in (np.array([]), np.array([np.nan])):
        with pytest.raises(DataError, match="calibration needs clips"):
            conformal_radius(bad, np.zeros(len(bad)))

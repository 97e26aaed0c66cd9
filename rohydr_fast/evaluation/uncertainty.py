"""How sure a prediction is, and whether it is as sure as it should be: intervals, and how often they hold the label.

Two intervals. That of the *draws* holds the middle of the predictions from K recoveries of a clip: what recovery leaves
open, and nothing else; where labels are noisy it is too narrow by construction. The *conformal* one is the mean plus
and minus a quantile of the absolute errors on the validation split: it knows the noise of labels too, and not which
clip is hard. Split conformal prediction (Vovk et al. 2005; Lei et al. 2018) promises its coverage for exchangeable
clips; the quantile is that of n + 1 errors, so the promise holds for few clips as well.
"""

import math

import numpy as np

from ..errors import DataError, UsageError

NOMINAL = 0.8
"""Share of the labels that an interval is meant to hold."""

LEVELS = (0.5, 0.6, 0.7, 0.8, 0.9, 0.95)


def interval_of_draws(draws: np.ndarray, nominal: float = NOMINAL) -> tuple[np.ndarray, np.ndarray]:
    """The middle `nominal` of the predictions of each clip, low and high (N,).

    Args:
        draws: (N, K); with one draw the interval is a point, and some ten are needed before its ends mean something.
    """
    check_level(nominal)
    tail = (1 - nominal) / 2
    return np.quantile(draws, tail, axis=1), np.quantile(draws, 1 - tail, axis=1)


def conformal_radius(predictions: np.ndarray, labels: np.ndarray, nominal: float = NOMINAL) -> float:
    """Half the width of the conformal interval, from clips that no parameter was fitted on.

    The ceil((n + 1) nominal)-th smallest of n absolute errors; infinite where n is too small for the level.

    Raises:
        DataError: no clips, or numbers that are not finite.
    """
    check_level(nominal)
    errors = np.sort(np.abs(np.asarray(predictions, np.float64) - np.asarray(labels, np.float64)))
    if not len(errors) or not np.isfinite(errors).all():
        raise DataError("uncertainty: calibration needs clips with finite predictions and labels. Check the split.")
    rank = math.ceil((len(errors) + 1) * nominal)
    return math.inf if rank > len(errors) else float(errors[rank - 1])


def coverage(low: np.ndarray, high: np.ndarray, labels: np.ndarray) -> dict[str, float | None]:
    """Share of the labels inside, and the mean width of the intervals (None where it is infinite)."""
    width = float(np.mean(high - low))
    inside = (low <= labels) & (labels <= high)
    return {"coverage": float(inside.mean()), "mean_width": width if math.isfinite(width) else None}


def calibration(draws: np.ndarray, labels: np.ndarray, valid_mean: np.ndarray, valid_labels: np.ndarray) -> dict:
    """Coverage and width of both intervals on a split, at `NOMINAL` and over `LEVELS`.

    Args:
        draws: (N, K) predictions of the split, labels (N,).
        valid_mean, valid_labels: (M,) of the validation split under the same rule for missing modalities.

    Returns:
        ``draws`` (with two draws at least) and ``conformal``: nominal, coverage, mean_width; ``levels``: for each level
        the coverage of each.
    """
    mean = draws.mean(1)

    def measured(level: float) -> dict[str, dict]:
        radius = conformal_radius(valid_mean, valid_labels, level)
        found = {"conformal": coverage(mean - radius, mean + radius, labels)}
        if draws.shape[1] > 1:
            found["draws"] = coverage(*interval_of_draws(draws, level), labels)
        return found

    result: dict = {name: {"nominal": NOMINAL, **value} for name, value in measured(NOMINAL).items()}
    levels = []
    for level in LEVELS:
        levels.append({"nominal": level, **{name: value["coverage"] for name, value in measured(level).items()}})
    return result | {"levels": levels}


def check_level(nominal: float) -> None:
    """Whether a share can be that of an interval.

    Raises:
        UsageError: it is not between 0 and 1.
    """
    if not 0 < nominal < 1:
        raise UsageError(f"uncertainty: the nominal share must be between 0 and 1, got {nominal}. Use for example 0.8.")

"""The metrics of this field, with MMSA's names and definitions (not rounded)."""

import numpy as np

from ..errors import DataError, UsageError

CONSTANT_TOLERANCE = 1e-6
"""Predictions that differ by less than this are the same number up to float32 rounding."""


def metrics(predictions: np.ndarray, labels: np.ndarray) -> dict[str, float | int | bool | None]:
    """All metrics of one set of predictions.

    - `Has0_acc_2`, `Has0_F1_score`: negative against non-negative, over all clips.
    - `Non0_acc_2`, `Non0_F1_score`: negative against positive, over the clips whose label is not 0.
    - `Mult_acc_7`, `Mult_acc_5`: equal after clipping to [-3, 3] or [-2, 2] and rounding half to even.
    - `MAE`, `Corr`: mean absolute error and Pearson correlation.
    - `n`: the number of clips; `constant_prediction`: more than one clip, and all got the same number.

    F1 is the mean of the two classes' F1, weighted by how often each occurs among the labels. A metric that is not
    defined (Corr of a constant, Non0 without a non-zero label) is None.

    Args:
        predictions: (N,) or (N, 1), finite.
        labels: the same shape, sentiment in [-3, 3].

    Raises:
        UsageError: shapes that differ or are not (N,) or (N, 1).
        DataError: no clips, NaN or infinity.
    """
    predictions, labels = _columns(predictions, labels)
    signed = labels != 0
    constant = len(predictions) > 1 and bool(np.ptp(predictions) < CONSTANT_TOLERANCE)
    return {
        "Has0_acc_2": _accuracy(labels >= 0, predictions >= 0),
        "Has0_F1_score": weighted_f1(labels >= 0, predictions >= 0),
        "Non0_acc_2": _accuracy(labels[signed] > 0, predictions[signed] > 0),
        "Non0_F1_score": weighted_f1(labels[signed] > 0, predictions[signed] > 0),
        "Mult_acc_5": _accuracy(classes(labels, 2), classes(predictions, 2)),
        "Mult_acc_7": _accuracy(classes(labels, 3), classes(predictions, 3)),
        "MAE": float(np.abs(predictions - labels).mean()),
        "Corr": None if constant else _correlation(predictions, labels),
        "n": len(labels),
        "constant_prediction": constant,
    }


def majority_metrics(train_labels: np.ndarray, labels: np.ndarray) -> dict[str, float | int | bool | None]:
    """The metrics of a predictor that never looks at a clip: what every model must beat.

    It answers the median of the training labels for MAE, Mult_acc_5 and Mult_acc_7, and the more frequent sign among
    them (ties: positive) for the binary metrics. Corr is None.

    Raises:
        UsageError, DataError: as `metrics`.
    """
    train_labels, _ = _columns(train_labels, train_labels)
    labels, _ = _columns(labels, labels)
    result = metrics(np.full_like(labels, np.median(train_labels)), labels)
    signed = train_labels[train_labels != 0]
    for group, positive in (("Has0", train_labels >= 0), ("Non0", signed > 0)):
        majority = 1.0 if 2 * positive.sum() >= positive.size else -1.0
        answers = metrics(np.full_like(labels, majority), labels)
        result.update({name: value for name, value in answers.items() if name.startswith(group)})
    return result | {"Corr": None, "constant_prediction": True}


def weighted_f1(true: np.ndarray, predicted: np.ndarray) -> float | None:
    """F1 of two classes weighted by their share among `true`; swapping the arguments changes the value.

    Args:
        true: (N,) bool.
        predicted: (N,) bool.

    Returns:
        The F1, or None for N = 0.
    """
    if not len(true):
        return None
    total = 0.0
    for positive in (False, True):
        support, claimed = true == positive, predicted == positive
        hits = int((support & claimed).sum())
        either = int(support.sum() + claimed.sum())  # 2 TP + FP + FN
        total += support.mean() * (2 * hits / either if either else 0.0)
    return float(total)


def _columns(predictions: np.ndarray, labels: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Both as (N,) float64, checked."""
    columns = []
    for name, values in (("predictions", predictions), ("labels", labels)):
        values = np.asarray(values, dtype=np.float64)
        if values.ndim == 2 and values.shape[1] == 1:
            values = values[:, 0]
        if values.ndim != 1:
            raise UsageError(
                f"metrics: {name} must have the shape (N,) or (N, 1), got {values.shape}. Pass one number per clip."
            )
        columns.append(values)
    if len(columns[0]) != len(columns[1]):
        raise UsageError(
            f"metrics: predictions must have one number for each of {len(columns[1])} labels, got {len(columns[0])}. "
            "Pass both for the same clips."
        )
    if not len(columns[1]):
        raise DataError("metrics: labels must hold at least one clip, got none. Check that the split is not empty.")
    remedies = ("Training has diverged: lower the learning rate or check the features.", "Correct the data file.")
    for name, values, remedy in zip(("predictions", "labels"), columns, remedies, strict=True):
        bad = np.nonzero(~np.isfinite(values))[0]
        if len(bad):
            raise DataError(
                f"metrics: {name} must be finite, got {values[bad[0]]} in row {bad[0]} "
                f"({len(bad)} of {len(values)} rows are not finite). {remedy}"
            )
    return columns[0], columns[1]


def _accuracy(true: np.ndarray, predicted: np.ndarray) -> float | None:
    return float((true == predicted).mean()) if len(true) else None


def classes(values: np.ndarray, limit: int) -> np.ndarray:
    """Clipped to [-limit, limit] and rounded half to even: the classes of `Mult_acc_7` and `Mult_acc_5`."""
    return np.round(np.clip(values, -limit, limit))  # np.round: half to even


def _correlation(predictions: np.ndarray, labels: np.ndarray) -> float | None:
    if len(labels) < 2 or np.ptp(labels) == 0:
        return None
    scaled = predictions / np.abs(predictions).max()  # the squares of a diverged model's answers overflow
    return float(np.corrcoef(scaled, labels)[0, 1])

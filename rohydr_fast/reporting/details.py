"""What a model gets right and wrong: confusion of classes, calibration by sentiment, and single clips."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from ..evaluation.metrics import classes
from ..modalities import MODALITIES
from .groups import MEAN, NOT_OF_A_MODEL, ONE_MODEL, Series
from .settings import identity

CLASSES = tuple(range(-3, 4))
PREFERRED_RATE = "0.5"
CARDS = 20


@dataclass(frozen=True)
class Behaviour:
    """One model under one condition, all seeds together."""

    label: str
    condition: str
    confusion: np.ndarray  # (7, 7) clips; rows: class of the label, columns: class of the prediction
    bins: tuple["Bin", ...]


@dataclass(frozen=True)
class Bin:
    """The clips of one class of labels."""

    name: int
    clips: int
    label: float  # mean
    prediction: float  # mean
    error: float  # mean absolute


@dataclass(frozen=True)
class Card:
    """A clip, and what one model predicted for it under each condition."""

    clip: str
    label: float
    predictions: tuple[tuple[str, float, str], ...]  # condition, prediction, modalities missing there


def behaviours(series: Sequence[Series]) -> list[Behaviour]:
    """For each row of Table 1 (of Table 2 where there is none): how its predictions are spread.

    The condition is the rate 0.5, or the first that the row has.
    """
    rows = [s for s in series if s.kind == "rates"] or list(series)
    one_model = [s for s in rows if s.section == ONE_MODEL] or rows
    return [_behaviour(s, PREFERRED_RATE if s.cells.get(PREFERRED_RATE) else next(iter(s.cells))) for s in one_model]


def cards(series: Sequence[Series]) -> tuple[str, int | None, list[Card]]:
    """Clips spread evenly over the labels, under everything that the last row's first seed was evaluated on.

    Returns:
        (label of the row, seed, cards).
    """
    if not series:
        return "", None, []
    last = next((s for s in reversed(series) if s.section == ONE_MODEL), series[-1])
    same = identity(last.values, NOT_OF_A_MODEL[1:2])
    alike = [s for s in series if s.section == last.section and identity(s.values, NOT_OF_A_MODEL[1:2]) == same]
    seed = last.seeds()[0]
    found = {
        (f"rate {condition}" if s.kind == "rates" else condition): by_seed[seed][0].predictions
        for s in alike
        for condition, by_seed in s.cells.items()
        if condition != MEAN and seed in by_seed
    }
    first = next(iter(found.values()))
    order = np.argsort(first.labels, kind="stable")
    chosen = order[np.unique(np.linspace(0, len(order) - 1, CARDS).round().astype(int))]
    ordered = {name: p.ordered_as(first.ids) for name, p in found.items()}
    result = []
    for row in chosen:
        answers = [
            (name, float(p.prediction[row]), "".join(np.array(MODALITIES)[p.missing[row]]))
            for name, p in ordered.items()
            if p is not None
        ]
        result.append(Card(str(first.ids[row]), float(first.labels[row]), tuple(answers)))
    return last.label, seed, result


def _behaviour(series: Series, condition: str) -> Behaviour:
    predictions = [row.predictions for rows in series.cells[condition].values() for row in rows]
    labels, answers = (np.concatenate([getattr(p, name) for p in predictions]) for name in ("labels", "prediction"))
    true, predicted = (classes(x.astype(np.float64), 3).astype(int) for x in (labels, answers))
    confusion = np.zeros((7, 7), int)
    np.add.at(confusion, (true + 3, predicted + 3), 1)
    bins = []
    for name in CLASSES:
        inside = true == name
        if inside.any():
            error = float(np.abs(answers[inside] - labels[inside]).mean())
            means = float(labels[inside].mean()), float(answers[inside].mean())
            bins.append(Bin(name, int(inside.sum()), *means, error))
    return Behaviour(series.label, condition, confusion, tuple(bins))

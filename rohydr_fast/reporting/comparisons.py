"""Every method against one reference, under each condition that both were evaluated on."""

import csv
import io
from collections.abc import Sequence
from dataclasses import dataclass

from ..errors import DataError, UsageError
from ..evaluation.tables import UNDEFINED, in_percent, markdown
from .groups import MEAN, Series
from .statistics import LEVEL, METRICS, RESAMPLES, Comparison, Difference, compare

HEADINGS = {"Non0_acc_2": "ACC2 difference, points", "MAE": "MAE difference"}


@dataclass(frozen=True)
class Pair:
    """The reference (first) against another method (second)."""

    section: str
    condition: str
    first: str
    second: str
    comparison: Comparison | None
    refusal: str | None  # why there is no comparison

    def verdict(self, metric: str) -> str:
        """Who is better; only where the interval excludes 0."""
        better = self.comparison.differences[metric].better
        return {"first": f"{self.first} is better", "second": f"{self.second} is better", None: "no difference shown"}[
            better
        ]

    def resampled(self) -> str:
        """What the interval speaks about."""
        if self.comparison.clips_only:
            return f"clips only (seed {self.comparison.seeds[0]}): says nothing about other seeds"
        return "seeds and clips"


def against_reference(series: Sequence[Series], against: str | None = None) -> list[Pair]:
    """Compare each row of Tables 1 and 2 with the reference row of its section.

    Args:
        against: label of the reference; default: the last row of a section, the full model.

    Raises:
        UsageError: no row is called `against`.
    """
    known = dict.fromkeys(s.label for s in series)
    if against is not None and against not in known:
        raise UsageError(
            f"--against: must be one of the report's rows, got {against!r}. Choose from: {', '.join(known)}."
        )
    pairs = []
    for place in dict.fromkeys((s.kind, s.section) for s in series):
        rows = [s for s in series if (s.kind, s.section) == place]
        named = [s for s in rows if s.label == against] if against else rows[-1:]
        for reference in named[:1]:
            pairs += [pair for other in rows if other is not reference for pair in _pairs(reference, other)]
    return pairs


def explanation() -> str:
    """How to read the table."""
    return (
        f"First minus second with its {LEVEL:.0%} interval, from {RESAMPLES} paired resamples of seeds (by number) and "
        "clips (by id). Better is said only where the interval excludes 0. Intervals are not corrected for their "
        "number: of twenty comparisons of equals, one may say better."
    )


def to_markdown(pairs: Sequence[Pair]) -> str:
    """All comparisons as one table, and those that were refused."""
    header = ["", "condition", "first", "second", "seeds", "clips"]
    for metric in METRICS:
        header += [HEADINGS[metric], "verdict"]
    rows = []
    for pair in pairs:
        if pair.comparison is not None:
            found = pair.comparison
            seeds = f"{len(found.seeds)}" + (" (clips only)" if found.clips_only else "")
            row = [pair.section, pair.condition, pair.first, pair.second, seeds, str(found.clips)]
            for metric in METRICS:
                row += [interval(metric, found.differences[metric]), pair.verdict(metric)]
            rows.append([text.replace("|", "\\|") for text in row])
    refused = [f"- {sentence}" for sentence in refusals(pairs)]
    table = markdown(header, rows, 4) if rows else "There are no two methods to compare.\n"
    return "\n".join(["# Comparisons", "", explanation(), "", table, *refused]).rstrip() + "\n"


def to_csv(pairs: Sequence[Pair]) -> str:
    """One line for each comparison and metric; accuracies in percent."""
    buffer = io.StringIO()
    writer = csv.writer(buffer, lineterminator="\n")
    names = ["section", "condition", "first", "second", "metric", "difference", "low", "high", "better"]
    writer.writerow([*names, "seeds", "clips", "resampled"])
    for pair in pairs:
        for metric in METRICS if pair.comparison else ():
            found = pair.comparison
            difference = found.differences[metric]
            better = {"first": pair.first, "second": pair.second, None: ""}[difference.better]
            numbers = [difference.estimate, difference.low, difference.high]
            values = [UNDEFINED if value is None else f"{_scale(metric) * value:.6f}" for value in numbers]
            counted = [len(found.seeds), found.signed_clips if metric == "Non0_acc_2" else found.clips]
            resampled = "clips" if found.clips_only else "seeds and clips"
            where = [pair.section, pair.condition, pair.first, pair.second, metric]
            writer.writerow([*where, *values, better, *counted, resampled])
    return buffer.getvalue()


def interval(metric: str, difference: Difference) -> str:
    """``+1.20 [+0.30, +2.10]``, in points for accuracies."""
    if difference.estimate is None:
        return UNDEFINED
    digits = 2 if in_percent(metric) else 4
    numbers = [
        f"{_scale(metric) * value:+.{digits}f}" for value in (difference.estimate, difference.low, difference.high)
    ]
    return f"{numbers[0]} [{numbers[1]}, {numbers[2]}]"


def refusals(pairs: Sequence[Pair]) -> list[str]:
    """Sentences about pairs that could not be compared."""
    return [f"{pair.section}, {pair.condition}: {pair.refusal}" for pair in pairs if pair.refusal]


def _pairs(reference: Series, other: Series) -> list[Pair]:
    both = [name for name in reference.cells if reference.cells[name] and other.cells.get(name)]
    result = []
    for condition in sorted(both, key=lambda name: name != MEAN):
        cells = [
            {seed: [row.predictions for row in rows] for seed, rows in s.cells[condition].items()}
            for s in (reference, other)
        ]
        found, refusal = None, None
        try:
            found = compare(*cells, names=(reference.label, other.label))
        except DataError as error:
            refusal = str(error)
        result.append(Pair(reference.section, condition, reference.label, other.label, found, refusal))
    return result


def _scale(metric: str) -> float:
    return 100.0 if in_percent(metric) else 1.0

"""What training costs: clips a second, as runs have noted it."""

import statistics
from collections.abc import Sequence
from dataclasses import dataclass

from .groups import Group


@dataclass(frozen=True)
class Cost:
    """Runs with equal settings."""

    label: str
    runs: int  # that noted a speed
    median: float  # clips a second
    low: float
    high: float
    times: float  # as much time for a clip as the fastest of all


def costs(groups: Sequence[Group]) -> list[Cost]:
    """For each group with a speed, in the order of tables. All runs count alike, and each process of a run."""
    speeds = {group.label: [speed for run in group.runs for speed in run.speeds] for group in groups}
    medians = {label: statistics.median(found) for label, found in speeds.items() if found}
    fastest = max(medians.values(), default=0.0)
    return [
        Cost(label, len(speeds[label]), median, min(speeds[label]), max(speeds[label]), fastest / median)
        for label, median in medians.items()
    ]

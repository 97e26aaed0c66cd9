"""The time that benchmarks/gpu.py may take, and who gets what is left of it."""

import time
from collections.abc import Callable

OUT_OF_TIME = "out of time"
FIRST_GUESS = {
    ("forward", "compile"): 20.0,
    ("backward", "compile"): 30.0,
    ("forward", "triton"): 10.0,
    ("backward", "triton"): 20.0,
    ("backward", "graph"): 6.0,
    ("backward", "eager"): 6.0,
    ("iteration", "eager"): 25.0,
    ("iteration", "triton"): 25.0,
}
"""Seconds that a contender takes in a cell, before one was seen; 3 for the others."""
SHARES = {("forward", "compile"): 0.25, ("backward", "compile"): 0.15}
"""Of the time for all cells, what a compiler may use: it makes new code for every size."""


class Budget:
    """Seconds that run out.

    Args:
        seconds: all of them.
        clock: the time now, in seconds.
    """

    def __init__(self, seconds: float, clock: Callable[[], float] = time.monotonic):
        self.seconds, self.clock, self._start = seconds, clock, clock()

    def left(self) -> float:
        """Seconds until the end, at least 0."""
        return max(0.0, self.seconds - (self.clock() - self._start))

    def part(self, share: float) -> float:
        """So many of all seconds, or what is left."""
        return min(share * self.seconds, self.left())


class Slices:
    """Who may still begin: a contender whose last cell took longer than what is left may not."""

    def __init__(self, budget: Budget):
        self.budget, self._last, self._used = budget, dict(FIRST_GUESS), {}

    def refusal(self, workload: str, provider: str) -> str | None:
        """Why a contender may not begin with its next cell; None when it may."""
        key = workload, provider
        expected = self._last.get(key, 3.0)
        if self.budget.left() < expected:
            return OUT_OF_TIME
        if key in SHARES and self._used.get(key, 0.0) + expected > SHARES[key] * self.budget.seconds:
            return f"{OUT_OF_TIME} ({provider} has used its share of {SHARES[key]:.0%})"
        return None

    def spent(self, workload: str, provider: str, seconds: float) -> None:
        """A contender took so long in a cell."""
        key = workload, provider
        self._last[key] = seconds
        self._used[key] = self._used.get(key, 0.0) + seconds

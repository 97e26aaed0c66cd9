"""Times that can be compared: interleaved rounds, each between two probes of what the processor can do, and statistics.

Neighbours on a shared machine change its speed from minute to minute. So every contender runs once in every round,
ratios are taken within a round, and a kernel of nothing but fused multiply-adds, run before and after each round,
says how fast the cores were just then.
"""

import gc
import math
import statistics
import sys
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

SPREAD_LIMIT = 0.10
"""The machine counts as contended when the probes' 20 % quantile is more than this below their 80 % quantile."""
SCALING_LIMIT = 0.90
"""... or when the peak of one of several threads is below this share of the peak of a thread alone."""


def quantile(values: Sequence[float], q: float) -> float:
    """The q-quantile, 0 <= q <= 1, interpolated linearly between the two nearest values."""
    ordered = sorted(values)
    place = q * (len(ordered) - 1)
    low = math.floor(place)
    high = min(low + 1, len(ordered) - 1)
    return ordered[low] + (place - low) * (ordered[high] - ordered[low])


def summary(values: Sequence[float]) -> dict[str, float]:
    """Median, 20 % and 80 % quantile."""
    return {"median": statistics.median(values), "p20": quantile(values, 0.2), "p80": quantile(values, 0.8)}


def paired_ratio(times: Sequence[float], base: Sequence[float]) -> dict[str, float]:
    """Summary of times / base, taken round by round: what slows a whole round cancels."""
    return summary([a / b for a, b in zip(times, base, strict=True)])


@dataclass(frozen=True)
class Peak:
    """One probe, in GFLOP/s: of a thread alone, and of all threads of the run at once, summed."""

    alone: float
    together: float


class FmaProbe:
    """Measures the peak of `threads` threads with the native core's kernel of fused multiply-adds.

    Args:
        threads: how many run at once.
        milliseconds: how long each of them runs.
        kernel: (isa, milliseconds) to GFLOP/s of the calling thread, without holding the interpreter's lock; the
            native core's by default.
        isa: the instruction set; the best one of this processor by default.
    """

    def __init__(
        self, threads: int, milliseconds: float = 20.0, kernel: Callable | None = None, isa: str | None = None
    ):
        if kernel is None:
            from rohydr_fast import _native

            core = _native.load()
            kernel, isa = core.fma_peak, isa or core.cpu_isas()[0]
        self.threads, self.milliseconds, self.kernel, self.isa = threads, milliseconds, kernel, isa

    def __call__(self) -> Peak:
        alone = self.kernel(self.isa, self.milliseconds)
        return Peak(alone, alone if self.threads == 1 else self._together())

    def _together(self) -> float:
        results, barrier = [], threading.Barrier(self.threads)

        def work() -> None:
            barrier.wait()
            results.append(self.kernel(self.isa, self.milliseconds))

        workers = [threading.Thread(target=work) for _ in range(self.threads)]
        for worker in workers:
            worker.start()
        for worker in workers:
            worker.join()
        if len(results) != self.threads:
            raise RuntimeError("a thread of the FMA probe failed; its traceback is above.")
        return sum(results)


def native_probe(threads: int) -> FmaProbe | None:
    """The probe of the native core; None, with a warning, where there is none."""
    try:
        return FmaProbe(threads)
    except (RuntimeError, AttributeError) as error:  # not built, or built before it had the probe
        print(f"no FMA probe, so no shares of the peak and no verdict on the machine: {error}", file=sys.stderr)
        return None


@dataclass
class Rounds:
    """What `interleave` found."""

    seconds: dict[str, list[float]] = field(default_factory=dict)
    """Of one call of each contender, one value for each round."""
    probes: list[Peak] = field(default_factory=list)
    """One more than there are rounds; none when there was no probe."""

    def peaks(self) -> list[float]:
        """GFLOP/s of all threads together in each round: the mean of the probes around it."""
        sums = [peak.together for peak in self.probes]
        return [(before + after) / 2 for before, after in zip(sums, sums[1:], strict=False)]

    def speed(self, name: str, flop: float | None, base: str = "cpp") -> dict:
        """What a row says about the speed of a contender whose call does `flop` useful operations; None: unknown.

        Returns:
            "gflops", "share_of_fma_peak" (the median over rounds), "ratio_to_cpp" (of seconds, in the same round) and
            "rounds"; None where flop, probes or the base are missing.
        """
        seconds, peaks = self.seconds[name], self.peaks()
        shares = [flop / s / (1e9 * p) for s, p in zip(seconds, peaks, strict=True)] if flop and peaks else None
        return {
            "gflops": flop / (1e9 * statistics.median(seconds)) if flop else None,
            "share_of_fma_peak": statistics.median(shares) if shares else None,
            "ratio_to_cpp": paired_ratio(seconds, self.seconds[base]) if base in self.seconds else None,
            "rounds": len(seconds),
        }


def interleave(
    calls: Mapping[str, Callable[[], object]],
    *,
    rounds: int | None = None,
    probe: Callable[[], Peak] | None = None,
    least: int = 7,
    most: int = 30,
    budget: float = 90.0,
    shortest: float = 0.05,
    settle: float = 0.1,
    warm_ups: int = 2,
) -> Rounds:
    """Time every contender once in every round, in an order that moves on by one each round.

    Args:
        calls: the contenders.
        rounds: how many; by default as many as take `budget` seconds, between `least` and `most`.
        probe: runs before the first round and after each.
        shortest: a contender that is faster than so many seconds is called several times in a row.
        settle: seconds of sleep before each measurement. Thread pools go on spinning after their work is done (ONNX
            Runtime's for 60 ms) and would take the cores from the next contender's pool; and for some 50 ms after a
            load the system starts two threads on one core (a peak of 80 % for each of them, 100 % after 0.1 s).
        warm_ups: runs of each contender before the rounds, at least one.
    """
    warm = dict.fromkeys(calls, math.inf)
    for _ in range(warm_ups):  # the first may set up
        warm = {name: min(warm[name], _seconds(call, 1)) for name, call in calls.items()}
    repeats = {name: max(1, math.ceil(shortest / max(seconds, 1e-6))) for name, seconds in warm.items()}
    if rounds is None:
        one_round = sum(warm[name] * repeats[name] + settle for name in calls)
        rounds = min(most, max(least, int(budget / max(one_round, 1e-6))))
    found = Rounds({name: [] for name in calls})
    names = list(calls)
    collecting = gc.isenabled()
    gc.disable()
    try:
        if probe is not None:
            probe()  # a core that slept needs some milliseconds to reach its clock
        _probe_into(found, probe, settle)
        for number in range(rounds):
            turn = number % max(len(names), 1)
            for name in names[turn:] + names[:turn]:
                time.sleep(settle)
                found.seconds[name].append(_seconds(calls[name], repeats[name]))
            _probe_into(found, probe, settle)
            gc.collect()
    finally:
        if collecting:
            gc.enable()
    return found


def _probe_into(found: Rounds, probe: Callable[[], Peak] | None, settle: float) -> None:
    if probe is not None:
        time.sleep(settle)
        found.probes.append(probe())


def _seconds(call: Callable[[], object], repeats: int) -> float:
    start = time.perf_counter()
    for _ in range(repeats):
        call()
    return (time.perf_counter() - start) / repeats


def contention(probes: Mapping[int, Sequence[Peak]]) -> dict:
    """Whether somebody else used the machine.

    Args:
        probes: all probes of a run by its number of threads.

    Returns:
        "contended" (None without probes), "spread" (1 - p20 / p80, the worst of the series), "thread_scaling" (peak of
        one of several threads over that of a thread alone, the worst; None for one thread) and "why", sentences.
    """
    probes = {threads: series for threads, series in probes.items() if series}
    if not probes:
        return {"contended": None, "spread": None, "thread_scaling": None, "why": ["the peak was not probed"]}
    series = [[peak.alone for peak in found] for found in probes.values()]
    series += [[peak.together for peak in found] for threads, found in probes.items() if threads > 1]
    spread = max(1 - quantile(values, 0.2) / quantile(values, 0.8) for values in series)
    scalings = [
        statistics.median(peak.together / threads / peak.alone for peak in found)
        for threads, found in probes.items()
        if threads > 1
    ]
    scaling = min(scalings) if scalings else None
    why = []
    if spread > SPREAD_LIMIT:
        why.append(f"the probes' 20 % quantile is {spread:.0%} below their 80 % quantile")
    if scaling is not None and scaling < SCALING_LIMIT:
        why.append(f"a thread among others reaches {scaling:.0%} of the peak of a thread alone")
    return {"contended": bool(why), "spread": spread, "thread_scaling": scaling, "why": why}

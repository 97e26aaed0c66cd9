"""Times on a device: calls that are queued while the device is held up, whole calls, and what the device can do."""

import math
import statistics
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import torch
from gpu_problem import DTYPES
from measure import summary

LEAST_ROUNDS, MOST_ROUNDS = 5, 15
MOST_CALLS = 8
LONG_ENOUGH = 5e-3
"""Seconds of work between two events; a shorter call is queued several times."""
LONG = 0.1
LONGEST_HOLD = 0.08
TRIAL_CYCLES = 20_000_000


class Clock:
    """Measures calls on a device; on the CPU both kinds of time are the wall's.

    A host may need longer to launch a call's kernels than the device to run them. So the device is first held up by a
    kernel that does nothing for as long as the launches take, and the time between two events is that of the device
    alone. A call that launches more than fits into the queue, or waits for the device, is bound by the host even so.
    """

    def __init__(self, device: str):
        self.device = torch.device(device)
        self.on_device = self.device.type == "cuda"
        self._cycles = 0.0  # in a second
        if self.on_device:
            torch.cuda._sleep(1000)
            begin, end = self._events()
            begin.record()
            torch.cuda._sleep(TRIAL_CYCLES)
            end.record()
            end.synchronize()
            self._cycles = TRIAL_CYCLES / (1e-3 * begin.elapsed_time(end))

    @staticmethod
    def _events() -> tuple:
        return torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)

    def wait(self) -> None:
        """Until the device is idle."""
        if self.on_device:
            torch.cuda.synchronize()

    def whole(self, call: Callable[[], object]) -> float:
        """Seconds from the call until its work is done, the host's part included."""
        self.wait()
        start = time.perf_counter()
        call()
        self.wait()
        return time.perf_counter() - start

    def both(self, call: Callable[[], object]) -> tuple[float, float]:
        """Seconds of the device between the first and the last launch of a call, and those of the whole call."""
        if not self.on_device:
            return (self.whole(call),) * 2
        begin, end = self._events()

        def recorded() -> None:
            begin.record()
            call()
            end.record()

        spent = self.whole(recorded)
        return 1e-3 * begin.elapsed_time(end), spent

    def queued(self, call: Callable[[], object], calls: int, hold: float) -> tuple[float, bool]:
        """Seconds of the device for a call, of `calls` in a row, and whether the host may have been slower.

        Args:
            hold: seconds for which the device is held up while the host launches.
        """
        if not self.on_device:
            start = time.perf_counter()
            for _ in range(calls):
                call()
            return (time.perf_counter() - start) / calls, False
        torch.cuda.synchronize()
        begin, end = self._events()
        torch.cuda._sleep(int(min(hold, LONGEST_HOLD) * self._cycles))
        begin.record()
        for _ in range(calls):
            call()
        host_bound = begin.query()
        end.record()
        end.synchronize()
        return 1e-3 * begin.elapsed_time(end) / calls, host_bound


@dataclass
class Times:
    """Of one contender, in seconds: queued and whole calls."""

    queued: list[float] = field(default_factory=list)
    whole: list[float] = field(default_factory=list)
    host_bound: bool = False
    failure: Exception | None = None


def interleave_on(
    clock: Clock, contenders: Mapping[str, tuple[Callable, Callable]], seconds: float, begin: Callable[[str], None]
) -> dict[str, Times]:
    """Time all contenders round by round, at least five rounds.

    Args:
        contenders: for each the call that is queued and the whole call.
        seconds: for the rounds beyond five.
        begin: told the name of a contender before its first call.

    Returns:
        For each its times; the failure of one that broke.
    """
    found = {name: Times() for name in contenders}
    plans: dict[str, tuple[int, float, float]] = {}
    for name, (queued, whole) in contenders.items():
        begin(name)
        try:
            plans[name] = _plan(clock, queued, whole)
        except Exception as failure:  # it must not take the others' times with it
            found[name].failure = without_frames(failure)
    cost = sum(cost for *_, cost in plans.values())
    rounds = max(LEAST_ROUNDS, min(MOST_ROUNDS, int(seconds / max(cost, 1e-6))))
    for number in range(rounds):
        names = list(plans)
        turn = number % max(len(names), 1)
        for name in names[turn:] + names[:turn]:
            queued, whole = contenders[name]
            calls, hold, _ = plans[name]
            try:
                if calls == 0:
                    spent, of_whole = clock.both(whole)
                    host_bound = clock.on_device
                else:
                    spent, host_bound = clock.queued(queued, calls, hold)
                    of_whole = clock.whole(whole)
                found[name].queued.append(spent)
                found[name].whole.append(of_whole)
                found[name].host_bound |= host_bound
            except Exception as failure:
                found[name].failure = without_frames(failure)
                del plans[name]
    return found


def without_frames(failure: BaseException) -> BaseException:
    """The same error without its frames, which hold the memory of the call that broke."""
    failure.__context__ = failure.__cause__ = None
    return failure.with_traceback(None)


def _plan(clock: Clock, queued: Callable, whole: Callable) -> tuple[int, float, float]:
    """How many calls are queued, for how long the device is held up meanwhile, and what a round costs.

    No call is queued where it is the whole one and takes long: one run gives both times then.
    """
    clock.whole(whole)
    of_whole = clock.whole(whole)
    if queued is whole and of_whole > LONG:
        return 0, 0.0, of_whole
    start = time.perf_counter()
    queued()
    launching = time.perf_counter() - start
    clock.wait()
    of_queued = time.perf_counter() - start
    calls = max(1, min(MOST_CALLS, math.ceil(LONG_ENOUGH / max(of_queued, 1e-6))))
    hold = 1.5 * calls * launching + 1e-3
    return calls, hold, calls * of_queued + min(hold, LONGEST_HOLD) + of_whole


def peaks(clock: Clock, size: int) -> dict:
    """What the device reaches: FLOP/s of a matrix product of `size`, by dtype, and bytes/s of the second cache.

    The cache's: the larger of a copy within half of it, counted as read and written, and of a sum that reads a buffer
    of half of it 32 times.
    """
    found = {name: _product_rate(clock, size, dtype) for name, dtype in DTYPES.items()}
    cache = _cache_bytes(clock)
    count = cache // 8  # float32 in half of the cache
    buffer = torch.randn(count, device=clock.device)
    source, target = buffer[: count // 2], torch.empty(count // 2, device=clock.device)
    copied = 8 * source.numel() / _median(clock, lambda: target.copy_(source), calls=50)
    rows = buffer.expand(32, -1)
    summed = 4 * rows.numel() / _median(clock, lambda: rows.sum(1), calls=4)
    return {
        "tensor_flops": found,
        "l2_bytes_per_second": max(copied, summed),
        "l2_copy_bytes_per_second": copied,
        "l2_sum_bytes_per_second": summed,
        "l2_bytes": cache,
        "matrix_size": size,
    }


def _cache_bytes(clock: Clock) -> int:
    return torch.cuda.get_device_properties(clock.device).L2_cache_size if clock.on_device else 2**20


def _product_rate(clock: Clock, size: int, dtype: torch.dtype) -> float:
    a, b = (torch.randn(size, size, device=clock.device).to(dtype) for _ in range(2))
    out = torch.empty_like(a)
    return 2 * size**3 / _median(clock, lambda: torch.mm(a, b, out=out), calls=2)


def _median(clock: Clock, call: Callable, calls: int) -> float:
    clock.whole(call)
    return statistics.median(clock.queued(call, calls, 1e-4 * calls)[0] for _ in range(LEAST_ROUNDS))


def microseconds_per_step(seconds: list[float], steps: int) -> dict[str, float]:
    """Median, 20 % and 80 % quantile."""
    return summary([1e6 * value / steps for value in seconds])

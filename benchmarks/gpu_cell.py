"""One cell of benchmarks/gpu.py: every contender is built and gated, then those that are right are timed in turn."""

import time
from collections.abc import Callable

import torch
from accuracy import one_line
from gpu_backward import Backward, build_backward, exact_answers, own
from gpu_budget import Slices
from gpu_gate import Gate, release
from gpu_iteration import OTHERS, IterationGateOn, method_of, seconds_of
from gpu_problem import BACKENDS, Cell, Settings, loop_bytes
from gpu_providers import Contender, build_forward
from gpu_timing import Clock, Times, interleave_on, microseconds_per_step
from measure import summary
from presets import condition_flop, useful_flop

from rohydr_fast.errors import BackendUnavailable

TURNS = ("cuda", "eager", "graph", "triton", "compile")
"""Whose turn comes first, as time may run out within a cell."""


class DeviceLost(Exception):
    """The device answers nothing any more in this process."""


class CellRun:
    """Runs cells one after another.

    Args:
        peaks: as `gpu_timing.peaks` gives them.
        banned: (workload, provider, dtype) to the reason why it may not run any more.
        begin: told (cell, provider) before something that may end the process.
    """

    def __init__(
        self,
        settings: Settings,
        clock: Clock,
        peaks: dict,
        slices: Slices,
        banned: dict[tuple[str, str, str], str],
        begin: Callable[[Cell, str], None],
    ):
        self.settings, self.clock, self.peaks, self.slices = settings, clock, peaks, slices
        self.banned, self.begin = banned, begin

    def run(self, cell: Cell, names: list[str]) -> list[dict]:
        """A row for each provider."""
        rows = {name: {**vars(cell), "provider": name} for name in names}
        for name, row in rows.items():
            reason = self.banned.get((cell.workload, name, cell.dtype))
            if reason:
                row |= {"gate": "error", "reason": reason}
            elif cell.workload == "iteration" and name not in BACKENDS:
                row |= {"gate": "skipped", "reason": OTHERS}
        try:
            (self._iteration if cell.workload == "iteration" else self._chains)(cell, rows)
        except DeviceLost:
            raise
        except Exception as failure:  # of the gate's own answers
            self._failed(failure, *[row for row in rows.values() if "gate" not in row])
        finally:
            release(self.settings.device)
        return list(rows.values())

    def _may_begin(self, cell: Cell, row: dict) -> bool:
        """Whether a contender's turn has come; else its row says why not."""
        if "gate" in row:
            return False
        reason = self.slices.refusal(cell.workload, row["provider"])
        if reason:
            row |= {"gate": "not run", "reason": reason}
            return False
        self.begin(cell, row["provider"])
        return True

    def _failed(self, failure: Exception, *rows: dict) -> None:
        unavailable = isinstance(failure, BackendUnavailable)
        for row in rows:
            reason = why_unavailable(failure) if unavailable else one_line(failure)
            row |= {"gate": "skipped" if unavailable else "error", "reason": reason}
        if self.clock.on_device and not unavailable:
            try:
                torch.cuda.empty_cache()
                torch.cuda.synchronize()
            except Exception:
                raise DeviceLost(one_line(failure)) from None

    def _chains(self, cell: Cell, rows: dict[str, dict]) -> None:
        settings = self.settings
        forward = cell.workload == "forward"
        problem = settings.problem(cell, settings.steps)
        few = settings.problem(cell, settings.gate_steps if forward else settings.gradient_gate_steps)
        build = build_forward if forward else build_backward
        gate, ready, used = None, {}, {}
        for name in sorted(rows, key=TURNS.index):
            row = rows[name]
            if not self._may_begin(cell, row):
                continue
            start = time.perf_counter()
            try:
                if gate is None:
                    gate = _gate(cell, few)
                contender = build(name, problem, few)
                row |= gate.verdict(contender.check(), contender.exact)
            except Exception as failure:  # it must not take the others' numbers with it
                self._failed(failure, row)
            if row["gate"] == "pass":
                ready[name] = contender
            used[name] = time.perf_counter() - start
        contender = None
        self._time(cell, rows, ready, used)

    def _time(self, cell: Cell, rows: dict[str, dict], ready: dict[str, Contender], used: dict[str, float]) -> None:
        start = time.perf_counter()
        found = interleave_on(
            self.clock,
            {name: (contender.queued, contender.whole) for name, contender in ready.items()},
            min(self.settings.slice_seconds, self.slices.budget.left()),
            lambda name: self.begin(cell, name),
        )
        for name, seconds in used.items():
            self.slices.spent(cell.workload, name, seconds + (time.perf_counter() - start) / len(used))
        for name, times in found.items():
            if times.failure is not None:
                self._failed(times.failure, rows[name])
            else:
                rows[name] |= self._numbers(cell, name, times)

    def _numbers(self, cell: Cell, name: str, times: Times) -> dict:
        """What a row says about time. A product costs as much again for the gradient of each factor."""
        preset, steps = self.settings.preset(cell.width), self.settings.steps
        per_step = microseconds_per_step(times.queued, steps)
        seconds = 1e-6 * per_step["median"]
        flop = useful_flop(preset)
        if cell.workload == "backward":
            flop = 3 * (flop + condition_flop(preset) / steps)
        row = {
            "us_per_step": per_step,
            "call_us_per_step": microseconds_per_step(times.whole, steps),
            "repetitions": len(times.queued),
            "host_bound": times.host_bound,
            "share_of_tensor_peak": flop * cell.batch / seconds / self.peaks["tensor_flops"][cell.dtype],
            "share_of_l2": None,
        }
        if name == "cuda" and cell.workload == "forward":
            read = loop_bytes(preset, cell.dtype) * cell.batch / seconds
            row["share_of_l2"] = read / self.peaks["l2_bytes_per_second"]
        return row

    def _iteration(self, cell: Cell, rows: dict[str, dict]) -> None:
        gate = None
        for name in sorted(rows, key=TURNS.index):
            row = rows[name]
            if not self._may_begin(cell, row):
                continue
            start = time.perf_counter()
            try:
                method = method_of(name, cell, self.settings)
                gate = gate or IterationGateOn(cell, self.settings)
                row |= gate.verdict(method)
                if row["gate"] == "pass":
                    seconds = seconds_of(method, cell, self.settings, self.clock)
                    row |= {"seconds": summary(seconds), "repetitions": len(seconds)}
            except Exception as failure:
                self._failed(failure, row)
            self.slices.spent(cell.workload, name, time.perf_counter() - start)


def _gate(cell: Cell, few) -> Gate:
    if cell.workload == "backward":
        return Gate(cell.dtype, exact_answers(few), Backward(few).run(own("reference")))
    return Gate(cell.dtype, {"x_0": few.sample("reference", double=True)}, {"x_0": few.sample("reference")})


def why_unavailable(refusal: BackendUnavailable) -> str:
    """The reason alone, of the registry's sentence about a backend that was named."""
    reason = str(refusal).partition(", which is not: ")[2].rpartition(". Usable: ")[0]
    return reason or str(refusal)


def not_run(cell: Cell, names: list[str], reason: str) -> list[dict]:
    """The rows of a cell that nobody began with."""
    return [{**vars(cell), "provider": name, "gate": "not run", "reason": reason} for name in names]

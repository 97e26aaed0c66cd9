"""The contenders of benchmarks/gpu.py without gradients: each turns a problem into functions that sample x_0.

eager, triton and cuda are this package's backends. compile and graph are opponents: they run the step of
benchmarks/hoisted.py, out of which everything is taken that does not change from step to step, and draw their noise
by torch, all of it at once.
"""

import copy
from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from gpu_problem import BACKENDS
from sampling_problem import PREDICTION, Problem
from sampling_providers import HoistedStep
from torch import Tensor

from rohydr_fast.diffusion.sampler import SampleRequest, chain_of
from rohydr_fast.ops.reverse_loop import reverse_loops
from rohydr_fast.ops.reverse_loop.graphed import record


@dataclass(frozen=True)
class Contender:
    """What is checked and timed.

    `check` gives its answers by name, of the gate's few steps and on the package's noise. `queued` is what can be
    prepared before a call left out, `whole` everything that the call of a user does.
    """

    check: Callable[[], dict[str, Tensor]]
    queued: Callable[[], object]
    whole: Callable[[], object]
    exact: bool = False


def request_of(problem: Problem) -> SampleRequest:
    """The arguments of `rohydr_fast.sample`."""
    return SampleRequest(
        problem.denoiser,
        problem.cond,
        problem.steps,
        problem.seed,
        problem.preset.tokens,
        prediction=PREDICTION,
    )


def build_forward(name: str, problem: Problem, few: Problem) -> Contender:
    """A contender.

    Args:
        few: the same problem with the steps of the gate.

    Raises:
        BackendUnavailable: it cannot run this problem.
    """
    if name in BACKENDS:
        return _own(BACKENDS[name], problem, few, exact=name != "eager")
    return {"compile": _compiled, "graph": _graphed}[name](problem, few)


def _own(backend: str, problem: Problem, few: Problem, *, exact: bool) -> Contender:
    with torch.no_grad():
        chain = chain_of(request_of(problem))

    def queued() -> Tensor:
        with torch.no_grad():
            return reverse_loops([chain], backend=backend)[0]

    return Contender(
        lambda: {"x_0": few.sample(backend)},
        queued,
        lambda: problem.sample(backend),
        exact,
    )


class Tables:
    """The hoisted step of a problem in its dtype; rows, keys and values are computed in float32, as the package's."""

    def __init__(self, problem: Problem, few: Problem):
        self.problem, self.dtype = problem, problem.cond.dtype
        device = problem.cond.device
        self._made = {p.steps: HoistedStep(_in_float32(p)).to(device).eval() for p in (problem, few)}
        self.step = HoistedStep(_in_float32(problem)).to(device, self.dtype).eval()

    @torch.no_grad()
    def rows(self, steps: int) -> Tensor:
        """Those of all steps in the order of use, (K, n)."""
        return self._made[steps].rows().to(self.dtype)

    @torch.no_grad()
    def keys_values(self) -> Tensor:
        """K and V of all blocks, (2 L, B, S, W)."""
        made = self._made[self.problem.steps]
        return made.keys_values(self.problem.cond.to(made.kv_weight.dtype)).to(self.dtype)


def _in_float32(problem: Problem) -> Problem:
    made = replace(problem, cond=problem.cond.float())
    if problem.cond.dtype == torch.float32:
        return made
    return replace(made, denoiser=copy.deepcopy(problem.denoiser).float())


def given_noise(problem: Problem) -> Tensor:
    """The package's noise (K, B, T, C), where and as the problem has its numbers."""
    return problem.philox_noise().to(problem.cond)


def _compiled(problem: Problem, few: Problem) -> Contender:
    tables = Tables(problem, few)
    run = torch.compile(tables.step, fullgraph=True, dynamic=False)
    kept, last = (tables.rows(problem.steps), tables.keys_values()), problem.cond.new_zeros(problem.shape)

    @torch.no_grad()
    def loop(noise: Tensor, rows: Tensor, keys_values: Tensor) -> Tensor:
        x, kv = noise[0], list(keys_values)
        for row, z in zip(rows, (*noise[1:], last), strict=True):
            x = run(x, row, z, kv)
        return x

    def draw() -> Tensor:
        return torch.randn(problem.steps, *problem.shape, device=last.device, dtype=last.dtype)

    return Contender(
        lambda: {"x_0": loop(given_noise(few), tables.rows(few.steps), kept[1])},
        lambda: loop(draw(), *kept),
        lambda: loop(draw(), tables.rows(problem.steps), tables.keys_values()),
    )


class GraphedLoop:
    """The hoisted step as a CUDA graph that finds the row and the noise of the step by itself: one launch a step."""

    def __init__(self, tables: Tables):
        problem = tables.problem
        self.tables, self.steps = tables, problem.steps
        with torch.no_grad():
            self.rows, self.kv = tables.rows(problem.steps), tables.keys_values()
            self.noise = problem.cond.new_zeros(problem.steps + 1, *problem.shape)  # the last step's z is zero
            self.x = torch.zeros_like(self.noise[0])
            self.number = torch.zeros(1, dtype=torch.int64, device=self.x.device)
            self.views = list(self.kv)
            self.launch = record(self._step, self.x.device)

    def _step(self) -> None:
        with torch.no_grad():
            row = self.rows.index_select(0, self.number)
            self.number.add_(1)
            self.x.copy_(self.tables.step(self.x, row, self.noise.index_select(0, self.number), self.views))

    @torch.no_grad()
    def run(self, steps: int) -> Tensor:
        """x_0 of the noise that is in the buffer, by the first so many rows."""
        self.x.copy_(self.noise[0])
        self.number.zero_()
        for _ in range(steps):
            self.launch()
        return self.x.clone()

    def queued(self) -> Tensor:
        """x_0 of new noise."""
        self.noise[:-1].normal_()
        return self.run(self.steps)

    def whole(self) -> Tensor:
        """The same with the tables computed anew."""
        self.rows.copy_(self.tables.rows(self.steps))
        self.kv.copy_(self.tables.keys_values())
        return self.queued()

    def check(self, few: Problem) -> dict[str, Tensor]:
        """x_0 of the gate."""
        self.rows[: few.steps] = self.tables.rows(few.steps)
        self.noise[: few.steps] = given_noise(few)
        self.noise[few.steps] = 0
        x_0 = self.run(few.steps)
        self.rows.copy_(self.tables.rows(self.steps))
        self.noise[-1] = 0
        return {"x_0": x_0}


def _graphed(problem: Problem, few: Problem) -> Contender:
    loop = GraphedLoop(Tables(problem, few))
    return Contender(lambda: loop.check(few), loop.queued, loop.whole)

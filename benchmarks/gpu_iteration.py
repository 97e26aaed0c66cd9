"""The training iteration of benchmarks/gpu.py: the three stages of a batch of the whole model, on a device."""

from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from unittest.mock import patch

from gpu_problem import BACKENDS, DTYPES, Cell, Settings
from gpu_timing import Clock
from training_gate import Gate as IterationGate
from training_iteration import Iteration

from rohydr_fast.diffusion.process import denoising_losses
from rohydr_fast.diffusion.sampler import sample_many
from rohydr_fast.models.recovery import chained as recovery
from rohydr_fast.models.recovery import diffusion as eq3
from rohydr_fast.ops.registry import select

MOST_SECONDS, MOST_REPETITIONS = 12.0, 3
OTHERS = "an iteration is run by eager, triton and cuda alone; backward compares the others"


class Backends:
    """This package with named backends for the chains and for Eq. 3; noise comes from wherever it is fastest."""

    def __init__(self, chains: str, eq3: str | None):
        self.chains, self.eq3 = chains, eq3

    @contextmanager
    def installed(self) -> Iterator[None]:
        """As `Package.installed` of benchmarks/training_methods.py."""
        with (
            patch.object(recovery, "sample_many", partial(sample_many, backend=self.chains)),
            patch.object(eq3, "denoising_losses", partial(denoising_losses, backend=self.eq3)),
        ):
            yield


def method_of(name: str, cell: Cell, settings: Settings):
    """How a provider computes the diffusion of an iteration.

    Raises:
        BackendUnavailable: it cannot, for example because it has no gradient.
    """
    select("reverse_loop", BACKENDS[name], device=settings.device, dtype=DTYPES[cell.dtype], needs_grad=True)
    return Backends(BACKENDS[name], None if name == "cuda" else BACKENDS[name])


class IterationGateOn(IterationGate):
    """Losses and gradients of frozen stages with few steps, against float64 on the same device."""

    def __init__(self, cell: Cell, settings: Settings):
        frozen = Iteration(
            settings.preset(cell.width), cell.batch, settings.gradient_gate_steps, "full", frozen=True
        ).on(settings.device)
        super().__init__("iteration", frozen)

    def build(self, name: str):
        """PyTorch, for the error of float32."""
        return Backends(name, name)

    def verdict(self, method) -> dict:
        """What a row says about it."""
        errors, limit = self.errors(method), self.limit(True)
        row = {"errors": list(errors), "limits": [limit] * 2, "eager_errors": [self.float32_error] * 2}
        if all(error <= limit for error in errors):
            return row | {"gate": "pass"}
        reason = f"losses are off by {errors[0]:.3g} and gradients by {errors[1]:.3g}, allowed {limit:.3g}"
        return row | {"gate": "fail", "reason": reason}


def seconds_of(method, cell: Cell, settings: Settings, clock: Clock) -> list[float]:
    """Of up to three iterations, fewer where they take long; the gate has warmed up what they run."""
    problem = Iteration(settings.preset(cell.width), cell.batch, settings.steps, "full").on(settings.device)
    found: list[float] = []
    while len(found) < MOST_REPETITIONS and sum(found) < MOST_SECONDS:
        found.append(clock.whole(lambda: problem.run(method)))
    return found

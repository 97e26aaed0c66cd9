"""Nothing is timed before it is right: losses and gradients of a contender against float64 on the same noise."""

import math

import torch
from accuracy import gradient_limit, relative_error
from presets import Preset
from torch import Tensor
from training_iteration import Iteration
from training_methods import Package
from training_problem import Block, Chain
from training_providers import PROVIDERS

from rohydr_fast.ops.reverse_loop.reference import step_noise

STEPS = 3
"""Of the gates' chains; an error shows after two."""


class Gate:
    """One problem with its float64 answer: says by how much a contender is off, and whether that passes."""

    def __init__(self, workload: str, problem):
        self.workload, self.problem = workload, problem
        exact = problem.double()
        self.losses, self.gradients = exact.run(Package("reference")), exact.gradients()
        self.float32_error = max(self.errors(self.build("reference")))

    def build(self, name: str):
        """The contender, with the noise that the package draws."""
        return PROVIDERS[name].build(self.workload, step_noise)

    def errors(self, method) -> tuple[float, float]:
        """Of the losses, relative to the largest; of the gradients, see `gradient_error`."""
        found = self.problem.run(method)
        return relative_error(found, self.losses), gradient_error(self.problem.gradients(), self.gradients)

    def limit(self, exact: bool) -> float:
        """The largest error that passes; a NaN does not."""
        return gradient_limit(exact, self.float32_error)


def gradient_error(found: dict[str, Tensor], exact: dict[str, Tensor]) -> float:
    """Root mean square over all tensors of ||g - g64|| / ||g64||; infinite where one is missing or superfluous."""
    if found.keys() != exact.keys():
        return math.inf
    errors = [float((found[name].double() - g).norm() / g.norm()) for name, g in exact.items() if g.any()]
    return math.sqrt(sum(error**2 for error in errors) / len(errors))


def gates(workload: str, preset: Preset, batch: int, steps: int, lengths: str) -> list[Gate]:
    """Of the very sizes that are timed, with fewer steps; where that has no masks, also one with.

    The sizes must be those, because a compiler makes code for each. An iteration has masks, and stands for an epoch.
    """
    steps = min(steps, STEPS)
    torch.manual_seed(0)
    if workload in ("iteration", "epoch"):
        return [Gate(workload, Iteration(preset, batch, steps, lengths, frozen=True))]
    kind = {"block": Block, "chain": Chain}[workload]
    return [Gate(workload, kind(preset, batch, steps)), Gate(workload, kind(preset, batch, steps, masked=True))]

"""Nothing is timed before it is right: x_0 of a contender against float64 on the same noise."""

import numpy as np
import torch
from sampling_problem import Problem
from sampling_providers import PROVIDERS, Sampler

OPPONENT_LIMIT = 1e-3
"""What an opponent may be off by, relative to the largest value: enough to show that it solves the same task."""
MASKED_STEPS = 10
"""Steps of the masked gate; an error shows after one."""


def relative_error(x: torch.Tensor, reference: torch.Tensor) -> float:
    """max |x - reference| / max |reference|, in float64."""
    return float((x.double() - reference).abs().max() / reference.abs().max())


def gate_limit(exact: bool, float32_error: float, reference: torch.Tensor) -> float:
    """The largest relative error that passes.

    An exact contender may lose twice what float32 itself loses in the hoisted loop, whose sums have another order,
    and one unit in the last place of the largest value.
    """
    if not exact:
        return OPPONENT_LIMIT
    largest = float(reference.abs().max())
    return 2 * float32_error + float(np.spacing(np.float32(largest))) / largest


class Gate:
    """One problem with its float64 answer: says by how much a contender is off, and whether that passes."""

    def __init__(self, problem: Problem, threads: int):
        self.problem, self.threads = problem, threads
        self.reference, self.noise = problem.sample("reference", double=True), problem.philox_noise()
        self.float32_error = self.error(PROVIDERS["hoisted"].build(problem, threads))

    def error(self, sampler: Sampler) -> float:
        """The relative error of x_0 on the same noise; rows that a token mask leaves out do not count."""
        x, reference = sampler(self.noise), self.reference
        if self.problem.token_mask is not None:
            x, reference = x[self.problem.token_mask], reference[self.problem.token_mask]
        return relative_error(x, reference)

    def passes(self, error: float, exact: bool) -> bool:
        """A NaN does not pass."""
        return error <= gate_limit(exact, self.float32_error, self.reference)


def one_modality_absent(preset_keys: int) -> torch.Tensor:
    """Key mask (3, S): a row with both modalities, one without the first, one without the second."""
    mask = torch.ones(3, preset_keys, dtype=torch.bool)
    mask[1, : preset_keys // 2] = False
    mask[2, preset_keys // 2 :] = False
    return mask

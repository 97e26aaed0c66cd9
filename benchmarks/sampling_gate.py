"""Nothing is timed before it is right: x_0 of a contender against float64 on the same noise."""

from accuracy import OPPONENT_LIMIT, gate_limit, relative_error
from sampling_problem import Problem
from sampling_providers import PROVIDERS, Sampler

__all__ = ["MASKED_STEPS", "OPPONENT_LIMIT", "Gate", "gate_limit"]

MASKED_STEPS = 10
"""Steps of the masked gate; an error shows after one."""


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

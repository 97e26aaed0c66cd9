"""The same call again and again, on any number of threads: always the same bits, forward and backward."""

import torch

from tests.kernels import backward, cases, driver
from tests.ops.gradient_cases import direction

from .kernel_cases import THREADS, instruction_set

SIZES = {"samples": 6, "tokens": 9, "keys": 11, "largest_width": 48}


def run(count: int, seed: int) -> dict[str, int | str]:
    """`count` calls of every operation and way back on every instruction set."""
    repeated = 0
    for isa in driver.ISAS:
        for operation in cases.CASES:
            arguments = cases.CASES[operation](seed, **SIZES)
            with instruction_set(isa):
                repeated += _forward(operation, arguments, count)
                if operation in backward.OPERATIONS:
                    repeated += _backward(operation, arguments, count)
    return {"repeats of each": count, "calls": repeated}


def _forward(operation: str, arguments: dict, count: int) -> int:
    first = driver.native(operation, arguments)
    for turn in range(count):
        again = driver.native(operation, arguments, threads=THREADS[turn % len(THREADS)], offset=turn % 16)
        assert driver.same_bits(again, first), f"{operation}, call {turn}"
    return count


def _backward(operation: str, arguments: dict, count: int) -> int:
    given = direction(operation, arguments, torch.nan)
    first = backward.gradients(operation, arguments, given)
    for turn in range(count):
        options = {"threads": THREADS[turn % len(THREADS)], "offset": turn % 16, "kept": turn % 2 == 0}
        again = backward.gradients(operation, arguments, given, **options)
        assert backward.same_bits(again, first), f"the way back of {operation}, call {turn}"
    return count

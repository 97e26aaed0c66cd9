"""The loop's PTX for sm_80 in the interpreter: the bits of the simulator, and how many instructions a warp executes."""

import functools
from typing import NamedTuple

import numpy as np
import pytest
import torch

from . import building, reverse_loops
from .numbers import poisoned
from .ptx.module import Module, Profile, Struct
from .test_reverse_loop import make

MODALITY = "q6i11QQQqq3I4xQi4x"  # LoopModality of csrc/cuda/loop_parameters.cuh, with its PhiloxRequest
PROTOTYPE = 6381
"""Instructions that each of the 8 warps of this kernel's prototype executed in a block of the network and step."""


class Kernel(NamedTuple):
    """Which kernel computes a case, and with how many threads."""

    source: str
    name: str
    threads: int


def kernel_of(case: dict, bf16: bool) -> Kernel:
    tokens, width, heads = case["x"].shape[1], case["position"].shape[1], case["num_heads"]
    if not bf16:
        return Kernel(
            "reverse_loop_float32", f"reverse_loop_kernelIfLi{width}", -(-tokens // 32) * 32 * min(4, width // 16)
        )
    size = width // heads
    split = 2 if heads > 1 and tokens <= 64 else 1
    name = f"row_loop_kernelILi{width}ELi{size // 16}ELi{split}E"
    return Kernel(f"row_loop_w{width}", name, split * max(128, -(-tokens // 16) * 32))


@functools.cache
def module(source: str) -> Module:
    return Module(building.ptx_of(building.KERNELS / f"{source}.cu"))


def interpret(case: dict, bf16: bool) -> tuple[np.ndarray, np.ndarray, Profile]:
    """x_0 of the simulator, which also packs; that of the interpreter; and what the latter executed."""
    given, (simulated,) = reverse_loops.arguments(case, bf16=bf16)
    reverse_loops.simulation().call("reverse_loop", *given)
    sizes, rest = given[4:11], given[11:]
    x, _, position, blocks, final, coefficients, token_mask, _, _, _, _, ids, seed, modality, scratch, _, _ = rest
    layout = reverse_loops.scratch_layout(case, bf16)
    parts = [scratch[begin:end].copy() for begin, end in zip(layout, layout[1:], strict=False)]
    out = poisoned(simulated.shape, np.float32)
    samples, tokens, _, channels, _, hidden, _ = sizes
    fields = [*sizes, x, out, position, blocks, final, coefficients, token_mask, *parts]
    fields += [seed % 2**64, ids, samples, 0, modality, 0, 1, 0, 0]
    nobody = [0] * (len(fields))
    facts = (tokens, channels, hidden, position.shape[1], case["num_heads"], int(bf16))
    kernel = kernel_of(case, bf16)
    profile = module(kernel.source).launch(
        kernel.name,
        grid=samples,
        block=kernel.threads,
        arguments=[Struct(f"<{MODALITY}{MODALITY}{MODALITY}2i", *fields, *nobody, *nobody, 1, case["num_heads"])],
        shared_bytes=reverse_loops.simulation().value("reverse_loop_shared_bytes", *facts),
    )
    return simulated, out, profile


@pytest.mark.parametrize("bf16", [False, True], ids=["float32", "bfloat16"])
@pytest.mark.parametrize("network", [(32, 8), (64, 2), (128, 8)], ids=str)
def test_the_interpreter_gives_what_the_simulator_gives(network, bf16):
    simulated, interpreted, _ = interpret(make(3, network, bf16=bf16, tokens=19, keys=21, steps=2), bf16)
    torch.testing.assert_close(torch.from_numpy(interpreted), torch.from_numpy(simulated), rtol=2e-5, atol=2e-5)


def test_instructions_of_a_block_and_step():
    sizes = dict(samples=1, tokens=50, keys=50, channels=32, steps=1)
    counts = []
    for layers in (1, 2):
        case = make(2, (64, 4), bf16=True, layers=layers, **sizes) | {"token_mask": None, "key_mask": None}
        case["weights"] = case["weights"]._replace(blocks=tuple(_of_ratio_four(b) for b in case["weights"].blocks))
        counts.append(interpret(case, True)[2])
    assert kernel_of(case, True).threads == 8 * 32
    executed = counts[1].total() - counts[0].total()
    assert executed <= 0.45 * PROTOTYPE, f"a warp executes {executed:.0f} instructions in a block and step"
    assert 2300 <= 8 * (counts[1]["mma"] - counts[0]["mma"]) <= 2500


def _of_ratio_four(block):
    """The same block with a hidden layer of four times the width."""
    width = block.fc1_weight.shape[1]
    generator = torch.Generator().manual_seed(0)

    def numbers(*shape):
        return torch.randn(*shape, generator=generator) / 8

    return block._replace(
        fc1_weight=numbers(4 * width, width), fc1_bias=numbers(4 * width), fc2_weight=numbers(width, 4 * width)
    )

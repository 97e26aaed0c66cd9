"""The loop's PTX for sm_80 in the interpreter: the bits of the simulator, and how many instructions a warp executes."""

import functools

import numpy as np
import pytest
import torch

from . import building, reverse_loops
from .numbers import poisoned
from .ptx.module import Module, Profile, Struct
from .test_reverse_loop import make

MODALITY = "q6i11QQQqq3I4xQi4x"  # LoopModality of csrc/cuda/reverse_loop.cuh, with its PhiloxRequest
TYPES = {False: ("float32", "IfLi"), True: ("bfloat16", "I13__nv_bfloat16Li")}
INSTRUCTIONS = 4500
"""Most that a warp may execute in a block and step, with 64 channels, 50 tokens and 50 keys."""


@functools.cache
def module(bf16: bool) -> Module:
    return Module(building.ptx_of(building.KERNELS / f"reverse_loop_{TYPES[bf16][0]}.cu"))


def interpret(case: dict, bf16: bool) -> tuple[np.ndarray, np.ndarray, Profile]:
    """x_0 of the simulator, which also packs; that of the interpreter; and what the latter executed."""
    given, (simulated,) = reverse_loops.arguments(case, bf16=bf16)
    reverse_loops.simulation().call("reverse_loop", *given)
    sizes, rest = given[4:11], given[11:]
    x, _, position, blocks, final, coefficients, token_mask, _, _, _, _, ids, seed, modality, scratch, _, _ = rest
    layout = reverse_loops.scratch_layout(case, bf16)
    parts = [scratch[begin:end].copy() for begin, end in zip(layout, layout[1:], strict=False)]
    out = poisoned(simulated.shape, np.float32)
    width = position.shape[1]
    hidden = -(-reverse_loops.hidden_of(case) // 16) * 16
    fields = [*sizes, x, out, position, blocks, final, coefficients, token_mask, *parts]
    fields += [seed % 2**64, ids, sizes[0], 0, modality, 0, 1, 0, 0]
    nobody = [0] * (len(fields))
    size = 2 if bf16 else 4
    pairs = -(-sizes[1] // 32)
    rows, wide = 32 * pairs, max(hidden, 3 * width) + (8 if bf16 else 4)
    shared = rows * (wide * size + (width + (8 if bf16 else 4)) * size + (width + 16) * 4 + sizes[3] * 4 + 4)
    profile = module(bf16).launch(
        f"reverse_loop_kernel{TYPES[bf16][1]}{width}",
        grid=sizes[0],
        block=pairs * 32 * min(4, width // 16),
        arguments=[Struct(f"<{MODALITY}{MODALITY}{MODALITY}2i", *fields, *nobody, *nobody, 1, case["num_heads"])],
        shared_bytes=shared,
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
    executed, products = counts[1].total() - counts[0].total(), counts[1]["mma"] - counts[0]["mma"]
    assert executed <= INSTRUCTIONS, f"a warp executes {executed:.0f} instructions in a block and step"
    assert 290 <= products <= 310


def _of_ratio_four(block):
    """The same block with a hidden layer of four times the width."""
    width = block.fc1_weight.shape[1]
    generator = torch.Generator().manual_seed(0)

    def numbers(*shape):
        return torch.randn(*shape, generator=generator) / 8

    return block._replace(
        fc1_weight=numbers(4 * width, width), fc1_bias=numbers(4 * width), fc2_weight=numbers(width, 4 * width)
    )

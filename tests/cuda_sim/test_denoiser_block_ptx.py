"""The PTX of the way back through a block for sm_80 in the interpreter: no race, and the numbers of the simulator."""

import numpy as np
import pytest
import torch

from . import building, denoiser_blocks
from .numbers import poisoned
from .ptx.module import Module, Struct
from .reverse_loops import WORDS
from .test_denoiser_block import make, out_gradient_of

GRADIENT = "8i23i4x3qi4x12Q"  # GradientParameters of csrc/cuda, with the words of gradient_words.h
PARAMETERS = f"<{GRADIENT}3Qi4xQ"  # BlockParameters of csrc/cuda/denoiser_block.cuh
TYPES = {False: ("float32", "f"), True: ("bfloat16", "13__nv_bfloat16")}
SHARED_BYTES, FORWARD_BYTES = 22, 17  # among the words


def condition_bytes(rows: int, width: int, heads: int, bf16: bool) -> int:
    """ConditionShared of csrc/cuda/condition_gradients.cuh."""
    return 2 * (2 * rows * (width + (8 if bf16 else 4)) * (2 if bf16 else 4) + rows * heads * 8)


def interpret(case: dict, bf16: bool) -> tuple[dict, dict]:
    """Gradients of x, modulation and cond_kv by the simulator, which also packs, and by the interpreter."""
    given, simulated = denoiser_blocks.arguments(case, out_gradient_of(case, bf16), bf16=bf16)
    denoiser_blocks.simulation().call("denoiser_block", *given)
    sizes, x, modulation, _, token_mask, _, _, _, scratch, _, out_gradient = given[:11]
    samples, tokens, keys, hidden, width, heads = map(int, sizes[:6])
    found = [
        denoiser_blocks.simulation().value("denoiser_block_place", what, *map(int, sizes[:8]))
        for what in range(12 + WORDS)
    ]
    (*places, size), words = found[:12], found[12:]
    parts = [scratch[begin:end].copy() for begin, end in zip(places, [*places[1:], size], strict=True)]
    read, written = parts[:6], [poisoned(part.shape, np.uint8) for part in parts[6:9]]
    found = {name: poisoned(simulated[name].shape, np.float32) for name in ("x", "modulation")}
    found["cond_kv"] = np.zeros(simulated["cond_kv"].shape, np.float32)
    weights, biases, transposed, condition, counts, numbers = read
    gradient = [width, hidden, 0, 1, 2 if bf16 else 4, heads, tokens, keys, *words, samples, 0, samples, 1, token_mask]
    gradient += [weights, transposed, condition, biases, counts, numbers, *written]
    gradient += [found["modulation"], found["cond_kv"]]
    parameters = Struct(PARAMETERS, *gradient, x, modulation, out_gradient, samples, found["x"])
    name, mangled = TYPES[bf16]
    module = Module(building.ptx_of(building.KERNELS / f"denoiser_block_{name}.cu"))
    instance = f"I{mangled}Li{width}E"
    for kernel, threads, shared in [
        (f"denoiser_block_kernel{instance}Lb1", 256, words[FORWARD_BYTES]),
        (f"denoiser_block_backward_kernel{instance}Lb0", 512, words[SHARED_BYTES]),
    ]:
        module.launch(kernel, grid=samples, block=threads, arguments=[parameters], shared_bytes=shared)
    module.launch(
        f"condition_gradient_kernel{instance}Lb0",
        grid=(samples, 1, -(-heads * -(-keys // 16) // 8)),
        block=256,
        arguments=[Struct(f"<{GRADIENT}", *gradient)],
        shared_bytes=condition_bytes(words[10], width, heads, bf16),
    )
    return simulated, found


@pytest.mark.parametrize("bf16", [False, True], ids=["float32", "bfloat16"])
def test_the_interpreter_finds_no_race_and_gives_what_the_simulator_gives(bf16):
    case = make(2, (64, 4), bf16=bf16, tokens=35, keys=21, samples=1, hidden=96)
    for name, found in (results := interpret(case, bf16))[1].items():
        torch.testing.assert_close(
            torch.from_numpy(found), torch.from_numpy(results[0][name]), rtol=1e-4, atol=2e-3 if bf16 else 2e-5
        )

"""Runs csrc/cuda/denoiser_block.cu and its way back in the simulator on keywords of the reference."""

import functools

import numpy as np
import torch

from tests.kernels.driver import flat

from . import building
from .numbers import poisoned, read_only
from .reverse_loops import as_float, as_mask, as_operand, weights_in_a_row
from .simulation import Simulation

SOURCES = [
    *[building.KERNELS / f"denoiser_block{part}.cu" for part in ("", "_float32", "_bfloat16")],
    building.HERE / "entries" / "denoiser_block.cpp",
]


@functools.cache
def simulation() -> Simulation:
    """The compiled module."""
    return Simulation(building.simulator_module(SOURCES))


def run(case: dict, *, bf16: bool = False, order: str = "forward") -> torch.Tensor:
    """The block's result (B, T, W), float32. With `bf16` the operands are those of bfloat16."""
    out = poisoned(tuple(case["x"].shape), np.float32)
    with simulation().order(order):
        simulation().call("denoiser_block", *_inputs(case, bf16, False), out, 0, 0, 0, 0)
    return torch.from_numpy(out)


def gradients(case: dict, out_gradient: torch.Tensor, *, bf16: bool = False, order: str = "forward") -> dict:
    """Gradients by name, float32: x, modulation, cond_kv, and weights as one row."""
    given, outs = arguments(case, out_gradient, bf16=bf16)
    with simulation().order(order):
        simulation().call("denoiser_block", *given)
    return {name: torch.from_numpy(out) for name, out in outs.items()}


def arguments(case: dict, out_gradient: torch.Tensor, *, bf16: bool) -> tuple[list, dict[str, np.ndarray]]:
    """What the entry takes for the way back, and the results among it."""
    outs = {
        "x": poisoned(tuple(case["x"].shape), np.float32),
        "modulation": poisoned(tuple(case["modulation"].shape), np.float32),
        "cond_kv": np.zeros(tuple(case["cond_kv"].shape), np.float32),
        "weights": poisoned((sum(weight.numel() for weight in case["weights"]),), np.float32),
    }
    given = [*_inputs(case, bf16, True), outs["x"], read_only(as_float(out_gradient)), *list(outs.values())[1:]]
    return given, outs


def _inputs(case: dict, bf16: bool, backward: bool) -> list:
    samples, tokens, width = case["x"].shape
    keys, modulation = case["cond_kv"].shape[2], case["modulation"]
    rows = len(modulation) if modulation.dim() == 3 else 1
    sizes = [samples, tokens, keys, case["weights"].fc1_weight.shape[0], width, case["num_heads"], rows]
    sizes += [int(bf16), int(backward)]
    operand = as_operand if bf16 else as_float
    return [
        read_only(np.array(sizes, np.int64)),
        read_only(as_float(case["x"])),
        read_only(as_float(modulation)),
        read_only(operand(case["cond_kv"])),
        *[as_mask(case.get(name)) for name in ("token_mask", "key_mask")],
        *weights_in_a_row(flat(case["weights"]), bf16),
        poisoned((simulation().value("denoiser_block_scratch", *sizes),), np.uint8),
    ]

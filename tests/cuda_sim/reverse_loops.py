"""Runs csrc/cuda/reverse_loop.cu in the simulator on keywords of the reference."""

import functools

import numpy as np
import torch

from tests.kernels.driver import flat

from . import building
from .numbers import poisoned, read_only, to_bf16
from .simulation import Simulation

SOURCES = [
    *[building.KERNELS / f"{name}.cu" for name in ("reverse_loop", "reverse_loop_float32")],
    *[building.KERNELS / f"row_loop_w{width}.cu" for width in (32, 64, 128)],
    building.HERE / "entries" / "reverse_loop.cpp",
]


@functools.cache
def simulation() -> Simulation:
    """The compiled module."""
    return Simulation(building.simulator_module(SOURCES))


def run(*cases: dict, bf16: bool = False, order: str = "forward") -> list[torch.Tensor]:
    """x_0 (B, T, C) of each case, float32, from one launch. With `bf16` the operands are those of bfloat16."""
    given, outs = arguments(*cases, bf16=bf16)
    with simulation().order(order):
        simulation().call("reverse_loop", *given)
    return [torch.from_numpy(out) for out in outs]


def arguments(*cases: dict, bf16: bool = False) -> tuple[list, list[np.ndarray]]:
    """What the entry takes, and the results among it."""
    given, outs = [len(cases), cases[0]["position"].shape[1], cases[0]["num_heads"], int(bf16)], []
    for case in cases:
        more, out = _arguments(case, bf16)
        given += more
        outs.append(out)
    return given, outs


def scratch_layout(case: dict, bf16: bool) -> list[int]:
    """Where a case's weights, biases, condition and numbers of keys start in the scratch memory, and its size."""
    layers, _, samples, keys, width = case["cond_kv"].shape
    sizes = (samples, keys, case["x"].shape[2], layers, hidden_of(case), width, int(bf16))
    return [simulation().value("reverse_loop_scratch", what, *sizes) for what in range(5)]


def hidden_of(case: dict) -> int:
    """The width of the MLP's hidden layer."""
    blocks = case["weights"].blocks
    return blocks[0].fc1_weight.shape[0] if blocks else 4 * case["position"].shape[1]


def _arguments(case: dict, bf16: bool) -> tuple[list, np.ndarray]:
    samples, tokens, channels = case["x"].shape
    layers, _, _, keys, _ = case["cond_kv"].shape
    weights = flat(case["weights"])
    sizes = [samples, tokens, keys, channels, layers, hidden_of(case), len(case["coefficients"])]
    operand = _operand if bf16 else _float
    packed = [operand(tensor).view(np.uint8).ravel() for tensor in weights]
    places = [-(-part.size // 16) * 16 for part in packed]  # each aligned to 16 bytes
    offsets = np.concatenate([[0], np.cumsum(places)]).astype(np.int64)
    memory = np.zeros(offsets[-1], np.uint8)
    for part, offset in zip(packed, offsets, strict=False):
        memory[offset : offset + part.size] = part
    size = scratch_layout(case, bf16)[-1]
    out = poisoned((samples, tokens, channels), np.float32)
    seed, ids, modality = case["noise"]
    tables = [case["position"], *case["modulation"], case["coefficients"]]
    given = [
        *sizes,
        read_only(_float(case["x"])),
        out,
        *[read_only(_float(table)) for table in tables],
        *[_mask(case.get(name)) for name in ("token_mask", "key_mask")],
        read_only(operand(case["cond_kv"])),
        read_only(memory),
        read_only(offsets),
        read_only(ids.numpy()),
        seed - 2**64 if seed >= 2**63 else seed,
        modality,
        poisoned((size,), np.uint8),
    ]
    return given, out


def _float(tensor: torch.Tensor) -> np.ndarray:
    return tensor.float().contiguous().numpy()


def _operand(tensor: torch.Tensor) -> np.ndarray:
    return to_bf16(_float(tensor))


def _mask(mask: torch.Tensor | None) -> np.ndarray | int:
    return 0 if mask is None else read_only(mask.contiguous().numpy().view(np.uint8))

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
    *[building.KERNELS / f"reverse_loop_backward{part}.cu" for part in ("", "_float32", "_bfloat16")],
    building.HERE / "entries" / "reverse_loop.cpp",
]

WORDS = 23
"""Of gradient_words.h: TapeLayout and GradientShared of csrc/cuda/gradient_layout.h."""


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


def run_with_states(case: dict, steps: int, *, bf16: bool = False) -> tuple[torch.Tensor, np.ndarray]:
    """x_0, and x_t of the last so many steps (steps, B, T, C), NaN at tokens that do not exist."""
    states = poisoned((steps, *case["x"].shape), np.float32)
    (*given, _, _), (out,) = arguments(case, bf16=bf16)
    simulation().call("reverse_loop", *given, states, steps)
    return torch.from_numpy(out), states


def gradients(
    case: dict, out_gradient: torch.Tensor, states: np.ndarray, *, bf16: bool = False, order: str = "forward"
) -> dict[str, torch.Tensor]:
    """Gradients by name, float32, from x_t of the last steps: of that of the first of them ("x"), of the rows of the
    modulation of these steps, of cond_kv, and of all weights as one row."""
    given, found = gradient_arguments(case, out_gradient, states, bf16=bf16)
    with simulation().order(order):
        simulation().call("reverse_loop_backward", *given)
    return {name: torch.from_numpy(array) for name, array in found.items()}


def gradient_arguments(
    case: dict, out_gradient: torch.Tensor, states: np.ndarray, *, bf16: bool = False
) -> tuple[list, dict[str, np.ndarray]]:
    """What the entry of the way back takes, and the results among it."""
    steps, width = len(states), case["position"].shape[1]
    given, out = _arguments(case, bf16)
    samples, tokens, keys, channels, layers, hidden, _ = sizes = given[:7]
    sizes[6], out[...] = steps, as_float(out_gradient)
    more = [width, case["num_heads"], int(bf16)]
    scratch = poisoned((backward_places(sizes, more)[12],), np.uint8)
    outs = {
        "blocks": poisoned((steps, layers, 9, width), np.float32),
        "final": poisoned((steps, 2, width), np.float32),
        "cond_kv": np.zeros((layers, 2, samples, keys, width), np.float32),
        "weights": poisoned((sum(tensor.numel() for tensor in flat(case["weights"])),), np.float32),
    }
    return [*more, *sizes, read_only(states), *given[8:-3], scratch, 0, 0, *outs.values()], {"x": out, **outs}


def backward_places(sizes: list[int], more: list[int]) -> list[int]:
    """Where the parts of the scratch memory of the way back start, its size, the parts of the weight gradients, and the
    words of gradient_words.h; of the sizes of a call, and its width, heads and type."""
    return [simulation().value("reverse_loop_backward_place", what, *sizes, *more) for what in range(14 + WORDS)]


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
    sizes = [samples, tokens, keys, channels, layers, hidden_of(case), len(case["coefficients"])]
    operand = as_operand if bf16 else as_float
    size = scratch_layout(case, bf16)[-1]
    out = poisoned((samples, tokens, channels), np.float32)
    seed, ids, modality = case["noise"]
    tables = [case["position"], *case["modulation"], case["coefficients"]]
    given = [
        *sizes,
        read_only(as_float(case["x"])),
        out,
        *[read_only(as_float(table)) for table in tables],
        *[as_mask(case.get(name)) for name in ("token_mask", "key_mask")],
        read_only(operand(case["cond_kv"])),
        *weights_in_a_row(flat(case["weights"]), bf16),
        read_only(ids.numpy()),
        seed - 2**64 if seed >= 2**63 else seed,
        modality,
        poisoned((size,), np.uint8),
        0,  # no states
        0,
    ]
    return given, out


def weights_in_a_row(weights: list[torch.Tensor], bf16: bool) -> list[np.ndarray]:
    """All in one array, each aligned to 16 bytes, and the bytes before each."""
    packed = [(as_operand if bf16 else as_float)(tensor).view(np.uint8).ravel() for tensor in weights]
    places = [-(-part.size // 16) * 16 for part in packed]
    offsets = np.concatenate([[0], np.cumsum(places)]).astype(np.int64)
    memory = np.zeros(offsets[-1], np.uint8)
    for part, offset in zip(packed, offsets, strict=False):
        memory[offset : offset + part.size] = part
    return [read_only(memory), read_only(offsets)]


def as_float(tensor: torch.Tensor) -> np.ndarray:
    """In float32."""
    return tensor.float().contiguous().numpy()


def as_operand(tensor: torch.Tensor) -> np.ndarray:
    """In bfloat16."""
    return to_bf16(as_float(tensor))


def as_mask(mask: torch.Tensor | None) -> np.ndarray | int:
    """As bytes; 0, the null pointer, for none."""
    return 0 if mask is None else read_only(mask.contiguous().numpy().view(np.uint8))

"""Reverse loops on a CUDA device: the implementation of the registered operations there, and what they support."""

from operator import index
from typing import NamedTuple

import torch
from torch import Tensor

from ... import _native
from ..chain_lists import SEED_MASK, ChainLists, by_chain
from ..cuda_calls import aligned, stream_of, too_large

MODALITIES_OF_A_LAUNCH = 3


class Sizes(NamedTuple):
    """What the limits of the kernel depend on."""

    tokens: int
    channels: int
    hidden: int
    width: int
    num_heads: int


def sizes_of(x: Tensor, position: Tensor, weights: list[Tensor], num_heads: int) -> Sizes:
    """Of a chain: x (B, T, C), position (T, W), and the weights of its denoiser in order of use."""
    width = position.shape[1]
    hidden = weights[10].shape[0] if len(weights) > 4 else 4 * width
    sizes = (x.shape[1], x.shape[2], hidden, width, num_heads)
    return Sizes(*[index(size) for size in sizes])  # numbers in a traced graph too


def refusal(sizes: Sizes, dtype: str, shared_memory: int | None = None, backward: bool = False) -> str | None:
    """Why the kernel cannot take a chain of a dtype, as a part of a sentence.

    Args:
        shared_memory: bytes that a block may have; by default those of the current device.
        backward: of the way back, which has limits of its own.
    """
    core, half = _native.load(), dtype == "bfloat16"
    name = "reverse_loop_backward_cuda" if backward else "reverse_loop_cuda"
    text = getattr(core, f"{name}_refusal")(*sizes, half)
    return text or too_large(getattr(core, f"{name}_shared_bytes")(*sizes, half), shared_memory, backward)


@torch.no_grad()
def run(x: list[Tensor], *lists) -> list[Tensor]:
    """x_0 (B, T, C) of each chain: a launch for up to three of one width and number of heads."""
    return _run(x, ChainLists(*lists), [0] * len(x))[0]


@torch.no_grad()
def run_with_states(x: list[Tensor], *arguments) -> tuple[list[Tensor], list[Tensor], list[Tensor]]:
    """The same, and in float32 x_t of the last `grad_steps` steps, zeros at masked tokens; there are no tapes."""
    *lists, grad_steps, _ = arguments
    outs, states = _run(x, ChainLists(*lists), grad_steps)
    return outs, states, [start.new_empty(0) for start in x]


def _run(x: list[Tensor], chains: ChainLists, grad_steps: list[int]) -> tuple[list[Tensor], list[Tensor]]:
    outs = [torch.empty(start.shape, dtype=torch.float32, device=start.device) for start in x]  # written whole
    states = []
    for start, mask, steps in zip(x, chains.token_mask, grad_steps, strict=True):
        make = torch.empty if mask is None else torch.zeros
        states.append(make((steps, *start.shape), dtype=torch.float32, device=start.device))
    weights = by_chain(chains.weights, chains.weight_counts)
    waiting: dict[tuple, list[int]] = {}
    for i, start in enumerate(x):
        if start.numel():
            waiting.setdefault((chains.position[i].shape[1], chains.num_heads[i], start.dtype), []).append(i)
    for (width, num_heads, dtype), numbers in waiting.items():
        for begin in range(0, len(numbers), MODALITIES_OF_A_LAUNCH):
            some = numbers[begin : begin + MODALITIES_OF_A_LAUNCH]
            kept = [_Memory(x[i], outs[i], chains, i, weights[i], states[i]) for i in some]
            number, stream = stream_of(x[some[0]])
            # What `kept` holds may be freed on return: torch gives its memory only to later work of the same stream.
            half = dtype == torch.bfloat16
            _native.load().reverse_loop_cuda([one.fields for one in kept], width, num_heads, half, number, stream)
    return [out.to(start.dtype) for out, start in zip(outs, x, strict=True)], states


@torch.no_grad()
def run_backward(
    out_gradient: list[Tensor | None], states: list[Tensor], tapes: list[Tensor], *lists
) -> tuple[list[Tensor], list[Tensor], list[Tensor], list[Tensor], list[Tensor]]:
    """Gradients of x, of both modulations, of cond_kv and of the weights; two launches or more for each chain."""
    chains = ChainLists(*lists)
    found: list[list[Tensor]] = [[], [], [], [], []]
    weights = by_chain(chains.weights, chains.weight_counts)
    for i, (gradient, state) in enumerate(zip(out_gradient, states, strict=True)):
        for part, tensors in zip(found, _backward_of(gradient, state, chains, i, weights[i]), strict=True):
            part += tensors
    return tuple(found)


def _backward_of(gradient: Tensor | None, state: Tensor, chains: ChainLists, i: int, weights: list[Tensor]) -> tuple:
    """Lists of the gradients of chain `i`, from x_t of its last steps (steps, B, T, C)."""
    inputs = (chains.modulation_blocks[i], chains.modulation_final[i], chains.cond_kv[i])
    dtype, steps = chains.cond_kv[i].dtype, len(state)
    of_x = torch.zeros(state.shape[1:], dtype=torch.float32, device=state.device)
    of_blocks, of_final, of_cond = [of_x.new_zeros(tensor.shape) for tensor in inputs]
    row = of_x.new_zeros(sum([weight.numel() for weight in weights]))
    if gradient is not None and state.numel() > 0:
        of_x.copy_(gradient)
        memory = _Memory(state, of_x, chains, i, weights, steps=steps)
        memory.fields |= {
            "block_modulation_gradient": of_blocks.data_ptr(),
            "final_modulation_gradient": of_final.data_ptr(),
            "cond_gradient": of_cond.data_ptr(),
            "weight_gradients": row.data_ptr(),
        }
        # What `memory` holds may be freed on return, see `_run`.
        half = memory.dtype == torch.bfloat16
        options = (chains.position[i].shape[1], chains.num_heads[i], half, *stream_of(state))
        _native.load().reverse_loop_backward_cuda(memory.fields, *options)
        if steps < len(chains.coefficients[i]):
            of_x.zero_()  # it is not of x_K
    parts = row.to(dtype).split([weight.numel() for weight in weights])
    of_weights = [part.view(weight.shape) for part, weight in zip(parts, weights, strict=True)]
    return *[[tensor.to(dtype)] for tensor in (of_x, of_blocks, of_final, of_cond)], of_weights


class _Memory:
    """The tensors of a chain as the kernels read them, and their addresses.

    Args:
        x, out: x_K and x_0; or with `steps`, of the way back through so many, x_t of each, and the gradient of x_0.
        states: receives x_t of the last steps, as many as it has.
    """

    def __init__(
        self,
        x: Tensor,
        out: Tensor,
        chains: ChainLists,
        i: int,
        weights: list[Tensor],
        states: Tensor | None = None,
        steps: int | None = None,
    ):
        cond_kv, device, start = chains.cond_kv[i], x.device, x if steps is None else x[0]
        self.dtype = dtype = cond_kv.dtype
        sizes = sizes_of(start, chains.position[i], weights, chains.num_heads[i])
        layers, keys, half = cond_kv.shape[0], cond_kv.shape[3], dtype == torch.bfloat16
        core, samples = _native.load(), len(start)
        if steps is None:
            needed = (samples, keys, sizes.channels, layers, sizes.hidden, sizes.width, half)
            scratch = core.reverse_loop_cuda_scratch(*needed)
        else:
            needed = (samples, steps, sizes.tokens, keys, sizes.channels, layers, sizes.hidden, sizes.width)
            scratch = core.reverse_loop_backward_cuda_scratch(*needed, sizes.num_heads, half)
        tables = {
            "x": x,
            "position": chains.position[i],
            "block_modulation": chains.modulation_blocks[i],
            "final_modulation": chains.modulation_final[i],
            "coefficients": chains.coefficients[i],
        }
        if steps is not None:
            tables |= {name: tables[name][:steps] for name in ("block_modulation", "final_modulation", "coefficients")}
        self.tensors = {name: aligned(tensor, torch.float32, 16) for name, tensor in tables.items()}
        self.tensors["cond_kv"] = aligned(cond_kv, dtype)
        self.tensors["sample_ids"] = chains.sample_ids[i].contiguous()
        self.tensors["scratch"] = torch.empty(scratch, dtype=torch.uint8, device=device)
        for name, mask in (("token_mask", chains.token_mask[i]), ("key_mask", chains.key_mask[i])):
            if mask is not None:
                self.tensors[name] = mask.contiguous()
        self.weights = [aligned(weight, dtype) for weight in weights]
        self.fields = {
            "samples": samples,
            "tokens": sizes.tokens,
            "keys": keys,
            "channels": sizes.channels,
            "layers": layers,
            "hidden": sizes.hidden,
            "steps": chains.coefficients[i].shape[0] if steps is None else steps,
            "token_mask": 0,
            "key_mask": 0,
            **{name: tensor.data_ptr() for name, tensor in self.tensors.items()},
            "out": out.data_ptr(),
            "weights": [weight.data_ptr() for weight in self.weights],
            "seed": chains.seeds[i] & SEED_MASK,
            "modality": chains.modalities[i],
            "states": 0 if states is None or not len(states) else states.data_ptr(),
            "kept_steps": 0 if states is None else len(states),
        }

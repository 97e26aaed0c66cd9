"""Reverse loops on a CUDA device: the implementation of the registered operation there, and what it supports."""

from operator import index
from typing import NamedTuple

import torch
from torch import Tensor

from ... import _native
from ..chain_lists import SEED_MASK, ChainLists, by_chain

MODALITIES_OF_A_LAUNCH = 3
DTYPES = ("float32", "bfloat16")
MANY_TOKENS = 64


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


def refusal(sizes: Sizes, dtype: str, shared_memory: int | None = None) -> str | None:
    """Why the kernel cannot take a chain of a dtype, as a part of a sentence.

    Args:
        shared_memory: bytes that a block may have; by default those of the current device.
    """
    core, half = _native.load(), dtype == "bfloat16"
    if shared_memory is None:
        shared_memory = torch.cuda.get_device_properties(torch.cuda.current_device()).shared_memory_per_block_optin
    text = core.reverse_loop_cuda_refusal(*sizes, half)
    if text is not None:
        return text
    needed = core.reverse_loop_cuda_shared_bytes(*sizes, half)
    if needed > shared_memory:
        return f"a block needs {needed} bytes of shared memory for these sizes, and this device has {shared_memory}"
    return None


@torch.no_grad()
def run(x: list[Tensor], *lists) -> list[Tensor]:
    """x_0 (B, T, C) of each chain: a launch for up to three of one width, number of heads and kind of kernel."""
    chains = ChainLists(*lists)
    outs = [torch.empty(start.shape, dtype=torch.float32, device=start.device) for start in x]  # written whole
    weights = by_chain(chains.weights, chains.weight_counts)
    waiting: dict[tuple, list[int]] = {}
    for i, start in enumerate(x):
        if start.numel():
            # Chains of many tokens go alone: another kernel may compute them, with the last bit of sums rounded otherwise.
            many = start.shape[1] > MANY_TOKENS
            waiting.setdefault((chains.position[i].shape[1], chains.num_heads[i], start.dtype, many), []).append(i)
    for (width, num_heads, dtype, _), numbers in waiting.items():
        for begin in range(0, len(numbers), MODALITIES_OF_A_LAUNCH):
            some = numbers[begin : begin + MODALITIES_OF_A_LAUNCH]
            kept = [_Memory(x[i], outs[i], chains, i, weights[i]) for i in some]
            device = x[some[0]].device
            stream = torch.cuda.current_stream(device).cuda_stream
            number = torch.cuda.current_device() if device.index is None else device.index
            # What `kept` holds may be freed on return: torch gives its memory only to later work of the same stream.
            half = dtype == torch.bfloat16
            _native.load().reverse_loop_cuda([one.fields for one in kept], width, num_heads, half, number, stream)
    return [out.to(start.dtype) for out, start in zip(outs, x, strict=True)]


class _Memory:
    """The tensors of a chain as the kernel reads them, and their addresses."""

    def __init__(self, x: Tensor, out: Tensor, chains: ChainLists, i: int, weights: list[Tensor]):
        cond_kv, dtype, device = chains.cond_kv[i], x.dtype, x.device
        sizes = sizes_of(x, chains.position[i], weights, chains.num_heads[i])
        layers, keys = cond_kv.shape[0], cond_kv.shape[3]
        scratch = _native.load().reverse_loop_cuda_scratch(
            len(x), keys, sizes.channels, layers, sizes.hidden, sizes.width, dtype == torch.bfloat16
        )
        tables = {
            "x": x,
            "position": chains.position[i],
            "block_modulation": chains.modulation_blocks[i],
            "final_modulation": chains.modulation_final[i],
            "coefficients": chains.coefficients[i],
        }
        self.tensors = {name: _aligned(tensor, torch.float32, 16) for name, tensor in tables.items()}
        self.tensors["cond_kv"] = _aligned(cond_kv, dtype)
        self.tensors["sample_ids"] = chains.sample_ids[i].contiguous()
        self.tensors["scratch"] = torch.empty(scratch, dtype=torch.uint8, device=device)
        for name, mask in (("token_mask", chains.token_mask[i]), ("key_mask", chains.key_mask[i])):
            if mask is not None:
                self.tensors[name] = mask.contiguous()
        self.weights = [_aligned(weight, dtype) for weight in weights]
        self.fields = {
            "samples": len(x),
            "tokens": sizes.tokens,
            "keys": keys,
            "channels": sizes.channels,
            "layers": layers,
            "hidden": sizes.hidden,
            "steps": chains.coefficients[i].shape[0],
            "token_mask": 0,
            "key_mask": 0,
            **{name: tensor.data_ptr() for name, tensor in self.tensors.items()},
            "out": out.data_ptr(),
            "weights": [weight.data_ptr() for weight in self.weights],
            "seed": chains.seeds[i] & SEED_MASK,
            "modality": chains.modalities[i],
        }


def _aligned(tensor: Tensor, dtype: torch.dtype, size: int | None = None) -> Tensor:
    """In `dtype`, dense, and at a multiple of `size` bytes, or of its elements."""
    if tensor.dtype != dtype:  # asking torch to do nothing, for some fifty weights, would cost more than the launch
        tensor = tensor.to(dtype)
    tensor = tensor.contiguous()
    return tensor if tensor.data_ptr() % (size or tensor.element_size()) == 0 else tensor.clone()

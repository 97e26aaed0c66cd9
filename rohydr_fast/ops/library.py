"""The operations as `torch.ops.rohydr_fast.*`: what torch needs to trace, compile and dispatch the native core.

Each has a schema, a CPU implementation over `rohydr_fast._C`, and a fake one that gives shapes alone. Inputs are only
read, whatever their strides; every result is a fresh contiguous tensor. An empty result calls nothing. The number of
threads is torch's at the time of the call. There is no backward pass: a call that would need one is an error.
"""

from collections.abc import Iterator

import numpy as np
import torch
from torch import Tensor

from .. import _native
from ..errors import BackendUnavailable
from .packing import CACHE, as_array

NAMESPACE = "rohydr_fast"

_SEED_MASK = 2**64 - 1
_MAX_THREADS = 256  # of one call of the core


def signed(seed: int) -> int:
    """The integer of a schema, which has a sign, with the bits of a 64-bit `seed`."""
    seed = int(seed)  # numpy's would overflow
    return seed - 2**64 if seed >= 2**63 else seed


def _cross_attention(q: Tensor, k: Tensor, v: Tensor, num_heads: int, key_mask: Tensor | None = None) -> Tensor:
    out = torch.empty(q.shape, dtype=q.dtype)
    if out.numel():
        arrays = (as_array(q), as_array(k), as_array(v))
        _native.load().cross_attention(*arrays, num_heads, _mask(key_mask), out.numpy(), _threads())
    return out


def _denoiser_block(
    x: Tensor,
    modulation: Tensor,
    cond_kv: Tensor,
    weights: list[Tensor],
    num_heads: int,
    token_mask: Tensor | None = None,
    key_mask: Tensor | None = None,
) -> Tensor:
    out = torch.empty(x.shape, dtype=x.dtype)
    if out.numel():
        packed = CACHE.get("block", weights, num_heads, x.dtype == torch.float64)
        arrays = (as_array(x), as_array(modulation), as_array(cond_kv), _mask(token_mask), _mask(key_mask))
        _native.load().denoiser_block(packed, *arrays, out.numpy(), _threads())
    return out


def _reverse_loops(
    x: list[Tensor],
    position: list[Tensor],
    modulation_blocks: list[Tensor],
    modulation_final: list[Tensor],
    cond_kv: list[Tensor],
    coefficients: list[Tensor],
    sample_ids: list[Tensor],
    token_mask: list[Tensor | None],
    key_mask: list[Tensor | None],
    weights: list[Tensor],
    weight_counts: list[int],
    num_heads: list[int],
    seeds: list[int],
    modalities: list[int],
) -> list[Tensor]:
    outs, chains, end = [], [], 0
    for i, start in enumerate(x):
        begin, end = end, end + weight_counts[i]
        out = torch.empty(start.shape, dtype=start.dtype)
        outs.append(out)
        if not out.numel():
            continue
        chains.append(
            (
                CACHE.get("denoiser", weights[begin:end], num_heads[i], start.dtype == torch.float64),
                as_array(start),
                as_array(position[i]),
                as_array(modulation_blocks[i]),
                as_array(modulation_final[i]),
                as_array(cond_kv[i]),
                as_array(coefficients[i]),
                seeds[i] & _SEED_MASK,
                as_array(sample_ids[i]),
                modalities[i],
                _mask(token_mask[i]),
                _mask(key_mask[i]),
                out.numpy(),
            )
        )
    if chains:
        _native.load().reverse_loop(chains, _threads())
    return outs


def _philox_normal(
    sample_ids: Tensor, seed: int, modality: int, step: int, stream: int, count: int, backend: str | None = None
) -> Tensor:
    from . import philox  # which imports this module

    return philox.normal(
        seed & _SEED_MASK, sample_ids, modality=modality, step=step, stream=stream, count=count, backend=backend
    )


def _threads() -> int:
    return min(torch.get_num_threads(), _MAX_THREADS)


def _like(x: Tensor) -> Tensor:
    return x.new_empty(x.shape)


_SCHEMAS = {
    "cross_attention": "(Tensor q, Tensor k, Tensor v, int num_heads, Tensor? key_mask=None) -> Tensor",
    "denoiser_block": (
        "(Tensor x, Tensor modulation, Tensor cond_kv, Tensor[] weights, int num_heads, Tensor? token_mask=None, "
        "Tensor? key_mask=None) -> Tensor"
    ),
    "reverse_loops": (
        "(Tensor[] x, Tensor[] position, Tensor[] modulation_blocks, Tensor[] modulation_final, Tensor[] cond_kv, "
        "Tensor[] coefficients, Tensor[] sample_ids, Tensor?[] token_mask, Tensor?[] key_mask, Tensor[] weights, "
        "int[] weight_counts, int[] num_heads, SymInt[] seeds, int[] modalities) -> Tensor[]"
    ),
    "philox_normal": (
        "(Tensor sample_ids, SymInt seed, int modality, int step, int stream, SymInt count, str? backend=None) "
        "-> Tensor"
    ),
}
_CPU = {
    "cross_attention": _cross_attention,
    "denoiser_block": _denoiser_block,
    "reverse_loops": _reverse_loops,
    "philox_normal": _philox_normal,
}
_FAKE = {
    "cross_attention": lambda q, *rest: _like(q),
    "denoiser_block": lambda x, *rest: _like(x),
    "reverse_loops": lambda x, *rest: [_like(start) for start in x],
    "philox_normal": lambda sample_ids, seed, modality, step, stream, count, backend=None: sample_ids.new_empty(
        (sample_ids.shape[0], count), dtype=torch.float32
    ),
}


def _mask(mask: Tensor | None) -> np.ndarray | None:
    return None if mask is None else as_array(mask)


def _without_gradient(op: str, function):
    """`function`, which refuses a call that records a gradient: an operation without a backward would give none."""

    def call(*args, **kwargs):
        if torch.is_grad_enabled() and any(tensor.requires_grad for tensor in _tensors(args)):
            raise BackendUnavailable(
                f"torch.ops.{NAMESPACE}.{op}: its inputs must not require a gradient, got one that does. Call the "
                "function of rohydr_fast.ops, which takes the reference then, or use torch.no_grad()."
            )
        return function(*args, **kwargs)

    return call


def _tensors(args) -> Iterator[Tensor]:
    for arg in args:
        if isinstance(arg, Tensor):
            yield arg
        elif isinstance(arg, list | tuple):
            yield from _tensors(arg)


def _register() -> torch.library.Library | None:
    """None when another copy of this module, imported before, has registered the operations in this process."""
    if hasattr(getattr(torch.ops, NAMESPACE), "reverse_loops"):
        return None
    library = torch.library.Library(NAMESPACE, "DEF")
    for op, schema in _SCHEMAS.items():
        library.define(op + schema, tags=(torch.Tag.pt2_compliant_tag,))
        library.impl(op, _without_gradient(op, _CPU[op]), "CPU")
        library.impl(op, torch.library.fallthrough_kernel, "Autograd")  # torch's own would warn, and only in backward
        torch.library.register_fake(f"{NAMESPACE}::{op}", _without_gradient(op, _FAKE[op]), lib=library)
    return library


globals().pop("LIBRARY", None)  # after importlib.reload: dropping the object takes its registrations back
LIBRARY = _register()
"""Keeps the registrations alive."""

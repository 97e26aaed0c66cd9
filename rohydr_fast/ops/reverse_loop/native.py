"""Reverse loops by the native core, on the CPU or on CUDA. Arguments are those of the package's public functions,
already checked."""

from collections.abc import Sequence
from contextlib import nullcontext

import torch
from torch import Tensor

from .. import library, recording
from ..tapes import tape_size
from ..tensor_checks import fail
from .reference import Chain


def reverse_loops(chains: Sequence[Chain], grad_steps: Sequence[int], max_memory: int | None) -> list[Tensor]:
    """(B, T, C) of each chain, see `reference.reverse_loop`; zeros at tokens that a `token_mask` leaves out.

    Args:
        grad_steps: of each chain, the last steps through which a gradient runs; 0 is none.
        max_memory: see `ops.reverse_loop.reverse_loops`.
    """
    if not any(grad_steps):
        with torch.no_grad() if torch.is_grad_enabled() else nullcontext():
            return torch.ops.rohydr_fast.reverse_loops(*_lists(chains))
    on_cuda = chains[0].x.is_cuda  # there activations are computed again
    sizes = [0] * len(chains) if on_cuda else _tape_sizes(chains, grad_steps, max_memory)
    return _with_states(chains, grad_steps, sizes)[0]


@torch.no_grad()
def trajectories(chains: Sequence[Chain]) -> list[tuple[Tensor, Tensor]]:
    """x_t of every step (K, B, T, C) and x_0 (B, T, C) of each chain."""
    outs, states, _ = _with_states(chains, [len(chain.coefficients) for chain in chains], [0] * len(chains))
    return list(zip(states, outs, strict=True))


def _with_states(chains, grad_steps, tape_sizes) -> tuple[list[Tensor], list[Tensor], list[Tensor]]:
    return recording.call("reverse_loops_with_states", *_lists(chains), list(grad_steps), tape_sizes)


def _lists(chains: Sequence[Chain]) -> tuple[list, ...]:
    """The arguments of the registered operations."""
    weights = [chain.weights.tensors() for chain in chains]
    return (
        [chain.x for chain in chains],
        [chain.position for chain in chains],
        [chain.modulation.blocks for chain in chains],
        [chain.modulation.final for chain in chains],
        [chain.cond_kv for chain in chains],
        [chain.coefficients.to(chain.x.dtype) for chain in chains],
        [ids_on(chain.x, chain.noise.sample_ids) for chain in chains],
        [chain.token_mask for chain in chains],
        [chain.key_mask for chain in chains],
        [tensor for tensors in weights for tensor in tensors],
        [len(tensors) for tensors in weights],
        [chain.num_heads for chain in chains],
        [library.signed(chain.noise.seed) for chain in chains],
        [int(chain.noise.modality) for chain in chains],
    )


def ids_on(x: Tensor, sample_ids: Tensor) -> Tensor:
    """(B,) int64 where `x` lies. A host does not wait for its device to get them, but a device's ids are waited for."""
    return sample_ids.to(x.device, torch.int64, non_blocking=x.is_cuda)


def _tape_sizes(chains: Sequence[Chain], grad_steps: Sequence[int], max_memory: int | None) -> list[int]:
    """Elements of each chain's tape, all of them or none: 0 where only x_t is kept."""
    size = chains[0].x.element_size()
    states = sum([steps * chain.x.numel() * size for chain, steps in zip(chains, grad_steps, strict=True)])
    if max_memory is not None and max_memory < states:
        advice = "Raise it, or let the gradient run through fewer steps."
        wanted = f"be at least {states} bytes ({-(-states // 2**20)} MiB), those of x_t at every step"
        fail("reverse_loops", "max_memory", wanted, max_memory, advice)
    sizes = [
        tape_size(chain.x, chain.num_heads, chain.weights.tensors(), chain.token_mask, steps)
        for chain, steps in zip(chains, grad_steps, strict=True)
    ]
    return [0] * len(chains) if max_memory is not None and states + sum(sizes) * size > max_memory else sizes

"""Reverse loops by the native core. Arguments are those of the package's public functions, already checked."""

from collections.abc import Sequence

import torch
from torch import Tensor

from .. import library
from .reference import Chain


def reverse_loops(chains: Sequence[Chain]) -> list[Tensor]:
    """(B, T, C) of each chain, see `reference.reverse_loop`; zeros at tokens that a `token_mask` leaves out."""
    weights = [chain.weights.tensors() for chain in chains]
    with torch.no_grad():
        return torch.ops.rohydr_fast.reverse_loops(
            [chain.x for chain in chains],
            [chain.position for chain in chains],
            [chain.modulation.blocks for chain in chains],
            [chain.modulation.final for chain in chains],
            [chain.cond_kv for chain in chains],
            [chain.coefficients.to(chain.x.dtype) for chain in chains],
            [chain.noise.sample_ids.to("cpu", torch.int64) for chain in chains],
            [chain.token_mask for chain in chains],
            [chain.key_mask for chain in chains],
            [tensor for tensors in weights for tensor in tensors],
            [len(tensors) for tensors in weights],
            [chain.num_heads for chain in chains],
            [library.signed(chain.noise.seed) for chain in chains],
            [int(chain.noise.modality) for chain in chains],
        )

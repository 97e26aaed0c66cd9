"""Eq. 3 by the native core. Arguments are those of the package's public function, already checked."""

from collections.abc import Sequence

import torch
from torch import Tensor

from .. import library
from .reference import DenoiserWeights, Modulation, NoiseKey


def diffusion_loss(
    x_0: Tensor,
    rows: Tensor,
    position: Tensor,
    modulation: Modulation,
    encoded: Tensor,
    kv_weights: Sequence[Tensor],
    kv_biases: Sequence[Tensor],
    weights: DenoiserWeights,
    noise: NoiseKey,
    gradients: bool,
    *,
    loss: str,
    num_heads: int,
    token_mask: Tensor | None,
    key_mask: Tensor | None,
) -> Tensor:
    """See `reference.diffusion_loss`; `gradients` says whether any is wanted."""
    tables = modulation if modulation.final.dim() == 3 else [part[None] for part in modulation]  # 1 or B of them
    condition = [tensor for pair in zip(kv_weights, kv_biases, strict=True) for tensor in pair]
    value, *_ = torch.ops.rohydr_fast.diffusion_loss(
        x_0,
        rows,
        position,
        *tables,
        encoded,
        [*weights.tensors(), *condition],
        num_heads,
        library.signed(noise.seed),
        noise.sample_ids.to("cpu", torch.int64),
        int(noise.modality),
        loss,
        token_mask,
        key_mask,
        gradients,
    )
    return value

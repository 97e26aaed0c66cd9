"""The network of Eq. 2 at one step, plain: embedding, blocks, and the two heads.

`DenoiserWeights` is the one declaration of what the network reads; `models.denoiser` fills it from its modules.
"""

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from ..denoiser_block.reference import BlockWeights, denoiser_block, modulate


class DenoiserWeights(NamedTuple):
    """What the denoiser reads at every step."""

    in_weight: Tensor  # (W, C)
    in_bias: Tensor  # (W,)
    blocks: tuple[BlockWeights, ...]
    out_weight: Tensor  # (2C, W): the noise (or v, or x_0), then the position of the variance
    out_bias: Tensor  # (2C,)

    def tensors(self) -> list[Tensor]:
        """All parameters in the order of use, 4 + 12 L."""
        blocks = [tensor for block in self.blocks for tensor in block]
        return [self.in_weight, self.in_bias, *blocks, self.out_weight, self.out_bias]

    def to(self, dtype: torch.dtype) -> "DenoiserWeights":
        """The same parameters in another dtype; differentiable."""
        ends = [tensor.to(dtype) for tensor in (self.in_weight, self.in_bias, self.out_weight, self.out_bias)]
        return DenoiserWeights(ends[0], ends[1], tuple([block.to(dtype) for block in self.blocks]), ends[2], ends[3])


class Modulation(NamedTuple):
    """Shift, scale and gate of the blocks and of the last layer: one row, or rows for steps or for samples."""

    blocks: Tensor  # (..., L, 9, W)
    final: Tensor  # (..., 2, W)


def denoiser(
    x: Tensor,
    position: Tensor,
    modulation: Modulation,
    cond_kv: Tensor,
    weights: DenoiserWeights,
    *,
    num_heads: int,
    token_mask: Tensor | None = None,
    key_mask: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """The network of Eq. 2 at one step.

    Args:
        x: (B, T, C) x_t, in normalised units.
        position: (T, W).
        modulation: one row, blocks (L, 9, W) and final (2, W); or one per sample, (B, L, 9, W) and (B, 2, W).
        cond_kv: (L, 2, B, S, W).
        token_mask, key_mask: (B, T), (B, S) bool.

    Returns:
        The prediction (B, T, C) (noise, unless the schedule's table says otherwise) and v (B, T, C), where
        u = (v + 1) / 2 places log sigma^2 between its bounds.
    """
    h = F.linear(x, weights.in_weight, weights.in_bias) + position
    for block, kv, row in zip(weights.blocks, cond_kv, modulation.blocks.unbind(-3), strict=True):
        h = denoiser_block(h, row, kv, block, num_heads=num_heads, token_mask=token_mask, key_mask=key_mask)
    shift, scale = modulation.final.unsqueeze(-2).unbind(-3)
    prediction, v = F.linear(modulate(h, shift, scale), weights.out_weight, weights.out_bias).chunk(2, -1)
    return prediction, v

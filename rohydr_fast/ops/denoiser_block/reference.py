"""One block of the denoiser: self-attention, cross-attention, MLP, each modulated and gated by the step.

`BlockWeights` is the one declaration of a block's parameters; `models.denoiser` fills it from its modules.
"""

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from ..cross_attention.reference import cross_attention

LAYER_NORM_EPS = 1e-6


class BlockWeights(NamedTuple):
    """What a block reads at every step; W is the width, R the MLP ratio. K and V of the condition are not here."""

    qkv_weight: Tensor  # (3W, W)
    qkv_bias: Tensor  # (3W,)
    self_out_weight: Tensor  # (W, W)
    self_out_bias: Tensor  # (W,)
    q_weight: Tensor  # (W, W)
    q_bias: Tensor  # (W,)
    cross_out_weight: Tensor  # (W, W)
    cross_out_bias: Tensor  # (W,)
    fc1_weight: Tensor  # (RW, W)
    fc1_bias: Tensor  # (RW,)
    fc2_weight: Tensor  # (W, RW)
    fc2_bias: Tensor  # (W,)

    def to(self, dtype: torch.dtype) -> "BlockWeights":
        """The same parameters in another dtype; differentiable."""
        return BlockWeights(*[tensor.to(dtype) for tensor in self])


def modulate(x: Tensor, shift: Tensor, scale: Tensor) -> Tensor:
    """LayerNorm without affine, then ``(1 + scale) * x + shift`` (adaLN of DiT, the paper's [14])."""
    return F.layer_norm(x, x.shape[-1:], eps=LAYER_NORM_EPS) * (1 + scale) + shift


def denoiser_block(
    x: Tensor,
    modulation: Tensor,
    cond_kv: Tensor,
    weights: BlockWeights,
    *,
    num_heads: int,
    token_mask: Tensor | None = None,
    key_mask: Tensor | None = None,
) -> Tensor:
    """One conditional transformer block with adaLN-Zero (the denoiser of Eq. 2).

    x += g1 * SelfAttention(mod(x)); x += g2 * CrossAttention(Q = mod(x), K, V of the condition); x += g3 * MLP(mod(x))

    Args:
        x: (B, T, W) tokens of the modality being recovered.
        modulation: (9, W), or (B, 9, W) when each sample has its own step: shift, scale, gate of the three parts.
        cond_kv: (2, B, S, W) keys and values of the condition for this block.
        weights: see `BlockWeights`.
        num_heads: H; W must be a multiple of it.
        token_mask: (B, T) bool, True at real tokens; others are never attended to.
        key_mask: (B, S) bool, True where the condition has a key.

    Returns:
        (B, T, W).
    """
    shift1, scale1, gate1, shift2, scale2, gate2, shift3, scale3, gate3 = modulation.unsqueeze(-2).unbind(-3)

    q, k, v = F.linear(modulate(x, shift1, scale1), weights.qkv_weight, weights.qkv_bias).chunk(3, -1)  # (B, T, W) each
    attended = cross_attention(q, k, v, num_heads=num_heads, key_mask=token_mask)
    x = x + gate1 * F.linear(attended, weights.self_out_weight, weights.self_out_bias)

    q = F.linear(modulate(x, shift2, scale2), weights.q_weight, weights.q_bias)
    attended = cross_attention(q, cond_kv[0], cond_kv[1], num_heads=num_heads, key_mask=key_mask)
    x = x + gate2 * F.linear(attended, weights.cross_out_weight, weights.cross_out_bias)

    hidden = F.gelu(F.linear(modulate(x, shift3, scale3), weights.fc1_weight, weights.fc1_bias), approximate="tanh")
    return x + gate3 * F.linear(hidden, weights.fc2_weight, weights.fc2_bias)

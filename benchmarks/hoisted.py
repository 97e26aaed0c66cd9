"""The denoiser with everything hoisted that does not change between steps: the body of the fastest PyTorch loops."""

from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from rohydr_fast.ops.denoiser_block.reference import LAYER_NORM_EPS


def sdpa(q: Tensor, k: Tensor, v: Tensor, heads: int, mask: Tensor | None) -> Tensor:
    """Attention (B, T, W) by torch's fused kernel."""
    q, k, v = (x.unflatten(-1, (heads, -1)).transpose(1, 2) for x in (q, k, v))
    return F.scaled_dot_product_attention(q, k, v, attn_mask=mask).transpose(1, 2).flatten(2)


def written_out(q: Tensor, k: Tensor, v: Tensor, heads: int, mask: Tensor | None) -> Tensor:
    """The same as matrix products and softmax."""
    q, k, v = (x.unflatten(-1, (heads, -1)).transpose(1, 2) for x in (q, k, v))
    scores = q @ k.mT * q.shape[-1] ** -0.5
    if mask is not None:
        scores = scores.masked_fill(~mask, -torch.inf)
    return (torch.softmax(scores, -1) @ v).transpose(1, 2).flatten(2)


def hoisted_network(
    x: Tensor,
    rows: Sequence[Tensor],
    kv: Sequence[Tensor],
    position: Tensor,
    weights,
    heads: int,
    attention: Callable = sdpa,
    key_mask: Tensor | None = None,
    token_mask: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """The prediction and v (B, T, C) at x_t (B, T, C), all samples at the same step.

    Outside of attention, batch and tokens are one dimension: onnxruntime reshapes at every product otherwise.

    Args:
        rows: 9 L + 2 times (W,): for each block shift, 1 + scale and gate of its three parts, so that adaLN is a
            LayerNorm with the row's weight and bias; then shift and 1 + scale of the last LayerNorm.
        kv: keys and values of each block, 2 L times (B, S, W).
        position: (T, W) with the bias of the input layer.
        weights: has in_weight, blocks (12 tensors each, in the order of `BlockWeights`), out_weight and out_bias.
        attention: as `sdpa`.
        key_mask, token_mask: broadcast to (B, 1, T, S) and (B, 1, T, T).
    """
    size, width = x.shape[:2], position.shape[1]

    def norm(h: Tensor, scale: Tensor, shift: Tensor) -> Tensor:
        return F.layer_norm(h, (width,), scale, shift, LAYER_NORM_EPS)

    h = (F.linear(x, weights.in_weight) + position).flatten(0, 1)  # (B T, W)
    for i, block in enumerate(weights.blocks):
        shift1, scale1, gate1, shift2, scale2, gate2, shift3, scale3, gate3 = rows[9 * i : 9 * i + 9]
        w_qkv, b_qkv, w_out, b_out, w_q, b_q, w_cross, b_cross, w_fc1, b_fc1, w_fc2, b_fc2 = block
        qkv = F.linear(norm(h, scale1, shift1), w_qkv, b_qkv).unflatten(0, size).chunk(3, -1)
        attended = attention(*qkv, heads, token_mask).flatten(0, 1)
        h = h + gate1 * F.linear(attended, w_out, b_out)
        q = F.linear(norm(h, scale2, shift2), w_q, b_q).unflatten(0, size)
        attended = attention(q, kv[2 * i], kv[2 * i + 1], heads, key_mask).flatten(0, 1)
        h = h + gate2 * F.linear(attended, w_cross, b_cross)
        hidden = F.gelu(F.linear(norm(h, scale3, shift3), w_fc1, b_fc1), approximate="tanh")
        h = h + gate3 * F.linear(hidden, w_fc2, b_fc2)
    shift, scale = rows[-2:]
    out = F.linear(norm(h, scale, shift), weights.out_weight, weights.out_bias)
    prediction, v = out.unflatten(0, size).chunk(2, -1)
    return prediction, v


def step_coefficients(coefficients: Tensor) -> Tensor:
    """Of `Schedule.table`'s (K, 4), c with x_{t-1} = c0 x + c1 prediction + exp(c2 v + c3) z."""
    c_x, c_p, log_beta, log_posterior = coefficients.unbind(1)
    return torch.stack([c_x, c_p, (log_beta - log_posterior) / 4, (log_beta + log_posterior) / 4], 1)

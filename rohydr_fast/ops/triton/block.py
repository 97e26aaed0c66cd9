"""One block of the denoiser, forward and back, from the kernels. The specification is `denoiser_block.reference`.

Tensors are contiguous, of one dtype (float32 or bfloat16) and finite; shapes as there, the modulation (1 or B, 9, W).
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from ..denoiser_block.reference import BlockWeights
from .attention import attention, attention_gradients
from .linear import linear
from .linear_backward import (
    input_gradient,
    modulated_input_gradient,
    row_parts,
    sum_of_rows,
    weight_gradient,
    weight_parts,
)

KEPT = 13
"""Activations that the way back reads."""


def forward(
    x: Tensor,
    rows: Tensor,
    cond_kv: Tensor,
    weights: Sequence[Tensor],
    num_heads: int,
    token_mask: Tensor | None,
    key_mask: Tensor | None,
    keep: bool,
) -> list[Tensor]:
    """The result (B, T, W), followed by the `KEPT` activations if they are to be kept. Eight launches."""
    w = BlockWeights(*weights)
    qkv, _ = linear(x, w.qkv_weight, w.qkv_bias, modulation=rows[:, 0:2])
    attended, norm = attention(*qkv.chunk(3, -1), num_heads, token_mask)
    x1, branch = linear(attended, w.self_out_weight, w.self_out_bias, gate=rows[:, 2], residual=x, keep=keep)

    q, _ = linear(x1, w.q_weight, w.q_bias, modulation=rows[:, 3:5])
    crossed, cross_norm = attention(q, cond_kv[0], cond_kv[1], num_heads, key_mask)
    x2, cross_branch = linear(crossed, w.cross_out_weight, w.cross_out_bias, gate=rows[:, 5], residual=x1, keep=keep)

    hidden, before = linear(x2, w.fc1_weight, w.fc1_bias, modulation=rows[:, 6:8], gelu=True, keep=keep)
    out, mlp_branch = linear(hidden, w.fc2_weight, w.fc2_bias, gate=rows[:, 8], residual=x2, keep=keep)
    if not keep:
        return [out]
    first, second = (qkv, attended, norm, branch, x1), (q, crossed, cross_norm, cross_branch, x2)
    return [out, *first, *second, hidden, before, mlp_branch]


def backward(
    gradient: Tensor,
    x: Tensor,
    rows: Tensor,
    cond_kv: Tensor,
    weights: Sequence[Tensor],
    num_heads: int,
    token_mask: Tensor | None,
    key_mask: Tensor | None,
    kept: Sequence[Tensor],
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """The gradients of x, of the rows, of `cond_kv`, and (P,) of all weights in the order of `BlockWeights`.

    Args:
        gradient: (B, T, W) contiguous, of the result.
        kept: the activations of `forward`.
    """
    w = BlockWeights(*weights)
    qkv, attended, norm, branch, x1, q, crossed, cross_norm, cross_branch, x2, hidden, before, mlp_branch = kept
    of_rows = row_parts(x, 9)
    parts = weight_parts(x, w)
    place = _places(w)

    weight_gradient(gradient, hidden, rows[:, 8], None, parts, place[5])
    of_before = input_gradient(
        gradient, w.fc2_weight, gate=rows[:, 8], branch=mlp_branch, before=before, parts=of_rows[:, 8]
    )
    weight_gradient(of_before, x2, None, rows[:, 6:8], parts, place[4])
    of_x2 = modulated_input_gradient(of_before, w.fc1_weight, x2, rows[:, 6:8], gradient, of_rows[:, 6:8])

    weight_gradient(of_x2, crossed, rows[:, 5], None, parts, place[3])
    of_crossed = input_gradient(of_x2, w.cross_out_weight, gate=rows[:, 5], branch=cross_branch, parts=of_rows[:, 5])
    of_q, of_kv = torch.empty_like(q), torch.empty_like(cond_kv)
    attention_gradients(
        of_crossed, q, cond_kv[0], cond_kv[1], crossed, cross_norm, num_heads, key_mask, (of_q, of_kv[0], of_kv[1])
    )
    weight_gradient(of_q, x1, None, rows[:, 3:5], parts, place[2])
    of_x1 = modulated_input_gradient(of_q, w.q_weight, x1, rows[:, 3:5], of_x2, of_rows[:, 3:5])

    weight_gradient(of_x1, attended, rows[:, 2], None, parts, place[1])
    of_attended = input_gradient(of_x1, w.self_out_weight, gate=rows[:, 2], branch=branch, parts=of_rows[:, 2])
    of_qkv = torch.empty_like(qkv)
    attention_gradients(of_attended, *qkv.chunk(3, -1), attended, norm, num_heads, token_mask, of_qkv.chunk(3, -1))
    weight_gradient(of_qkv, x, None, rows[:, 0:2], parts, place[0])
    of_x = modulated_input_gradient(of_qkv, w.qkv_weight, x, rows[:, 0:2], of_x1, of_rows[:, 0:2])
    return of_x, sum_of_rows(of_rows, rows), of_kv, parts.sum(0).to(x.dtype)


def _places(w: BlockWeights) -> list[int]:
    """Where the gradient of each weight begins in a row of all; its bias follows it."""
    places, end = [], 0
    for tensor in w[::2]:
        places.append(end)
        end += tensor.numel() + tensor.shape[0]
    return places

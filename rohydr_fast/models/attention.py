"""Attention of F: many short heads, of which each query sees other keys."""

import math

import torch
import torch.nn.functional as F
from torch import Tensor

WRITTEN_OUT = 64 * 64
"""Pairs of a query and a key, up to which products and softmax are faster on a CPU than torch's fused attention: 2.2
times on two threads, 1.2 on one, forward and back (8 heads of 8 channels, T = S = 50); at T = S = 100 it is as fast."""


def attention_mask(seen: Tensor, like: Tensor, num_heads: int) -> Tensor:
    """What `attend` takes, for all layers with the same keys.

    Args:
        seen: (B, T, S) bool: query i sees key j; each row sees one at least.
        like: a tensor with the dtype and device of the queries.
    """
    if torch.compiler.is_compiling() or not like.is_cpu or seen.shape[1] * seen.shape[2] > WRITTEN_OUT:
        return seen[:, None]  # (B, 1, T, S); a traced graph serves any number of tokens
    bias = torch.zeros(seen.shape, dtype=like.dtype).masked_fill(~seen, -math.inf)
    return bias.repeat_interleave(num_heads, 0)  # (B H, T, S)


def attend(q: Tensor, k: Tensor, v: Tensor, mask: Tensor, num_heads: int) -> Tensor:
    """softmax(q k' / sqrt(D)) v of each head, (B, T, W).

    Args:
        q: (B, T, W), W = H D.
        k, v: (B, S, W).
        mask: of `attention_mask`.
    """
    q, k, v = (x.unflatten(-1, (num_heads, -1)).transpose(1, 2) for x in (q, k, v))  # (B, H, T or S, D)
    if mask.dim() == 4:
        attended = F.scaled_dot_product_attention(q, k, v, attn_mask=mask)
    else:
        shape = q.shape
        q, k, v = (x.flatten(0, 1) for x in (q, k, v))
        logits = torch.baddbmm(mask, q, k.mT, alpha=shape[-1] ** -0.5)  # (B H, T, S)
        attended = torch.bmm(logits.softmax(-1), v).view(shape)
    return attended.transpose(1, 2).flatten(2)

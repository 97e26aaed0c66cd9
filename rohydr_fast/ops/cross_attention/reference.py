"""Scaled dot-product attention, plain: the specification of every attention kernel."""

import torch.nn.functional as F
from torch import Tensor


def cross_attention(q: Tensor, k: Tensor, v: Tensor, *, num_heads: int, key_mask: Tensor | None = None) -> Tensor:
    """softmax(Q K' / sqrt(D)) V in each head (the attention under Eq. 1).

    Args:
        q: (B, T, W) queries, W = H * D.
        k, v: (B, S, W) keys and values.
        num_heads: H.
        key_mask: (B, S) bool, True where a key exists. A row without any key gives zeros and zero gradients.

    Returns:
        (B, T, W).
    """
    q, k, v = (x.unflatten(-1, (num_heads, -1)).transpose(1, 2) for x in (q, k, v))  # (B, H, T or S, D)
    if key_mask is None:
        return F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2)
    has_key = key_mask.any(-1)[:, None]  # (B, 1)
    mask = (key_mask | ~has_key)[:, None, None, :]  # softmax over no key is undefined: over all, then cleared
    attended = F.scaled_dot_product_attention(q, k, v, attn_mask=mask).transpose(1, 2).flatten(2)
    return attended * has_key[:, :, None]

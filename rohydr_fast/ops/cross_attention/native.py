"""Attention by the native core. Arguments are those of the package's public function, already checked."""

import torch
from torch import Tensor

from .. import library  # noqa: F401  registers the operation


def cross_attention(q: Tensor, k: Tensor, v: Tensor, *, num_heads: int, key_mask: Tensor | None) -> Tensor:
    """(B, T, W), see `reference.cross_attention`; no gradient."""
    with torch.no_grad():
        return torch.ops.rohydr_fast.cross_attention(q, k, v, num_heads, key_mask)

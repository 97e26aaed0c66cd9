"""Attention by the Triton kernels. Arguments are those of the package's public function, already checked."""

from torch import Tensor

from ..triton.calls import current_device
from ..triton.operations import triton_attention


def cross_attention(q: Tensor, k: Tensor, v: Tensor, *, num_heads: int, key_mask: Tensor | None) -> Tensor:
    """(B, T, W), see `reference.cross_attention`; keys that `key_mask` leaves out are not looked at."""
    with current_device(q):
        return triton_attention(q, k, v, num_heads, key_mask)[0]

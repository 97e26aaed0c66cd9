"""Multi-head attention of short sequences. The specification is `reference.py`."""

from torch import Tensor

from ..checks import check_attention
from ..registry import select
from . import reference


def cross_attention(
    q: Tensor, k: Tensor, v: Tensor, *, num_heads: int, key_mask: Tensor | None = None, backend: str | None = None
) -> Tensor:
    """softmax(Q K' / sqrt(D)) V in each head; shapes in `reference.cross_attention`.

    Raises:
        UsageError: a shape, dtype or device that does not fit.
        BackendUnavailable: the named backend cannot run this call.
    """
    check_attention("cross_attention", q, k, v, num_heads, key_mask)
    select("cross_attention", backend)
    return reference.cross_attention(q, k, v, num_heads=num_heads, key_mask=key_mask)


__all__ = ["cross_attention"]

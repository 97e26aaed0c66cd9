"""One block of the denoiser. The specification is `reference.py`."""

from torch import Tensor

from ..checks import check_block
from ..registry import select
from . import reference
from .reference import BlockWeights


def denoiser_block(
    x: Tensor,
    modulation: Tensor,
    cond_kv: Tensor,
    weights: BlockWeights,
    *,
    num_heads: int,
    token_mask: Tensor | None = None,
    key_mask: Tensor | None = None,
    backend: str | None = None,
) -> Tensor:
    """Self-attention, cross-attention and MLP with adaLN-Zero; shapes in `reference.denoiser_block`.

    Raises:
        UsageError: a shape, dtype or device that does not fit.
        BackendUnavailable: the named backend cannot run this call.
    """
    check_block("denoiser_block", x, cond_kv, num_heads, token_mask, key_mask)
    select("denoiser_block", backend)
    return reference.denoiser_block(
        x, modulation, cond_kv, weights, num_heads=num_heads, token_mask=token_mask, key_mask=key_mask
    )


__all__ = ["BlockWeights", "denoiser_block"]

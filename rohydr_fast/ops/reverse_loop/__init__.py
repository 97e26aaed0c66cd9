"""The whole reverse diffusion of one modality in one call. The specification is `reference.py`."""

from torch import Tensor

from ..checks import check_loop
from ..registry import select
from . import reference
from .reference import DenoiserWeights, Modulation, NoiseKey


def reverse_loop(
    x: Tensor,
    position: Tensor,
    modulation: Modulation,
    cond_kv: Tensor,
    weights: DenoiserWeights,
    coefficients: Tensor,
    noise: NoiseKey,
    *,
    num_heads: int,
    token_mask: Tensor | None = None,
    key_mask: Tensor | None = None,
    grad_steps: int | None = None,
    backend: str | None = None,
) -> Tensor:
    """All K steps of Eq. 2, from x_K to x_0; shapes in `reference.reverse_loop`.

    Raises:
        UsageError: a shape, dtype or device that does not fit, tables of unequal length, an empty key set.
        BackendUnavailable: the named backend cannot run this call.
    """
    check_loop("reverse_loop", x, position, modulation, cond_kv, coefficients, num_heads, token_mask, key_mask)
    select("reverse_loop", backend)
    return reference.reverse_loop(
        x,
        position,
        modulation,
        cond_kv,
        weights,
        coefficients,
        noise,
        num_heads=num_heads,
        token_mask=token_mask,
        key_mask=key_mask,
        grad_steps=grad_steps,
    )


__all__ = ["DenoiserWeights", "Modulation", "NoiseKey", "reverse_loop"]

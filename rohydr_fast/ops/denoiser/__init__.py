"""The network of Eq. 2 at one step, as Eq. 3 trains it. The specification is `reference.py`."""

from torch import Tensor

from ..checks import check_denoiser
from ..dispatch import choose, head_facts, implementation, run_reference, wanting, wants_gradient
from . import native, reference
from .reference import DenoiserWeights, Modulation


def denoiser(
    x: Tensor,
    position: Tensor,
    modulation: Modulation,
    cond_kv: Tensor,
    weights: DenoiserWeights,
    *,
    num_heads: int,
    token_mask: Tensor | None = None,
    key_mask: Tensor | None = None,
    backend: str | None = None,
) -> tuple[Tensor, Tensor]:
    """Prediction and v at x_t (the network of Eq. 2), each sample at its own step; shapes in `reference.denoiser`.

    Weights have the dtype of `x`, or are bfloat16 and widened to it; `torch.autocast` changes nothing. Tokens that
    `token_mask` leaves out hold numbers without meaning, and what is asked of their gradient is not looked at.

    Raises:
        UsageError: a shape, dtype or device that does not fit.
        BackendUnavailable: the named backend cannot run this call; "cpp" has no gradient with respect to the position
            and to bfloat16 weights, and the gradients of "cpp" and "triton" are differentiable once.

    Cost: one native call on "cpp" and one for all gradients; the weights are packed at the first call and again
    whenever they changed. On "triton" two launches, and eight for each block.
    """
    check_denoiser("denoiser", x, position, modulation, cond_kv, weights, num_heads, token_mask, key_mask)
    options = dict(num_heads=num_heads, token_mask=token_mask, key_mask=key_mask)
    tensors = weights.tensors()
    needs_grad = wants_gradient((x, position, *modulation, cond_kv, *tensors))
    grad_of = wanting(x, tensors, position=position) if needs_grad else ()
    heads = head_facts(position.shape[1], num_heads)
    name = choose("denoiser", backend, x, needs_grad, grad_of, **heads)
    if name == "cpp":
        return native.denoiser(x, position, modulation, cond_kv, tensors, **options)
    if name == "triton":
        from . import triton_impl

        return triton_impl.denoiser(x, position, modulation, cond_kv, weights, **options)
    function = implementation("denoiser", name, reference.denoiser)
    weights = weights.to(x.dtype)
    return run_reference(function, x, position, modulation, cond_kv, weights, **options)


__all__ = ["DenoiserWeights", "Modulation", "denoiser"]

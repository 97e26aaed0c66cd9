"""One block of the denoiser. The specification is `reference.py`."""

from torch import Tensor

from ..checks import check_block
from ..dispatch import choose, head_facts, implementation, run_reference, wanting, wants_gradient
from . import cuda, native, reference
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
    """Self-attention, cross-attention and MLP with adaLN-Zero (Eq. 2); shapes in `reference.denoiser_block`.

    Weights have the dtype of `x`, or are bfloat16 and widened to it; `torch.autocast` changes nothing. Tokens that
    `token_mask` leaves out hold numbers without meaning, and what is asked of their gradient is not looked at.

    Raises:
        UsageError: a shape, dtype or device that does not fit.
        BackendUnavailable: the named backend cannot run this call; "cpp" and "cuda" have no gradient with respect to
            bfloat16 weights of another `x`, and the gradients of all but the reference are differentiable once.

    Cost: one native call on "cpp" and one for all gradients; the weights are packed at the first call and again
    whenever they changed. On "triton" eight launches, and 16 for the gradients; on "cuda" three, and seven.
    """
    check_block("denoiser_block", x, modulation, cond_kv, weights, num_heads, token_mask, key_mask)
    options = dict(num_heads=num_heads, token_mask=token_mask, key_mask=key_mask)
    needs_grad = wants_gradient((x, modulation, cond_kv, *weights))
    grad_of = wanting(x, weights) if needs_grad else ()
    facts = head_facts(x.shape[2], num_heads)
    if x.is_cuda:  # others have no such limits, and numbers here would be fixed in a traced graph
        facts["block"] = cuda.sizes_of(x, weights.fc1_weight, num_heads)
    name = choose("denoiser_block", backend, x, needs_grad, grad_of, **facts)
    if name in ("cpp", "cuda"):
        return native.denoiser_block(x, modulation, cond_kv, weights, **options)
    if name == "triton":
        from . import triton_impl

        return triton_impl.denoiser_block(x, modulation, cond_kv, weights, **options)
    function = implementation("denoiser_block", name, reference.denoiser_block)
    return run_reference(function, x, modulation, cond_kv, weights.to(x.dtype), **options)


__all__ = ["BlockWeights", "denoiser_block"]

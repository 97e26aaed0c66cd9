"""Multi-head attention of short sequences. The specification is `reference.py`."""

from torch import Tensor

from ..checks import check_attention
from ..dispatch import choose, head_facts, implementation, run_reference, wants_gradient
from . import native, reference


def cross_attention(
    q: Tensor, k: Tensor, v: Tensor, *, num_heads: int, key_mask: Tensor | None = None, backend: str | None = None
) -> Tensor:
    """softmax(Q K' / sqrt(D)) V in each head (the attention under Eq. 1); shapes in `reference.cross_attention`.

    `torch.autocast` changes nothing: the result has the dtype of `q`.

    Raises:
        UsageError: a shape, dtype or device that does not fit.
        BackendUnavailable: the named backend cannot run this call; "cpp" has no gradients of attention alone, and
            those of "triton" are differentiable once.

    Cost: one native call on "cpp"; on "triton" one launch, and two for the gradients.
    """
    check_attention("cross_attention", q, k, v, num_heads, key_mask)
    heads = head_facts(q.shape[2], num_heads)
    name = choose("cross_attention", backend, q, wants_gradient((q, k, v)), **heads)
    if name == "cpp":
        return native.cross_attention(q, k, v, num_heads=num_heads, key_mask=key_mask)
    if name == "triton":
        from . import triton_impl

        return triton_impl.cross_attention(q, k, v, num_heads=num_heads, key_mask=key_mask)
    function = implementation("cross_attention", name, reference.cross_attention)
    return run_reference(function, q, k, v, num_heads=num_heads, key_mask=key_mask)


__all__ = ["cross_attention"]

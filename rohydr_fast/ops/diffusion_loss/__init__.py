"""Eq. 3 in one call, forward and backward: noise, x_t, K and V, the network, and the loss. The specification is
`reference.py`."""

from collections.abc import Sequence

from torch import Tensor

from ..checks import check_diffusion_loss
from ..dispatch import choose, head_facts, implementation, run_reference, wanting, wants_gradient
from . import native, reference
from .reference import COLUMNS, DenoiserWeights, ForwardSample, Modulation, NoiseKey


def diffusion_loss(
    x_0: Tensor,
    rows: Tensor,
    position: Tensor,
    modulation: Modulation,
    encoded: Tensor,
    kv_weights: Sequence[Tensor],
    kv_biases: Sequence[Tensor],
    weights: DenoiserWeights,
    noise: NoiseKey,
    *,
    loss: str,
    num_heads: int,
    token_mask: Tensor | None = None,
    key_mask: Tensor | None = None,
    backend: str | None = None,
) -> Tensor:
    """L_HDDM of one modality (Eq. 3), a () tensor; arguments as `reference.diffusion_loss`.

    Weights have the dtype of `x_0`, or are bfloat16 and widened to it; `torch.autocast` changes nothing. Tokens that
    `token_mask` leaves out are not looked at.

    Raises:
        UsageError: a shape, dtype or device that does not fit, an empty key set, a row that is not finite, an unknown
            loss, a noise key out of range.
        BackendUnavailable: the named backend cannot run this call; "cpp" has no gradient with respect to x_0, its
            rows, the position and bfloat16 weights, and the gradients of "cpp" and "triton" are differentiable once.

    Cost: one native call on "cpp", which computes the gradients too where any is wanted: a way back then only
    multiplies them by that of the loss. On "triton" the network is that of `denoiser`, and the rest is PyTorch's.
    """
    options = dict(loss=loss, num_heads=num_heads, token_mask=token_mask, key_mask=key_mask)
    check_diffusion_loss(
        "diffusion_loss", x_0, rows, position, modulation, encoded, kv_weights, kv_biases, weights, noise, **options
    )
    tensors = [*weights.tensors(), *kv_weights, *kv_biases]
    needs_grad = wants_gradient((x_0, rows, position, *modulation, encoded, *tensors))
    grad_of = wanting(x_0, tensors, x_0=x_0, rows=rows, position=position) if needs_grad else ()
    heads = head_facts(position.shape[1], num_heads)
    name = choose("diffusion_loss", backend, x_0, needs_grad, grad_of, **heads)
    if name == "cpp":
        return native.diffusion_loss(
            x_0, rows, position, modulation, encoded, kv_weights, kv_biases, weights, noise, needs_grad, **options
        )
    if name == "triton":
        from ..denoiser.triton_impl import denoiser
        from ..triton.calls import without_padding

        options["network"], x_0 = denoiser, without_padding(x_0, token_mask)
    return run_reference(
        implementation("diffusion_loss", name, reference.diffusion_loss),
        x_0,
        rows,
        position,
        modulation,
        encoded,
        [weight.to(x_0.dtype) for weight in kv_weights],
        [bias.to(x_0.dtype) for bias in kv_biases],
        weights.to(x_0.dtype),
        noise,
        **options,
    )


__all__ = ["COLUMNS", "DenoiserWeights", "ForwardSample", "Modulation", "NoiseKey", "diffusion_loss"]

"""One step of Eq. 2 from what the network gave."""

import triton
import triton.language as tl
from torch import Tensor

from .device import narrow
from .launch import launch

_BLOCK = 512


@triton.jit
def reverse_step_kernel(
    x_ptr,  # (B * T, C)
    both_ptr,  # (B * T, 2 C): the prediction, then v
    coefficients_ptr,  # (4,) float32
    z_ptr,  # (B * T, C) float32
    mask_ptr,  # (B * T,) bool, or None
    out_ptr,  # (B * T, C); may be x
    elements,
    C: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """out = c_x x + c_p prediction + sigma z, log sigma^2 = u log beta + (1 - u) log btilde, u = (v + 1) / 2.

    A program has BLOCK elements. Where a token is masked the result is 0.
    """
    element = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    inside = element < elements
    token, channel = element // C, element % C
    if mask_ptr is not None:
        exists = tl.load(mask_ptr + token, mask=inside, other=0).to(tl.int1)
    else:
        exists = inside
    c_x = tl.load(coefficients_ptr)
    c_p = tl.load(coefficients_ptr + 1)
    log_beta = tl.load(coefficients_ptr + 2)
    log_posterior = tl.load(coefficients_ptr + 3)
    x = tl.load(x_ptr + element, mask=exists, other=0.0).to(tl.float32)
    prediction = tl.load(both_ptr + token * (2 * C) + channel, mask=exists, other=0.0).to(tl.float32)
    v = tl.load(both_ptr + token * (2 * C) + C + channel, mask=exists, other=0.0).to(tl.float32)
    z = tl.load(z_ptr + element, mask=exists, other=0.0)
    u = (v + 1.0) * 0.5
    sigma = tl.exp(0.5 * (u * log_beta + (1.0 - u) * log_posterior))
    out = c_x * x + c_p * prediction + tl.where(z == 0.0, 0.0, sigma * z)  # no noise is none, however large sigma is
    tl.store(out_ptr + element, narrow(out, out_ptr.dtype.element_ty), mask=inside)


def reverse_step(
    x: Tensor, both: Tensor, coefficients: Tensor, z: Tensor, token_mask: Tensor | None, out: Tensor
) -> None:
    """Writes x_{t-1} into `out`, which may be `x`; zeros at tokens that `token_mask` leaves out.

    Args:
        x, out: (B, T, C) contiguous.
        both: (B, T, 2 C), the prediction and v.
        coefficients: (4,) float32, a row of `Schedule.table`.
        z: (B, T, C) float32 contiguous, 0 at the last step.
        token_mask: (B, T) bool contiguous, or None.
    """
    grid = (triton.cdiv(x.numel(), _BLOCK),)
    launch(
        reverse_step_kernel, grid, x, both, coefficients, z, token_mask, out,
        elements=x.numel(), C=x.shape[2], BLOCK=_BLOCK, num_warps=4,
    )  # fmt: skip

"""One block by the Triton kernels. Arguments are those of the package's public function, already checked."""

from torch import Tensor

from ..dispatch import wants_gradient
from ..triton.calls import current_device, without_padding
from ..triton.operations import triton_block
from .reference import BlockWeights


def denoiser_block(
    x: Tensor,
    modulation: Tensor,
    cond_kv: Tensor,
    weights: BlockWeights,
    *,
    num_heads: int,
    token_mask: Tensor | None,
    key_mask: Tensor | None,
) -> Tensor:
    """(B, T, W), see `reference.denoiser_block`; zeros at tokens that `token_mask` leaves out."""
    rows = modulation if modulation.dim() == 3 else modulation[None]  # (1 or B, 9, W)
    parameters = list(weights.to(x.dtype))
    keep = wants_gradient((x, rows, cond_kv, *parameters))
    with current_device(x):
        h = without_padding(x, token_mask)
        out = triton_block(h, rows, cond_kv, parameters, num_heads, token_mask, key_mask, keep)[0]
        return without_padding(out, token_mask)

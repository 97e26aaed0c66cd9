"""One block by the native core. Arguments are those of the package's public function, already checked."""

from torch import Tensor

from .. import recording
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
    return recording.call("denoiser_block", x, rows, cond_kv, list(weights), num_heads, token_mask, key_mask)

"""The network once by the native core. Arguments are those of the package's public function, already checked."""

import torch
from torch import Tensor

from .. import library  # noqa: F401  registers the operation
from .reference import Modulation


def denoiser(
    x: Tensor,
    position: Tensor,
    modulation: Modulation,
    cond_kv: Tensor,
    weights: list[Tensor],
    *,
    num_heads: int,
    token_mask: Tensor | None,
    key_mask: Tensor | None,
) -> tuple[Tensor, Tensor]:
    """(B, T, C) twice, see `reference.denoiser`; zeros at tokens that `token_mask` leaves out."""
    rows = modulation if modulation.final.dim() == 3 else [part[None] for part in modulation]  # 1 or B of them
    both = torch.ops.rohydr_fast.denoiser(x, position, *rows, cond_kv, weights, num_heads, token_mask, key_mask)
    prediction, v = both.chunk(2, -1)
    return prediction, v

"""The network once by the native core. Arguments are those of the package's public function, already checked."""

from torch import Tensor

from .. import recording
from ..dispatch import wants_gradient
from ..tapes import tape_size
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
    inputs = (x, position, *rows, cond_kv, weights)
    size = tape_size(x, num_heads, weights, token_mask, 1) if wants_gradient([*inputs[:-1], *weights]) else 0
    if size:
        both, _ = recording.call("denoiser_with_tape", *inputs, num_heads, token_mask, key_mask, size)
    else:
        both = recording.call("denoiser", *inputs, num_heads, token_mask, key_mask)
    prediction, v = both.chunk(2, -1)
    return prediction, v

"""How many activations a forward pass leaves for the way back."""

import torch
from torch import Tensor

from .. import _native
from .packing import CACHE, as_optional_array


def tape_size(x: Tensor, num_heads: int, weights: list[Tensor], token_mask: Tensor | None, steps: int) -> int:
    """Elements of the tape of `steps` steps from `x` (B, T, C); 0 where nothing can be kept.

    A graph of `torch.compile` has no tape, because its size depends on what the mask holds.
    """
    if steps == 0 or x.numel() == 0 or torch.compiler.is_compiling():
        return 0
    packed = CACHE.get("denoiser", weights, num_heads, x.dtype == torch.float64)
    return _native.load().reverse_loop_tape_size(packed, *x.shape[:2], as_optional_array(token_mask), steps)

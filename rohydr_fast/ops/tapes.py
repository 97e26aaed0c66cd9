"""Activations that a forward pass leaves for the way back: how many, and memory for them."""

import mmap

import torch
from torch import Tensor

from .. import _native
from .packing import CACHE, as_optional_array

_LARGE = 4 * 2**20
"""Bytes from which on memory is asked for in large pages. A first write to memory in small ones costs more than what is
written there: 0.4 ms a MB on a virtual machine, of which large ones leave a fifth."""


def tape_size(x: Tensor, num_heads: int, weights: list[Tensor], token_mask: Tensor | None, steps: int) -> int:
    """Elements of the tape of `steps` steps from `x` (B, T, C); 0 where nothing can be kept.

    A graph of `torch.compile` has no tape, because its size depends on what the mask holds.
    """
    if steps == 0 or x.numel() == 0 or torch.compiler.is_compiling():
        return 0
    packed = CACHE.get("denoiser", weights, num_heads, x.dtype == torch.float64)
    return _native.load().reverse_loop_tape_size(packed, *x.shape[:2], as_optional_array(token_mask), steps)


def empty_tape(size: int, dtype: torch.dtype) -> Tensor:
    """`size` elements without content."""
    count = size * dtype.itemsize
    if count < _LARGE or not hasattr(mmap, "MADV_HUGEPAGE"):
        return torch.empty(size, dtype=dtype)
    memory = mmap.mmap(-1, count, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    try:
        memory.madvise(mmap.MADV_HUGEPAGE)
    except OSError:  # a kernel without large pages
        pass
    return torch.frombuffer(memory, dtype=dtype)

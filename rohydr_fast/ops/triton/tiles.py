"""How the kernels cut their work: fixed functions of the shapes, so that a shape always gives the same bits.

There is no autotuning: its choice would change the order of sums from run to run, and the networks here are so small
that launches weigh more than tiles.
"""

import torch

from .status import MAX_WIDTH

_ROW_ELEMENTS = 8192
_PROGRAMS = 264  # two for each of an H100's 132 multiprocessors


def power(size: int, least: int, most: int) -> int:
    """The first power of two from `least` on that holds `size`, at most `most`."""
    block = least
    while block < size and block < most:
        block *= 2
    return block


def side(dtype: torch.dtype, head_dim: int = 0) -> int:
    """Rows or columns that a program takes at most: 64 on tensor cores, 32 where float32 is multiplied in registers."""
    return 64 if dtype == torch.bfloat16 and head_dim <= 32 else 32


def row_block(tokens: int, dtype: torch.dtype, width: int = 0) -> int:
    """Tokens of one sample that a program takes; fewer where it holds rows of a large `width`."""
    return power(tokens, 16, min(side(dtype), max(16, _ROW_ELEMENTS // power(width, 16, MAX_WIDTH))))


def head_block(head_dim: int) -> int:
    """Channels of a head, padded to what a matrix instruction takes."""
    return power(head_dim, 16, 64)


def warps(elements: int) -> int:
    """Warps of a program that holds so many accumulators: at most 32 of them a thread."""
    return 4 if elements <= 4096 else 8


def splits(samples: int, tiles: int) -> int:
    """Parts of the batch whose weight gradients are summed apart, and then in order; `tiles` programs take each."""
    return max(1, min(samples, _PROGRAMS // max(1, tiles)))


def precision(dtype: torch.dtype) -> str:
    """How `tl.dot` multiplies: float32 as PyTorch does by default, without TF32."""
    return "ieee" if dtype == torch.float32 else "tf32"  # bfloat16 does not look at it

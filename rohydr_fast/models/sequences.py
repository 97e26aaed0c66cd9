"""Ragged sequences: a representation is (B, T, C) with the real tokens first, and lengths (B,)."""

import math
from typing import NamedTuple

import torch
from torch import Tensor


class Sequence(NamedTuple):
    """The representation x_m of one modality for a batch; rows after a sample's length are zero."""

    x: Tensor  # (B, T, C)
    lengths: Tensor  # (B,) int64; 0 where the sample lacks the modality

    def mask(self) -> Tensor:
        """(B, T) bool, True at real tokens."""
        return token_mask(self.lengths, self.x.shape[1])


def token_mask(lengths: Tensor, tokens: int) -> Tensor:
    """(B, T) bool, True at the first `lengths` tokens of each row."""
    return torch.arange(tokens, device=lengths.device) < lengths[:, None]


def zero_padding(x: Tensor, mask: Tensor) -> Tensor:
    """`x` (B, T, C) with zeros where `mask` (B, T) is False, whatever stood there (NaN too)."""
    return torch.where(mask[..., None], x, 0)


def sinusoidal(values: Tensor, width: int, max_period: float = 10_000.0) -> Tensor:
    """Cosines, then sines, of `values` at `width` / 2 geometric frequencies: (..., width); odd widths end in 0.

    Used for positions, so that sequences of any length have one, and for diffusion steps.
    """
    half = width // 2
    rates = torch.exp(-math.log(max_period) * torch.arange(half, dtype=torch.float32, device=values.device) / half)
    angles = values[..., None].float() * rates
    parts = [angles.cos(), angles.sin()]
    if width % 2:
        parts.append(torch.zeros_like(angles[..., :1]))
    return torch.cat(parts, -1)


def positions(tokens: int, width: int, like: Tensor) -> Tensor:
    """Sinusoidal positions (T, width) with the dtype and device of `like`."""
    return sinusoidal(torch.arange(tokens, device=like.device), width).to(like.dtype)

"""Ragged sequences: a representation is (B, T, C) with the real tokens first, and lengths (B,)."""

import math
from functools import lru_cache
from typing import NamedTuple

import torch
from torch import Tensor

from ..ops.dispatch import in_func_transform


class Sequence(NamedTuple):
    """The representation x_m of one modality for a batch; rows after a sample's length are zero."""

    x: Tensor  # (B, T, C)
    lengths: Tensor  # (B,) int64; 0 where the sample lacks the modality

    def mask(self) -> Tensor:
        """(B, T) bool, True at real tokens."""
        return token_mask(self.lengths, self.x.shape[1])


def token_mask(lengths: Tensor, tokens: int | None = None) -> Tensor:
    """(B, T) bool, True at the first `lengths` tokens of each row. T is `tokens`, by default that of the longest."""
    tokens = int(lengths.max()) if tokens is None else tokens
    return torch.arange(tokens, device=lengths.device) < lengths[:, None]


def zero_padding(x: Tensor, mask: Tensor) -> Tensor:
    """`x` (B, T, C) with zeros where `mask` (B, T) is False, whatever stood there (NaN too)."""
    return torch.where(mask[..., None], x, 0)


def sinusoidal(
    values: Tensor, width: int, max_period: float = 10_000.0, device: torch.device | None = None
) -> Tensor:
    """Cosines, then sines, of `values` at `width` / 2 geometric frequencies: (..., width); odd widths end in 0.

    Used for positions, so that sequences of any length have one, and for diffusion steps. The result lies on `device`,
    by default that of `values`. That of values on the CPU may be shared with later calls: read it only.
    """
    device = values.device if device is None else device
    if type(values) is Tensor and values.is_cpu and not torch.compiler.is_compiling() and not in_func_transform():
        content = values.numpy().tobytes()
        return _remembered(content, values.dtype, tuple(values.shape), width, max_period, device)
    return _sinusoidal(values.to(device), width, max_period)


@lru_cache(maxsize=128)
def _remembered(
    content: bytes, dtype: torch.dtype, shape: tuple[int, ...], width: int, max_period: float, device: torch.device
) -> Tensor:
    """On the CPU not for the time that it saves: torch computes cosines on its thread pool, whose threads then spin for
    some milliseconds on cores that the native core is about to use. On a device it spares nine launches."""
    with torch.inference_mode(False), torch.no_grad():
        values = torch.frombuffer(bytearray(content), dtype=dtype) if content else torch.empty(0, dtype=dtype)
        return _sinusoidal(values.view(shape), width, max_period).to(device)


def _sinusoidal(values: Tensor, width: int, max_period: float) -> Tensor:
    half = width // 2
    rates = torch.exp(-math.log(max_period) * torch.arange(half, dtype=torch.float32, device=values.device) / half)
    angles = values[..., None].float() * rates
    parts = [angles.cos(), angles.sin()]
    if width % 2:
        parts.append(torch.zeros_like(angles[..., :1]))
    return torch.cat(parts, -1)


def positions(tokens: int, width: int, like: Tensor) -> Tensor:
    """Sinusoidal positions (T, width) with the dtype and device of `like`."""
    where = like.device if torch.compiler.is_compiling() else "cpu"  # a graph has no use for a copy from the CPU
    return sinusoidal(torch.arange(tokens, device=where), width, device=like.device).to(like.dtype)

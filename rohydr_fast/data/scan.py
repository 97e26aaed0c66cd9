"""Passes over feature arrays in chunks, so that a memory-mapped file is never in memory whole."""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from .mapping import CHUNK, release

STD_FLOOR = 1e-6
"""A channel whose standard deviation is below this is constant: it is divided by 1."""


@dataclass(frozen=True)
class Scan:
    """What one pass over a (N, T, D) array finds."""

    nonzero: np.ndarray  # (N, T) bool: the row holds a finite value other than 0
    nan: int
    positive_inf: int  # float64 values beyond float32's range count as infinite
    negative_inf: int

    @property
    def nonfinite(self) -> int:
        return self.nan + self.positive_inf + self.negative_inf


def chunks(array: np.ndarray) -> Iterator[tuple[int, np.ndarray]]:
    """Yield (first row, float array of some rows) of a (N, ...) array; float64 comes as float32.

    Mapped pages are taken out of memory when the next chunk is asked for.
    """
    rows = max(1, CHUNK // max(1, array[:1].nbytes))
    for first in range(0, len(array), rows):
        block = array[first : first + rows]
        if block.dtype.itemsize == 8:
            with np.errstate(over="ignore"):
                block = block.astype(np.float32)
        yield first, block
        release(array, first, min(first + rows, len(array)))


def scan(array: np.ndarray) -> Scan:
    """Find the rows with content and count what is not finite, in one pass over a (N, T, D) array."""
    nonzero = np.zeros(array.shape[:2], bool)
    nan = positive = negative = 0
    for first, block in chunks(array):
        content = block != 0
        finite = np.isfinite(block)
        if not finite.all():
            odd = block[~finite]
            nan += int(np.isnan(odd).sum())
            positive += int((odd == np.inf).sum())
            negative += int((odd == -np.inf).sum())
            content &= finite
        nonzero[first : first + len(block)] = content.any(axis=2)
    return Scan(nonzero, nan, positive, negative)


def real_rows(starts: np.ndarray, lengths: np.ndarray, steps: int) -> np.ndarray:
    """(N, T) bool: the row is a real token."""
    position = np.arange(steps)
    return (position >= starts[:, None]) & (position < (starts + lengths)[:, None])


@dataclass(frozen=True)
class Statistics:
    """Over the real tokens of a (N, T, D) array, per channel, float64."""

    count: int  # tokens
    mean: np.ndarray  # (D,)
    std: np.ndarray  # (D,) population standard deviation
    minimum: np.ndarray  # (D,)
    maximum: np.ndarray  # (D,)


def statistics(array: np.ndarray, starts: np.ndarray, lengths: np.ndarray, zero_nonfinite: bool = False) -> Statistics:
    """Mean, deviation and range per channel, accumulated in float64 chunk by chunk (Chan's update)."""
    width = array.shape[2]
    count, mean, squares = 0, np.zeros(width), np.zeros(width)
    low, high = np.full(width, np.inf), np.full(width, -np.inf)
    for first, block in chunks(array):
        rows = slice(first, first + len(block))
        tokens = block[real_rows(starts[rows], lengths[rows], array.shape[1])].astype(np.float64)  # (tokens, D)
        if not len(tokens):
            continue
        if zero_nonfinite:
            np.nan_to_num(tokens, copy=False, nan=0.0, posinf=0.0, neginf=0.0)
        here, total = tokens.mean(axis=0), count + len(tokens)
        shift = here - mean
        np.minimum(low, tokens.min(axis=0), out=low)
        np.maximum(high, tokens.max(axis=0), out=high)
        tokens -= here
        squares += np.einsum("nd,nd->d", tokens, tokens) + shift**2 * (count * len(tokens) / total)
        mean += shift * (len(tokens) / total)
        count = total
    if count == 0:
        low, high = np.zeros(width), np.zeros(width)
    return Statistics(count, mean, np.sqrt(squares / max(count, 1)), low, high)

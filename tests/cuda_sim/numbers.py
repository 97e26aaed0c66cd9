"""bfloat16 and tf32 in numpy, poisoned outputs, and the distance to float64."""

import numpy as np


def to_bf16(values: np.ndarray) -> np.ndarray:
    """float32 -> the uint16 of bfloat16, rounded to nearest even."""
    bits = np.ascontiguousarray(values, dtype=np.float32).view(np.uint32)
    rounded = (bits + np.uint32(0x7FFF) + ((bits >> np.uint32(16)) & np.uint32(1))) >> np.uint32(16)
    return np.where(np.isnan(values), np.uint16(0x7FFF), rounded.astype(np.uint16))


def from_bf16(bits: np.ndarray) -> np.ndarray:
    """The uint16 of bfloat16 -> float32, exact."""
    return (bits.astype(np.uint32) << np.uint32(16)).view(np.float32)


def to_tf32(values: np.ndarray) -> np.ndarray:
    """float32 rounded to 10 stored bits, ties away from zero, as cvt.rna.tf32 does."""
    bits = np.ascontiguousarray(values, dtype=np.float32).view(np.uint32)
    return ((bits + np.uint32(0x1000)) & np.uint32(0xFFFFE000)).view(np.float32)


def poisoned(shape, dtype) -> np.ndarray:
    """An output that nothing has been written to: NaN, or the largest unsigned integer."""
    array = np.empty(shape, dtype)
    array.view(np.uint8).fill(0xFF)
    return array


def read_only(array: np.ndarray) -> np.ndarray:
    """The array as an input: a kernel that writes to it fails."""
    array = np.ascontiguousarray(array)
    array.flags.writeable = False
    return array

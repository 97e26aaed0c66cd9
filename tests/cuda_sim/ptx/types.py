"""PTX types as numpy types, and the roundings that numpy lacks.

A register is an array of unsigned integers of its width, one for each thread; a predicate is an array of bool.
"""

import numpy as np

DTYPES = {
    "pred": np.bool_,
    **{f"b{8 * width}": np.dtype(f"u{width}") for width in (1, 2, 4, 8)},
    **{f"u{8 * width}": np.dtype(f"u{width}") for width in (1, 2, 4, 8)},
    **{f"s{8 * width}": np.dtype(f"i{width}") for width in (1, 2, 4, 8)},
    "f32": np.dtype("f4"),
    "f64": np.dtype("f8"),
    "f16": np.dtype("f2"),
    # No numpy type: the bits.
    "bf16": np.dtype("u2"),
    "f16x2": np.dtype("u4"),
    "bf16x2": np.dtype("u4"),
    "tf32": np.dtype("u4"),
}
UNSIGNED = {width: np.dtype(f"u{width}") for width in (1, 2, 4, 8)}
SIGNED = {width: np.dtype(f"i{width}") for width in (1, 2, 4, 8)}
_TINY = np.finfo(np.float32).tiny


def width_of(name: str) -> int:
    """Bytes of a type; 0 for a predicate."""
    return 0 if name == "pred" else np.dtype(DTYPES[name]).itemsize


def is_float(name: str) -> bool:
    return name in ("f32", "f64", "f16", "bf16")


def from_bf16(bits: np.ndarray) -> np.ndarray:
    """uint16 -> float32, exact."""
    return (np.asarray(bits).astype(np.uint32) << np.uint32(16)).view(np.float32)


def to_bf16(values: np.ndarray) -> np.ndarray:
    """float32 or float64 -> uint16, rounded once to nearest even; NaN becomes 0x7FFF."""
    values = np.asarray(values)
    single = round_to_odd(values) if values.dtype == np.float64 else values
    bits = np.ascontiguousarray(single).view(np.uint32)
    rounded = (bits + np.uint32(0x7FFF) + ((bits >> np.uint32(16)) & np.uint32(1))) >> np.uint32(16)
    return np.where(np.isnan(values), np.uint16(0x7FFF), rounded.astype(np.uint16))


def round_to_odd(values: np.ndarray) -> np.ndarray:
    """float64 -> float32 such that a later rounding to fewer bits is as if it were the only one."""
    nearest = values.astype(np.float32)
    wide = nearest.astype(np.float64)
    bits = np.ascontiguousarray(nearest).view(np.uint32)
    too_far = np.abs(wide) > np.abs(values)  # one step towards zero is one less, as an integer
    cut = np.where(too_far, bits - np.uint32(1), bits)
    inexact = (wide != values) & np.isfinite(values)
    return np.where(inexact, cut | np.uint32(1), bits).view(np.float32)


def round_tf32(values: np.ndarray) -> np.ndarray:
    """float32 -> the word of a tf32 operand, ties away from zero."""
    bits = np.ascontiguousarray(values).view(np.uint32)
    return np.where(np.isfinite(values), (bits + np.uint32(0x1000)) & np.uint32(0xFFFFE000), bits)


def flush(values: np.ndarray) -> np.ndarray:
    """Subnormal float32 -> zero of the same sign."""
    return np.where(np.abs(values) < _TINY, np.copysign(np.float32(0), values), values)


def _two_sum(a: np.ndarray, b: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The rounded sum and what was lost, exact (Knuth)."""
    total = a + b
    back = total - a
    return total, (a - (total - back)) + (b - back)


def _odd_sum(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """a + b in float64, with the last bit 1 where that is inexact: a later rounding is as if it were the only one."""
    total, lost = _two_sum(a, b)
    bits = np.ascontiguousarray(total).view(np.int64)
    adjust = (lost != 0) & (bits & 1 == 0) & np.isfinite(total)
    step = np.where((lost > 0) == (total > 0), 1, -1)
    return np.where(adjust, bits + step, bits).view(np.float64)


def fma(a: np.ndarray, b: np.ndarray, c: np.ndarray) -> np.ndarray:
    """a b + c in float32 with one rounding."""
    product = np.asarray(a).astype(np.float64) * np.asarray(b)  # exact
    return _odd_sum(product, np.asarray(c).astype(np.float64)).astype(np.float32)


def fma_double(a: np.ndarray, b: np.ndarray, c: np.ndarray) -> np.ndarray:
    """a b + c in float64 with one rounding, while nothing overflows (Boldo and Melquiond, IEEE TC 57 (4), 2008)."""

    def halves(x):
        high = x * 134217729.0 - (x * 134217729.0 - x)  # 2^27 + 1
        return high, x - high

    a, b, c = (np.asarray(x, dtype=np.float64) for x in (a, b, c))
    product = a * b
    (a_high, a_low), (b_high, b_low) = halves(a), halves(b)
    lost = a_low * b_low - (((product - a_high * b_high) - a_low * b_high) - a_high * b_low)
    high, low = _two_sum(c, lost)
    top, rest = _two_sum(product, high)
    result = top + _odd_sum(rest, low)
    return np.where(np.isfinite(product + c) & np.isfinite(result), result, product + c)

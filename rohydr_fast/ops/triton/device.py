"""What every kernel computes with: products, rounding, GELU, LayerNorm's moments.

Kernels load, widen to float32, compute, and `narrow` before they store. The interpreter (TRITON_INTERPRET=1) multiplies
and adds bfloat16 as if its bits were integers, and truncates where it should round: `product` and `narrow` are exact
there too, and cost nothing on a device.
"""

import triton
import triton.language as tl
from triton.runtime.interpreter import InterpretedFunction

LAYER_NORM_EPS = tl.constexpr(1e-6)  # that of denoiser_block.reference


@triton.jit
def _probe():
    pass


INTERPRETED = tl.constexpr(isinstance(_probe, InterpretedFunction))
"""Triton was imported with TRITON_INTERPRET=1."""


@triton.jit
def product(a, b, sum, PRECISION: tl.constexpr):
    """sum + a @ b in float32."""
    if INTERPRETED:
        return tl.dot(a.to(tl.float32), b.to(tl.float32), sum, input_precision="ieee")  # exact for bfloat16 too
    else:
        return tl.dot(a, b, sum, input_precision=PRECISION)


@triton.jit
def narrow(x, dtype: tl.constexpr):
    """float32 to the dtype of a tensor, to the nearest and to even."""
    if dtype == tl.bfloat16:
        if INTERPRETED:
            bits = x.to(tl.uint32, bitcast=True)
            bits = (bits + 0x7FFF + ((bits >> 16) & 1)) >> 16
            return bits.to(tl.uint16).to(tl.bfloat16, bitcast=True)
        else:
            return x.to(tl.bfloat16)
    else:
        return x


@triton.jit
def _sigmoid_of_gelu(x):
    """gelu(x) = x s(x) with the tanh form, s = 1 / (1 + exp(-2 sqrt(2 / pi) (x + 0.044715 x^3)))."""
    return 1.0 / (1.0 + tl.exp(-1.5957691216057308 * (x + 0.044715 * x * x * x)))


@triton.jit
def gelu(x):
    return x * _sigmoid_of_gelu(x)


@triton.jit
def gelu_slope(x):
    """d gelu / dx."""
    s = _sigmoid_of_gelu(x)
    return s + x * s * (1.0 - s) * 1.5957691216057308 * (1.0 + 0.134145 * x * x)


@triton.jit
def load_block(pointer, row, column, row_mask, column_mask):
    """pointer[row + column] as (rows, columns), 0 outside; `row` are int64 offsets."""
    return tl.load(pointer + row[:, None] + column[None, :], mask=row_mask[:, None] & column_mask[None, :], other=0.0)


@triton.jit
def moments(x_ptr, row, row_mask, WIDTH: tl.constexpr, BLOCK: tl.constexpr):
    """Mean and 1 / sqrt(variance + eps) of rows of `WIDTH` numbers; `row` are int64 offsets."""
    total = tl.zeros_like(row).to(tl.float32)
    for start in range(0, WIDTH, BLOCK):
        column = start + tl.arange(0, BLOCK)
        total += tl.sum(load_block(x_ptr, row, column, row_mask, column < WIDTH).to(tl.float32), 1)
    mean = total / WIDTH
    squares = tl.zeros_like(mean)
    for start in range(0, WIDTH, BLOCK):
        column = start + tl.arange(0, BLOCK)
        x = load_block(x_ptr, row, column, row_mask, column < WIDTH).to(tl.float32)
        centred = tl.where(column[None, :] < WIDTH, x - mean[:, None], 0.0)
        squares += tl.sum(centred * centred, 1)
    return mean, 1.0 / tl.sqrt_rn(squares / WIDTH + LAYER_NORM_EPS)


@triton.jit
def modulated(x, mean, inverse, modulation_ptr, column, WIDTH: tl.constexpr):
    """(1 + scale) (x - mean) / deviation + shift; shift is the row at `modulation_ptr`, scale the next one."""
    inside = column < WIDTH
    shift = tl.load(modulation_ptr + column, mask=inside, other=0.0).to(tl.float32)
    scale = tl.load(modulation_ptr + WIDTH + column, mask=inside, other=0.0).to(tl.float32)
    return (x - mean[:, None]) * inverse[:, None] * (1.0 + scale)[None, :] + shift[None, :]

"""Matrix products with what stands before and after them in a block: LayerNorm and modulation, GELU, gate, residual."""

import torch
import triton
import triton.language as tl
from torch import Tensor

from . import tiles
from .device import gelu, load_block, modulated, moments, narrow, product
from .launch import launch


@triton.jit
def linear_fwd_kernel(
    a_ptr,  # (B, T, K)
    weight_ptr,  # (N, K)
    bias_ptr,  # (N,)
    modulation_ptr,  # (1 or B, R, K), at its first row, or None
    gate_ptr,  # (1 or B, R, N), at its row, or None
    residual_ptr,  # (1 or B, T, N) or None
    out_ptr,  # (B, T, N)
    kept_ptr,  # (B, T, N) or None
    tokens,
    modulation_stride,  # between samples, 0 where they share a row
    residual_stride,
    N: tl.constexpr,
    K: tl.constexpr,
    GELU: tl.constexpr,
    PRECISION: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
):
    """out = residual + gate * f(A W' + b), A modulated or not, f GELU or nothing; kept = A W' + b.

    A program has BLOCK_M tokens of one sample and BLOCK_N columns, and computes the moments of its rows itself.
    """
    blocks = tl.cdiv(tokens, BLOCK_M)
    sample = (tl.program_id(0) // blocks).to(tl.int64)
    token = (tl.program_id(0) % blocks) * BLOCK_M + tl.arange(0, BLOCK_M)
    inside = token < tokens
    row = sample * tokens + token
    n = tl.program_id(1) * BLOCK_N + tl.arange(0, BLOCK_N)
    if modulation_ptr is not None:
        mean, inverse = moments(a_ptr, row * K, inside, K, BLOCK_K)
    sum = tl.zeros([BLOCK_M, BLOCK_N], tl.float32)
    for start in range(0, K, BLOCK_K):
        k = start + tl.arange(0, BLOCK_K)
        a = load_block(a_ptr, row * K, k, inside, k < K)
        if modulation_ptr is not None:
            a = modulated(a.to(tl.float32), mean, inverse, modulation_ptr + sample * modulation_stride, k, K)
            a = narrow(a, a_ptr.dtype.element_ty)
        weight = load_block(weight_ptr, k, n * K, k < K, n < N)  # (BLOCK_K, BLOCK_N)
        sum = product(a, weight, sum, PRECISION)
    out = sum + tl.load(bias_ptr + n, mask=n < N, other=0.0).to(tl.float32)[None, :]
    place = row[:, None] * N + n[None, :]
    whole = inside[:, None] & (n < N)[None, :]
    if kept_ptr is not None:
        tl.store(kept_ptr + place, narrow(out, kept_ptr.dtype.element_ty), mask=whole)
    if GELU:
        out = gelu(out)
    if gate_ptr is not None:
        gate = tl.load(gate_ptr + sample * modulation_stride + n, mask=n < N, other=0.0)
        out = out * gate.to(tl.float32)[None, :]
    if residual_ptr is not None:
        residual = load_block(residual_ptr + sample * residual_stride, token.to(tl.int64) * N, n, inside, n < N)
        out = out + residual.to(tl.float32)
    tl.store(out_ptr + place, narrow(out, out_ptr.dtype.element_ty), mask=whole)


def linear(
    a: Tensor,
    weight: Tensor,
    bias: Tensor,
    *,
    modulation: Tensor | None = None,
    gate: Tensor | None = None,
    residual: Tensor | None = None,
    gelu: bool = False,
    keep: bool = False,
) -> tuple[Tensor, Tensor | None]:
    """residual + gate * f(modulate(a) W' + b), and what f and the gate were given.

    Args:
        a: (B, T, K) contiguous.
        weight: (N, K) contiguous.
        bias: (N,).
        modulation: (1 or B, 2, K) view of shift and scale, or None: `a` as it is.
        gate: (1 or B, N) view, or None.
        residual: (1 or B, T, N) contiguous, or None.
        gelu: f is GELU in its tanh form, else nothing.
        keep: return A W' + b too, (B, T, N); else None.
    """
    batch, tokens, depth = a.shape
    columns = weight.shape[0]
    out = a.new_empty((batch, tokens, columns))
    kept = torch.empty_like(out) if keep else None
    rows = modulation if gate is None else gate
    block_m, block_n = tiles.row_block(tokens, a.dtype), tiles.power(columns, 16, tiles.side(a.dtype))
    launch(
        linear_fwd_kernel,
        (batch * triton.cdiv(tokens, block_m), triton.cdiv(columns, block_n)),
        a,
        weight,
        bias,
        modulation,
        gate,
        residual,
        out,
        kept,
        tokens=tokens,
        modulation_stride=sample_stride(rows),
        residual_stride=sample_stride(residual),
        N=columns,
        K=depth,
        GELU=gelu,
        PRECISION=tiles.precision(a.dtype),
        BLOCK_M=block_m,
        BLOCK_N=block_n,
        BLOCK_K=tiles.power(depth, 16, 32),
        num_warps=4,
        num_stages=2,
    )
    return out, kept


def sample_stride(tensor: Tensor | None) -> int:
    """Elements from one sample to the next, 0 where all share one."""
    return 0 if tensor is None or tensor.shape[0] == 1 else tensor.stride(0)

"""The way back through `linear`: gradients of its input, of the modulation and the gate, and of weights.

No sum is made by atomic additions: each program writes its part, and parts are added in their order.
"""

from collections.abc import Sequence

import torch
import triton
import triton.language as tl
from torch import Tensor

from . import status, tiles
from .device import gelu_slope, load_block, modulated, moments, narrow, product
from .launch import launch
from .linear import sample_stride


@triton.jit
def _gated_block(gradient_ptr, gate_ptr, row, n, inside, N: tl.constexpr):
    """The gradient of the product, (rows, columns) in the dtype it is stored in: that of the result times the gate."""
    gradient = load_block(gradient_ptr, row * N, n, inside, n < N)
    if gate_ptr is not None:
        gate = tl.load(gate_ptr + n, mask=n < N, other=0.0).to(tl.float32)
        gradient = narrow(gradient.to(tl.float32) * gate[None, :], gradient_ptr.dtype.element_ty)
    return gradient


@triton.jit
def linear_bwd_input_kernel(
    gradient_ptr,  # (B, T, N) of the result
    weight_ptr,  # (N, K)
    gate_ptr,  # (1 or B, R, N), at its row, or None
    branch_ptr,  # (B, T, N): what the gate multiplied; None without a gate
    before_ptr,  # (B, T, K): what GELU was given, or None
    out_ptr,  # (B, T, K)
    parts_ptr,  # (B * row blocks, R, N) float32, at the row of the gate; None without a gate
    tokens,
    gate_stride,  # between samples
    parts_stride,  # between row blocks
    N: tl.constexpr,
    K: tl.constexpr,
    PRECISION: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
):
    """out = ((gradient * gate) W) * gelu'(before); parts: the sum of gradient * branch over a block of tokens.

    A program has BLOCK_M tokens of one sample and BLOCK_K columns; those of the first columns write the parts.
    """
    blocks = tl.cdiv(tokens, BLOCK_M)
    sample = (tl.program_id(0) // blocks).to(tl.int64)
    token = (tl.program_id(0) % blocks) * BLOCK_M + tl.arange(0, BLOCK_M)
    inside = token < tokens
    row = sample * tokens + token
    k = tl.program_id(1) * BLOCK_K + tl.arange(0, BLOCK_K)
    sum = tl.zeros([BLOCK_M, BLOCK_K], tl.float32)
    for start in range(0, N, BLOCK_N):
        n = start + tl.arange(0, BLOCK_N)
        gate = gate_ptr
        if gate_ptr is not None:
            gate = gate_ptr + sample * gate_stride
        gradient = _gated_block(gradient_ptr, gate, row, n, inside, N)
        sum = product(gradient, load_block(weight_ptr, n * K, k, n < N, k < K), sum, PRECISION)
    if parts_ptr is not None:
        if tl.program_id(1) == 0:
            for start in range(0, N, BLOCK_N):
                n = start + tl.arange(0, BLOCK_N)
                gradient = load_block(gradient_ptr, row * N, n, inside, n < N).to(tl.float32)
                branch = load_block(branch_ptr, row * N, n, inside, n < N).to(tl.float32)
                part = parts_ptr + tl.program_id(0).to(tl.int64) * parts_stride + n
                tl.store(part, tl.sum(gradient * branch, 0), mask=n < N)
    if before_ptr is not None:
        sum = sum * gelu_slope(load_block(before_ptr, row * K, k, inside, k < K).to(tl.float32))
    whole = inside[:, None] & (k < K)[None, :]
    tl.store(out_ptr + row[:, None] * K + k[None, :], narrow(sum, out_ptr.dtype.element_ty), mask=whole)


@triton.jit
def modulated_bwd_input_kernel(
    gradient_ptr,  # (B, T, N) of the product
    weight_ptr,  # (N, W)
    x_ptr,  # (B, T, W)
    modulation_ptr,  # (1 or B, R, W), at the row of the shift
    residual_ptr,  # (B, T, W): the gradient that x has from elsewhere, or None
    out_ptr,  # (B, T, W)
    parts_ptr,  # (B * row blocks, R, W) float32, at the row of the shift
    tokens,
    modulation_stride,  # between samples
    parts_stride,  # between row blocks
    N: tl.constexpr,
    W: tl.constexpr,
    PRECISION: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_W: tl.constexpr,
):
    """Through the product, the modulation and LayerNorm; parts: gradients of shift and scale of a block of tokens.

    A program has BLOCK_M tokens of one sample, with whole rows: LayerNorm's gradient needs their sums.
    """
    blocks = tl.cdiv(tokens, BLOCK_M)
    sample = (tl.program_id(0) // blocks).to(tl.int64)
    token = (tl.program_id(0) % blocks) * BLOCK_M + tl.arange(0, BLOCK_M)
    inside = token < tokens
    row = (sample * tokens + token) * W
    w = tl.arange(0, BLOCK_W)
    real = w < W
    sum = tl.zeros([BLOCK_M, BLOCK_W], tl.float32)
    for start in range(0, N, BLOCK_N):
        n = start + tl.arange(0, BLOCK_N)
        gradient = load_block(gradient_ptr, (sample * tokens + token) * N, n, inside, n < N)
        sum = product(gradient, load_block(weight_ptr, n * W, w, n < N, real), sum, PRECISION)
    mean, inverse = moments(x_ptr, row, inside, W, BLOCK_W)
    x = load_block(x_ptr, row, w, inside, real).to(tl.float32)
    normal = tl.where(real[None, :], (x - mean[:, None]) * inverse[:, None], 0.0)
    part = parts_ptr + tl.program_id(0).to(tl.int64) * parts_stride + w
    tl.store(part, tl.sum(sum, 0), mask=real)
    tl.store(part + W, tl.sum(sum * normal, 0), mask=real)
    scale = tl.load(modulation_ptr + sample * modulation_stride + W + w, mask=real, other=0.0).to(tl.float32)
    slope = sum * (1.0 + scale)[None, :]  # 0 where a row has ended
    first = tl.sum(slope, 1) / W
    second = tl.sum(slope * normal, 1) / W
    out = (slope - first[:, None] - normal * second[:, None]) * inverse[:, None]
    if residual_ptr is not None:
        out = out + load_block(residual_ptr, row, w, inside, real).to(tl.float32)
    tl.store(
        out_ptr + row[:, None] + w[None, :],
        narrow(out, out_ptr.dtype.element_ty),
        mask=inside[:, None] & real[None, :],
    )


@triton.jit
def linear_bwd_weight_kernel(
    gradient_ptr,  # (B, T, N)
    a_ptr,  # (B, T, K)
    gate_ptr,  # (1 or B, R, N), at its row, or None
    modulation_ptr,  # (1 or B, R, K), at the row of the shift, or None
    parts_ptr,  # (splits, ...) float32, at the place of W (N, K), which the bias (N,) follows
    samples,
    tokens,
    samples_of_split,
    modulation_stride,  # between samples
    parts_stride,  # between splits
    N: tl.constexpr,
    K: tl.constexpr,
    PRECISION: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
):
    """(gradient * gate)' A and the sum of its rows, over the samples of one split.

    A program has BLOCK_N by BLOCK_K weights and goes through tokens in their order; those of the first columns have the
    bias too.
    """
    split = tl.program_id(2)
    n = tl.program_id(0) * BLOCK_N + tl.arange(0, BLOCK_N)
    k = tl.program_id(1) * BLOCK_K + tl.arange(0, BLOCK_K)
    of_weight = tl.zeros([BLOCK_N, BLOCK_K], tl.float32)
    of_bias = tl.zeros([BLOCK_N], tl.float32)
    for index in range(split * samples_of_split, tl.minimum(samples, (split + 1) * samples_of_split)):
        sample = tl.zeros([1], tl.int64) + index
        offset = tl.sum(sample, 0) * modulation_stride
        for start in range(0, tokens, BLOCK_M):
            token = start + tl.arange(0, BLOCK_M)
            inside = token < tokens
            row = sample * tokens + token
            a = load_block(a_ptr, row * K, k, inside, k < K)
            if modulation_ptr is not None:
                mean, inverse = moments(a_ptr, row * K, inside, K, BLOCK_K)
                a = modulated(a.to(tl.float32), mean, inverse, modulation_ptr + offset, k, K)
                a = narrow(a, a_ptr.dtype.element_ty)
            gate = gate_ptr
            if gate_ptr is not None:
                gate = gate_ptr + offset
            gradient = _gated_block(gradient_ptr, gate, row, n, inside, N)  # 0 at tokens outside
            of_weight = product(tl.trans(gradient), a, of_weight, PRECISION)
            of_bias += tl.sum(gradient.to(tl.float32), 0)
    part = parts_ptr + split.to(tl.int64) * parts_stride
    whole = (n < N)[:, None] & (k < K)[None, :]
    tl.store(part + n[:, None] * K + k[None, :], of_weight, mask=whole)
    if tl.program_id(1) == 0:
        tl.store(part + N * K + n, of_bias, mask=n < N)


def row_parts(x: Tensor, rows: int) -> Tensor:
    """(B * row blocks, R, W) float32 without content, for the gradients of `rows` rows of modulation of x (B, T, W)."""
    batch, tokens, width = x.shape
    blocks = triton.cdiv(tokens, tiles.row_block(tokens, x.dtype, width))
    return x.new_empty((batch * blocks, rows, width), dtype=torch.float32)


def sum_of_rows(parts: Tensor, like: Tensor) -> Tensor:
    """The gradient of the modulation (1 or B, R, W) from its parts (B * row blocks, R, W), in the dtype of `like`."""
    samples = like.shape[0]
    return parts.view(samples, parts.shape[0] // samples, *parts.shape[1:]).sum(1).to(like.dtype)


def weight_parts(x: Tensor, weights: Sequence[Tensor]) -> Tensor:
    """(splits, P) float32 without content, for the gradients of weights and biases one after another."""
    side = tiles.side(x.dtype)
    programs = max(triton.cdiv(w.shape[0], side) * triton.cdiv(w.shape[1], side) for w in weights[::2])
    size = sum(weight.numel() for weight in weights)
    return x.new_empty((tiles.splits(x.shape[0], programs), size), dtype=torch.float32)


def input_gradient(
    gradient: Tensor,
    weight: Tensor,
    *,
    gate: Tensor | None = None,
    branch: Tensor | None = None,
    before: Tensor | None = None,
    parts: Tensor | None = None,
) -> Tensor:
    """The gradient of A in residual + gate * (A W' + b), or of what GELU was given where A is its result.

    Args:
        gradient: (B, T, N) of the result.
        weight: (N, K).
        gate: (1 or B, N) view, or None; with one:
        branch: (B, T, N), A W' + b;
        parts: (B * row blocks, N) float32 view, which receives the gradient of the gate.
        before: (B, T, K), or None where A is no result of GELU.
    """
    batch, tokens, columns = gradient.shape
    depth = weight.shape[1]
    out = gradient.new_empty((batch, tokens, depth))
    block_m = tiles.row_block(tokens, gradient.dtype, columns)
    block_k = tiles.power(depth, 16, tiles.side(gradient.dtype))
    launch(
        linear_bwd_input_kernel,
        (batch * triton.cdiv(tokens, block_m), triton.cdiv(depth, block_k)),
        gradient,
        weight,
        gate,
        branch,
        before,
        out,
        parts,
        tokens=tokens,
        gate_stride=sample_stride(gate),
        parts_stride=0 if parts is None else parts.stride(0),
        N=columns,
        K=depth,
        PRECISION=tiles.precision(gradient.dtype),
        BLOCK_M=block_m,
        BLOCK_N=tiles.power(columns, 16, 32),
        BLOCK_K=block_k,
        num_warps=4,
        num_stages=2,
    )
    return out


def modulated_input_gradient(
    gradient: Tensor, weight: Tensor, x: Tensor, modulation: Tensor, residual: Tensor | None, parts: Tensor
) -> Tensor:
    """The gradient of x in modulate(x) W' + b, plus `residual`.

    Args:
        gradient: (B, T, N) of the product.
        weight: (N, W).
        x: (B, T, W).
        modulation: (1 or B, 2, W) view of shift and scale.
        residual: (B, T, W) contiguous, or None.
        parts: (B * row blocks, 2, W) float32 view, which receives the gradients of shift and scale, see `row_parts`.
    """
    batch, tokens, width = x.shape
    block_m, block_w = tiles.row_block(tokens, x.dtype, width), tiles.power(width, 16, status.MAX_WIDTH)
    out = x.new_empty(x.shape)
    launch(
        modulated_bwd_input_kernel,
        (batch * triton.cdiv(tokens, block_m),),
        gradient,
        weight,
        x,
        modulation,
        residual,
        out,
        parts,
        tokens=tokens,
        modulation_stride=sample_stride(modulation),
        parts_stride=parts.stride(0),
        N=weight.shape[0],
        W=width,
        PRECISION=tiles.precision(x.dtype),
        BLOCK_M=block_m,
        BLOCK_N=tiles.power(weight.shape[0], 16, 32),
        BLOCK_W=block_w,
        num_warps=tiles.warps(block_m * block_w),
        num_stages=2,
    )
    return out


def weight_gradient(
    gradient: Tensor, a: Tensor, gate: Tensor | None, modulation: Tensor | None, parts: Tensor, place: int
) -> int:
    """The gradients of W and b, for each split of the batch.

    Args:
        gradient: (B, T, N) of the result, gated if `gate` is given.
        a: (B, T, K), modulated if `modulation` is given.
        gate, modulation: views as those of `linear`.
        parts: (splits, P) float32, which receives W (N, K) and b (N,) at `place` of each row.

    Returns:
        The place after them.
    """
    (batch, tokens, columns), depth, count = gradient.shape, a.shape[2], parts.shape[0]
    block_n, block_k = (tiles.power(size, 16, tiles.side(a.dtype)) for size in (columns, depth))
    launch(
        linear_bwd_weight_kernel,
        (triton.cdiv(columns, block_n), triton.cdiv(depth, block_k), count),
        gradient,
        a,
        gate,
        modulation,
        parts[:, place:],
        samples=batch,
        tokens=tokens,
        samples_of_split=triton.cdiv(batch, count),
        modulation_stride=sample_stride(modulation if gate is None else gate),
        parts_stride=parts.stride(0),
        N=columns,
        K=depth,
        PRECISION=tiles.precision(a.dtype),
        BLOCK_M=tiles.power(tokens, 16, 32),
        BLOCK_N=block_n,
        BLOCK_K=block_k,
        num_warps=4,
        num_stages=2,
    )
    return place + columns * (depth + 1)

"""Attention of short sequences, forward and back: a program has some queries, or keys, of one head of a sample."""

import math

import torch
import triton
import triton.language as tl
from torch import Tensor

from . import tiles
from .device import load_block, narrow, product
from .launch import launch


@triton.jit
def _keys_that_exist(mask_ptr, sample, key, keys):
    """Whether each key is one, and is not masked; `mask_ptr` (B, S) bool or None."""
    exists = key < keys
    if mask_ptr is not None:
        exists = exists & tl.load(mask_ptr + sample * keys + key, mask=exists, other=0).to(tl.int1)
    return exists


@triton.jit
def attention_fwd_kernel(
    q_ptr,  # (B, T, H * D), rows q_row apart
    k_ptr,  # (B, S, H * D), rows k_row apart
    v_ptr,  # the same
    mask_ptr,  # (B, S) bool, or None
    out_ptr,  # (B, T, H * D) contiguous
    norm_ptr,  # (B, H, T) float32
    tokens,
    keys,
    q_row,
    k_row,
    q_sample,
    k_sample,
    scale,  # log2(e) / sqrt(D)
    HEADS: tl.constexpr,
    D: tl.constexpr,
    PRECISION: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_D: tl.constexpr,
):
    """softmax(scale Q K') V in base 2, and the logarithm of each query's sum; zeros and 0 without any key."""
    sample = (tl.program_id(0) // HEADS).to(tl.int64)
    head = tl.program_id(0) % HEADS
    token = tl.program_id(1) * BLOCK_M + tl.arange(0, BLOCK_M)
    inside = token < tokens
    d = tl.arange(0, BLOCK_D)
    real = d < D
    q = load_block(q_ptr + sample * q_sample + head * D, token.to(tl.int64) * q_row, d, inside, real)
    largest = tl.full([BLOCK_M], float("-inf"), tl.float32)
    total = tl.zeros([BLOCK_M], tl.float32)
    sum = tl.zeros([BLOCK_M, BLOCK_D], tl.float32)
    for start in range(0, keys, BLOCK_N):
        key = start + tl.arange(0, BLOCK_N)
        exists = _keys_that_exist(mask_ptr, sample, key, keys)
        place = sample * k_sample + head * D
        k = load_block(k_ptr + place, d, key.to(tl.int64) * k_row, real, exists)  # (BLOCK_D, BLOCK_N)
        scores = product(q, k, tl.zeros([BLOCK_M, BLOCK_N], tl.float32), PRECISION) * scale
        scores = tl.where(exists[None, :], scores, float("-inf"))
        grown = tl.maximum(largest, tl.max(scores, 1))
        origin = tl.where(grown == float("-inf"), 0.0, grown)  # no key so far
        weights = tl.exp2(scores - origin[:, None])
        fade = tl.exp2(largest - origin)
        total = total * fade + tl.sum(weights, 1)
        v = load_block(v_ptr + place, key.to(tl.int64) * k_row, d, exists, real)
        sum = product(narrow(weights, v_ptr.dtype.element_ty), v, sum * fade[:, None], PRECISION)
        largest = grown
    some = total > 0.0
    out = sum / tl.where(some, total, 1.0)[:, None]
    row = (sample * tokens + token) * (HEADS * D) + head * D
    whole = inside[:, None] & real[None, :]
    tl.store(out_ptr + row[:, None] + d[None, :], narrow(out, out_ptr.dtype.element_ty), mask=whole)
    norm = tl.where(some, largest + tl.log2(tl.where(some, total, 1.0)), 0.0)
    tl.store(norm_ptr + (sample * HEADS + head) * tokens + token, norm, mask=inside)


@triton.jit
def attention_bwd_query_kernel(
    gradient_ptr,  # (B, T, H * D) contiguous
    q_ptr,
    k_ptr,
    v_ptr,
    mask_ptr,
    out_ptr,
    norm_ptr,
    of_q_ptr,  # as q
    tokens,
    keys,
    q_row,
    k_row,
    q_sample,
    k_sample,
    scale,
    HEADS: tl.constexpr,
    D: tl.constexpr,
    PRECISION: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_D: tl.constexpr,
):
    """The gradient of BLOCK_M queries of one head, over all keys; pointers as those of the way there."""
    sample = (tl.program_id(0) // HEADS).to(tl.int64)
    head = tl.program_id(0) % HEADS
    token = tl.program_id(1) * BLOCK_M + tl.arange(0, BLOCK_M)
    inside = token < tokens
    d = tl.arange(0, BLOCK_D)
    real = d < D
    at_q = sample * q_sample + head * D
    row = (sample * tokens + token) * (HEADS * D) + head * D
    q = load_block(q_ptr + at_q, token.to(tl.int64) * q_row, d, inside, real)
    gradient = load_block(gradient_ptr, row, d, inside, real)
    out = load_block(out_ptr, row, d, inside, real)
    through = tl.sum(gradient.to(tl.float32) * out.to(tl.float32), 1)
    norm = tl.load(norm_ptr + (sample * HEADS + head) * tokens + token, mask=inside, other=0.0)
    of_q = tl.zeros([BLOCK_M, BLOCK_D], tl.float32)
    for start in range(0, keys, BLOCK_N):
        key = start + tl.arange(0, BLOCK_N)
        exists = _keys_that_exist(mask_ptr, sample, key, keys)
        at_k = sample * k_sample + head * D
        k = load_block(k_ptr + at_k, key.to(tl.int64) * k_row, d, exists, real)
        v = load_block(v_ptr + at_k, key.to(tl.int64) * k_row, d, exists, real)
        empty = tl.zeros([BLOCK_M, BLOCK_N], tl.float32)
        scores = product(q, tl.trans(k), empty, PRECISION) * scale
        weights = tl.where(exists[None, :], tl.exp2(scores - norm[:, None]), 0.0)
        slopes = weights * (product(gradient, tl.trans(v), empty, PRECISION) - through[:, None])
        of_q = product(narrow(slopes, k_ptr.dtype.element_ty), k, of_q, PRECISION)
    of_q = of_q * (scale * 0.6931471805599453)
    place = at_q + token.to(tl.int64)[:, None] * q_row + d[None, :]
    tl.store(of_q_ptr + place, narrow(of_q, of_q_ptr.dtype.element_ty), mask=inside[:, None] & real[None, :])


@triton.jit
def attention_bwd_key_kernel(
    gradient_ptr,
    q_ptr,
    k_ptr,
    v_ptr,
    mask_ptr,
    out_ptr,
    norm_ptr,
    of_k_ptr,  # as k
    of_v_ptr,  # as v
    tokens,
    keys,
    q_row,
    k_row,
    q_sample,
    k_sample,
    scale,
    HEADS: tl.constexpr,
    D: tl.constexpr,
    PRECISION: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_D: tl.constexpr,
):
    """The gradients of BLOCK_N keys and values of one head, over all queries; pointers as those of the way there."""
    sample = (tl.program_id(0) // HEADS).to(tl.int64)
    head = tl.program_id(0) % HEADS
    key = tl.program_id(1) * BLOCK_N + tl.arange(0, BLOCK_N)
    exists = _keys_that_exist(mask_ptr, sample, key, keys)
    d = tl.arange(0, BLOCK_D)
    real = d < D
    at_k = sample * k_sample + head * D
    k = load_block(k_ptr + at_k, key.to(tl.int64) * k_row, d, exists, real)
    v = load_block(v_ptr + at_k, key.to(tl.int64) * k_row, d, exists, real)
    of_k = tl.zeros([BLOCK_N, BLOCK_D], tl.float32)
    of_v = tl.zeros([BLOCK_N, BLOCK_D], tl.float32)
    for start in range(0, tokens, BLOCK_M):
        token = start + tl.arange(0, BLOCK_M)
        inside = token < tokens
        row = (sample * tokens + token) * (HEADS * D) + head * D
        q = load_block(q_ptr + sample * q_sample + head * D, token.to(tl.int64) * q_row, d, inside, real)
        gradient = load_block(gradient_ptr, row, d, inside, real)
        out = load_block(out_ptr, row, d, inside, real)
        through = tl.sum(gradient.to(tl.float32) * out.to(tl.float32), 1)
        norm = tl.load(norm_ptr + (sample * HEADS + head) * tokens + token, mask=inside, other=0.0)
        empty = tl.zeros([BLOCK_N, BLOCK_M], tl.float32)
        scores = product(k, tl.trans(q), empty, PRECISION) * scale
        real_pair = exists[:, None] & inside[None, :]
        weights = tl.where(real_pair, tl.exp2(scores - norm[None, :]), 0.0)  # (BLOCK_N, BLOCK_M)
        of_v = product(narrow(weights, v_ptr.dtype.element_ty), gradient, of_v, PRECISION)
        slopes = weights * (product(v, tl.trans(gradient), empty, PRECISION) - through[None, :])
        of_k = product(narrow(slopes, q_ptr.dtype.element_ty), q, of_k, PRECISION)
    of_k = of_k * (scale * 0.6931471805599453)
    place = at_k + key.to(tl.int64)[:, None] * k_row + d[None, :]
    whole = (key < keys)[:, None] & real[None, :]
    tl.store(of_k_ptr + place, narrow(of_k, of_k_ptr.dtype.element_ty), mask=whole)
    tl.store(of_v_ptr + place, narrow(of_v, of_v_ptr.dtype.element_ty), mask=whole)


def attention(q: Tensor, k: Tensor, v: Tensor, num_heads: int, key_mask: Tensor | None) -> tuple[Tensor, Tensor]:
    """softmax(Q K' / sqrt(D)) V in each head, and the base-2 logarithm of each query's sum of weights.

    Args:
        q: (B, T, W) view with channels next to each other.
        k, v: (B, S, W) views with the same strides, channels next to each other.
        num_heads: H.
        key_mask: (B, S) bool contiguous, or None.

    Returns:
        (B, T, W), and (B, H, T) float32. A query without any key has zeros, and 0.
    """
    batch, tokens, width = q.shape
    out = q.new_empty((batch, tokens, width))
    norm = q.new_empty((batch, num_heads, tokens), dtype=torch.float32)
    sizes = _sizes(q, k, num_heads)
    grid = (batch * num_heads, triton.cdiv(tokens, sizes["BLOCK_M"]))
    launch(attention_fwd_kernel, grid, q, k, v, key_mask, out, norm, **sizes)
    return out, norm


def attention_gradients(
    gradient: Tensor,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    out: Tensor,
    norm: Tensor,
    num_heads: int,
    key_mask: Tensor | None,
    results: tuple[Tensor, Tensor, Tensor],
) -> None:
    """Writes the gradients of q, k and v into `results`, which have their strides.

    Args:
        gradient: (B, T, W) contiguous.
        out, norm: what `attention` gave.
    """
    of_q, of_k, of_v = results
    sizes = _sizes(q, k, num_heads)
    given = (gradient, q, k, v, key_mask, out, norm)
    heads = q.shape[0] * num_heads
    query_grid, key_grid = (triton.cdiv(part.shape[1], sizes[name]) for part, name in ((q, "BLOCK_M"), (k, "BLOCK_N")))
    launch(attention_bwd_query_kernel, (heads, query_grid), *given, of_q, **sizes)
    launch(attention_bwd_key_kernel, (heads, key_grid), *given, of_k, of_v, **sizes)


def _sizes(q: Tensor, k: Tensor, num_heads: int) -> dict:
    tokens, keys, head_dim = q.shape[1], k.shape[1], q.shape[2] // num_heads
    side = tiles.side(q.dtype, head_dim)
    return {
        "tokens": tokens,
        "keys": keys,
        "q_row": q.stride(1),
        "k_row": k.stride(1),
        "q_sample": q.stride(0),
        "k_sample": k.stride(0),
        "scale": head_dim**-0.5 / math.log(2),
        "HEADS": num_heads,
        "D": head_dim,
        "PRECISION": tiles.precision(q.dtype),
        "BLOCK_M": tiles.power(tokens, 16, side),
        "BLOCK_N": tiles.power(keys, 16, side),
        "BLOCK_D": tiles.head_block(head_dim),
        "num_warps": 4,
        "num_stages": 2,
    }

// SPDX-License-Identifier: MIT
// What a warp does to a row: a lane has W / 32 neighbouring columns of it, in all passes the same, so that what one
// pass leaves in a row the next reads without a barrier, and sums over rows stay in the lane's registers.
#pragma once

#include <type_traits>

#include "gelu.cuh"
#include "gradient_layout.h"
#include "tiles.cuh"

namespace rohydr {

template <int N>
__device__ void load_row(float (&x)[N], const float* from) {
  if constexpr (N == 4) {
    const float4 four = *reinterpret_cast<const float4*>(from);
    x[0] = four.x, x[1] = four.y, x[2] = four.z, x[3] = four.w;
  } else if constexpr (N == 2) {
    const float2 two = *reinterpret_cast<const float2*>(from);
    x[0] = two.x, x[1] = two.y;
  } else {
    x[0] = *from;
  }
}

template <int N>
__device__ void store_row(float* to, const float (&x)[N]) {
  if constexpr (N == 4) {
    *reinterpret_cast<float4*>(to) = make_float4(x[0], x[1], x[2], x[3]);
  } else if constexpr (N == 2) {
    *reinterpret_cast<float2*>(to) = make_float2(x[0], x[1]);
  } else {
    *to = x[0];
  }
}

template <int N>
__device__ void load_row(float (&x)[N], const Bf16* from) {
  if constexpr (N == 1) {
    x[0] = __bfloat162float(*from);
  } else {
#pragma unroll
    for (int i = 0; i < N; i += 2) {
      const std::uint32_t word = reinterpret_cast<const std::uint32_t*>(from)[i / 2];
      x[i] = __uint_as_float(word << 16), x[i + 1] = __uint_as_float(word & 0xffff0000u);
    }
  }
}

template <int N>
__device__ void store_row(Bf16* to, const float (&x)[N]) {
  if constexpr (N == 4) {
    *reinterpret_cast<uint2*>(to) = make_uint2(ptx::pack_bf16(x[0], x[1]), ptx::pack_bf16(x[2], x[3]));
  } else if constexpr (N == 2) {
    Operand<Bf16>::store2(to, x[0], x[1]);
  } else {
    *to = __float2bfloat16_rn(x[0]);
  }
}

// Two neighbours as they lie in memory.
template <class E>
using Pair = std::conditional_t<sizeof(E) == 2, std::uint32_t, float2>;

template <class E>
__device__ float2 open_pair(const Pair<E>& pair) {
  float x[2];
  load_row(x, reinterpret_cast<const E*>(&pair));
  return make_float2(x[0], x[1]);
}

// Each becomes its sum over the warp; one after the other they would wait for each other's shuffles.
template <int R>
__device__ void sum_over_warp(float (&x)[R]) {
#pragma unroll
  for (int lanes = 16; lanes > 0; lanes /= 2) {
#pragma unroll
    for (int r = 0; r < R; ++r) x[r] += __shfl_xor_sync(kFullWarp, x[r], lanes);
  }
}

// Rows become LayerNorm of them without affine; `inverse` 1 / their deviation.
template <int W, int R, int N>
__device__ void normalise_rows(float (&x)[R][N], float (&inverse)[R]) {
  float sum[R] = {}, squares[R] = {};
#pragma unroll
  for (int r = 0; r < R; ++r) {
#pragma unroll
    for (int i = 0; i < N; ++i) sum[r] += x[r][i];
  }
  sum_over_warp(sum);
#pragma unroll
  for (int r = 0; r < R; ++r) {
#pragma unroll
    for (int i = 0; i < N; ++i) {
      x[r][i] -= sum[r] * (1.0f / W);
      squares[r] = fmaf(x[r][i], x[r][i], squares[r]);
    }
  }
  sum_over_warp(squares);
#pragma unroll
  for (int r = 0; r < R; ++r) {
    inverse[r] = rsqrtf(fmaf(squares[r], 1.0f / W, kLayerNormEps));
#pragma unroll
    for (int i = 0; i < N; ++i) x[r][i] *= inverse[r];
  }
}

// The gradient of what LayerNorm read, from that of its result `g` and from its result `x`.
template <int W, int R, int N>
__device__ void normalise_rows_backward(float (&g)[R][N], const float (&x)[R][N], const float (&inverse)[R]) {
  float sum[2 * R] = {};  // of g, then of g x
#pragma unroll
  for (int r = 0; r < R; ++r) {
#pragma unroll
    for (int i = 0; i < N; ++i) {
      sum[r] += g[r][i];
      sum[R + r] = fmaf(g[r][i], x[r][i], sum[R + r]);
    }
  }
  sum_over_warp(sum);
#pragma unroll
  for (int r = 0; r < R; ++r) {
#pragma unroll
    for (int i = 0; i < N; ++i) {
      g[r][i] = inverse[r] * (g[r][i] - sum[r] * (1.0f / W) - x[r][i] * (sum[R + r] * (1.0f / W)));
    }
  }
}

}  // namespace rohydr

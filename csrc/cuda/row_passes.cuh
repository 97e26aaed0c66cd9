// SPDX-License-Identifier: MIT
// What a warp does to a row: a lane has W / 32 neighbouring columns of it, in all passes the same, so that what one
// pass leaves in a row the next reads without a barrier, and sums over rows stay in the lane's registers.
#pragma once

#include "denoiser.cuh"
#include "gradient_layout.h"

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

__device__ inline float sum_of_warp(float x) {
#pragma unroll
  for (int lanes = 16; lanes > 0; lanes /= 2) x += __shfl_xor_sync(kFullWarp, x, lanes);
  return x;
}

// x becomes LayerNorm of the row without affine; returns 1 / its deviation.
template <int W, int N>
__device__ float normalise_row(float (&x)[N]) {
  float sum = 0.0f, squares = 0.0f;
#pragma unroll
  for (int i = 0; i < N; ++i) sum += x[i];
  const float mean = sum_of_warp(sum) * (1.0f / W);
#pragma unroll
  for (int i = 0; i < N; ++i) {
    x[i] -= mean;
    squares = fmaf(x[i], x[i], squares);
  }
  const float inverse = rsqrtf(fmaf(sum_of_warp(squares), 1.0f / W, kLayerNormEps));
#pragma unroll
  for (int i = 0; i < N; ++i) x[i] *= inverse;
  return inverse;
}

// The gradient of what LayerNorm read, from that of its result `g` and from its result `x`.
template <int W, int N>
__device__ void normalise_row_backward(float (&g)[N], const float (&x)[N], float inverse) {
  float sum = 0.0f, with = 0.0f;
#pragma unroll
  for (int i = 0; i < N; ++i) {
    sum += g[i];
    with = fmaf(g[i], x[i], with);
  }
  const float mean = sum_of_warp(sum) * (1.0f / W), slope = sum_of_warp(with) * (1.0f / W);
#pragma unroll
  for (int i = 0; i < N; ++i) g[i] = inverse * (g[i] - mean - x[i] * slope);
}

// GELU's slope: with s = 1 / (1 + exp(-2 u)) and u as in constants.cuh it is s + 2 x u' s (1 - s).
__device__ inline float gelu_slope(float x) {
  const float s = 1.0f / (1.0f + exp2f(x * fmaf(x * x, -kTwoLog2e * kGeluCubic, -kTwoLog2e * kGeluFactor)));
  return fmaf(2.0f * x * fmaf(x * x, 3.0f * kGeluCubic, kGeluFactor), s * (1.0f - s), s);
}

// A piece of 16 bytes as floats, and back.
template <class E>
struct Piece;

template <>
struct Piece<Bf16> {
  static constexpr int kSize = 8;
  static __device__ void open(const uint4& piece, float (&x)[8]) {
    const std::uint32_t words[4] = {piece.x, piece.y, piece.z, piece.w};
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      x[2 * i] = __uint_as_float(words[i] << 16);
      x[2 * i + 1] = __uint_as_float(words[i] & 0xffff0000u);
    }
  }
  static __device__ uint4 close(const float (&x)[8]) {
    return make_uint4(ptx::pack_bf16(x[0], x[1]), ptx::pack_bf16(x[2], x[3]), ptx::pack_bf16(x[4], x[5]),
                      ptx::pack_bf16(x[6], x[7]));
  }
};

template <>
struct Piece<float> {
  static constexpr int kSize = 4;
  static __device__ void open(const uint4& piece, float (&x)[4]) {
    x[0] = __uint_as_float(piece.x), x[1] = __uint_as_float(piece.y);
    x[2] = __uint_as_float(piece.z), x[3] = __uint_as_float(piece.w);
  }
  static __device__ uint4 close(const float (&x)[4]) {
    return make_uint4(__float_as_uint(x[0]), __float_as_uint(x[1]), __float_as_uint(x[2]), __float_as_uint(x[3]));
  }
};

}  // namespace rohydr

// SPDX-License-Identifier: MIT
// GELU, see constants.cuh, with and without its slope.
#pragma once

#include "constants.cuh"
#include "device.cuh"

namespace rohydr {

// In float32 as x / (1 + exp(-2 u)).
template <class E>
__device__ float gelu(float x) {
  if (sizeof(E) == 2) {
    const float half = 0.5f * x;
    return fmaf(half, ptx::tanh_approx(x * fmaf(x * x, kGeluCubic, kGeluFactor)), half);
  }
  return x / (1.0f + exp2f(x * fmaf(x * x, -kTwoLog2e * kGeluCubic, -kTwoLog2e * kGeluFactor)));
}

// GELU; its slope to `slope`: with s = 1 / (1 + exp(-2 u)) it is s + 2 x u' s (1 - s).
template <class E>
__device__ float gelu_and_slope(float x, float& slope) {
  const float of_u = fmaf(x * x, 3.0f * kGeluCubic, kGeluFactor);
  float s;
  if (sizeof(E) == 2) {
    s = fmaf(0.5f, ptx::tanh_approx(x * fmaf(x * x, kGeluCubic, kGeluFactor)), 0.5f);
  } else {
    s = 1.0f / (1.0f + exp2f(x * fmaf(x * x, -kTwoLog2e * kGeluCubic, -kTwoLog2e * kGeluFactor)));
  }
  slope = fmaf(2.0f * x * of_u, s * (1.0f - s), s);
  return x * s;
}

}  // namespace rohydr

// SPDX-License-Identifier: MIT
// Numbers of the network that several kernels compute with, as in rohydr_fast/ops/denoiser_block/reference.py.
#pragma once

namespace rohydr {

constexpr float kLayerNormEps = 1e-6f;
// GELU's tanh form: x (1 + tanh(u)) / 2 with u = kGeluFactor x + kGeluCubic x^3 = sqrt(2 / pi) (x + 0.044715 x^3).
constexpr float kGeluFactor = 0.7978845608028654f, kGeluCubic = kGeluFactor * 0.044715f;
constexpr float kTwoLog2e = 2.8853900817779268f;  // exp(2 u) = 2^(kTwoLog2e u)

}  // namespace rohydr

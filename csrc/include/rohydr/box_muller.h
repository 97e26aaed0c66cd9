// SPDX-License-Identifier: MIT
// Two standard normals from two Philox words (Box-Muller):
//   u1 = ((r0 >> 8) + 1) 2^-24, u2 = (r1 >> 8) 2^-24, radius = sqrt(-2 ln u1), (radius cos 2 pi u2, radius sin 2 pi u2).
// Computed in double with own series, then rounded once to float32: relative error below 2e-11 before the rounding, so
// the result is the nearest float or, in a near tie, its neighbour. No libm call and no contraction to multiply-add
// (host: compile with -ffp-contract=off), so the bits are the same on every CPU and on every GPU.
#pragma once

#include <cmath>
#include <cstdint>
#include <cstring>

#include "rohydr/philox.h"

namespace rohydr {

struct NormalPair {
  float first;
  float second;
};

namespace box_muller {

// a * b + c with both roundings, also where the compiler would fuse.
RH_HOST_DEVICE double multiply_add(double a, double b, double c) {
#if defined(__CUDA_ARCH__)
  return __dadd_rn(__dmul_rn(a, b), c);
#else
  return a * b + c;
#endif
}

// ln(n 2^-24) for n in [1, 2^24]: n = 2^e m with m in [sqrt(1/2), sqrt(2)), ln m = 2 atanh((m - 1) / (m + 1)).
RH_HOST_DEVICE double log_fraction(std::uint32_t n) {
  constexpr double kSqrt2 = 1.4142135623730951;
  constexpr double kLn2 = 0.6931471805599453;
  const double value = static_cast<double>(n);
  std::uint64_t bits;
  memcpy(&bits, &value, sizeof(bits));
  int exponent = static_cast<int>(bits >> 52) - 1023 - 24;
  bits = (bits & 0x000FFFFFFFFFFFFFu) | 0x3FF0000000000000u;
  double m;
  memcpy(&m, &bits, sizeof(m));
  const bool upper = m >= kSqrt2;
  m = upper ? 0.5 * m : m;
  exponent += upper ? 1 : 0;
  const double s = (m - 1.0) / (m + 1.0);  // |s| <= 0.1716, so s^14 / 15 < 2e-12
  const double z = s * s;
  double series = 1.0 / 13;
  series = multiply_add(series, z, 1.0 / 11);
  series = multiply_add(series, z, 1.0 / 9);
  series = multiply_add(series, z, 1.0 / 7);
  series = multiply_add(series, z, 1.0 / 5);
  series = multiply_add(series, z, 1.0 / 3);
  series = multiply_add(series, z, 1.0);
  return multiply_add(static_cast<double>(exponent), kLn2, 2.0 * s * series);
}

// cos and sin of 2 pi n 2^-24, n < 2^24. The quarter turn is taken off in integers, so the zeros are exact.
RH_HOST_DEVICE void cos_sin_fraction(std::uint32_t n, double& cosine, double& sine) {
  constexpr double kTwoPiStep = 6.283185307179586 * 0x1p-24;
  const std::uint32_t quarter = (n + (1u << 21)) >> 22;  // nearest quarter turn, 0..4
  const int rest = static_cast<int>(n) - static_cast<int>(quarter << 22);
  const double x = static_cast<double>(rest) * kTwoPiStep;  // |x| <= pi / 4
  const double z = x * x;
  double s = -1.0 / 39916800;  // next term: x^12 / 13! < 9e-12
  s = multiply_add(s, z, 1.0 / 362880);
  s = multiply_add(s, z, -1.0 / 5040);
  s = multiply_add(s, z, 1.0 / 120);
  s = multiply_add(s, z, -1.0 / 6);
  s = multiply_add(s, z, 1.0) * x;
  double c = 1.0 / 479001600;  // next term: x^14 / 14! < 4e-13
  c = multiply_add(c, z, -1.0 / 3628800);
  c = multiply_add(c, z, 1.0 / 40320);
  c = multiply_add(c, z, -1.0 / 720);
  c = multiply_add(c, z, 1.0 / 24);
  c = multiply_add(c, z, -1.0 / 2);
  c = multiply_add(c, z, 1.0);
  const bool swap = quarter & 1u;
  const double even = swap ? s : c;
  const double odd = swap ? c : s;
  cosine = ((quarter + 1u) & 2u) ? -even : even;
  sine = (quarter & 2u) ? -odd : odd;
}

}  // namespace box_muller

RH_HOST_DEVICE NormalPair normal_pair(std::uint32_t r0, std::uint32_t r1) {
  const double radius = sqrt(-2.0 * box_muller::log_fraction((r0 >> 8) + 1u));
  double cosine, sine;
  box_muller::cos_sin_fraction(r1 >> 8, cosine, sine);
  return {static_cast<float>(radius * cosine), static_cast<float>(radius * sine)};
}

// The four normals of one Philox block.
RH_HOST_DEVICE void normal_block(const PhiloxBlock& block, float (&out)[4]) {
  const NormalPair low = normal_pair(block.word[0], block.word[1]);
  const NormalPair high = normal_pair(block.word[2], block.word[3]);
  out[0] = low.first;
  out[1] = low.second;
  out[2] = high.first;
  out[3] = high.second;
}

}  // namespace rohydr

// SPDX-License-Identifier: MIT
// Powers of two, and what is made of them: GELU and SiLU.
#pragma once

#include "simd.h"

namespace rohydr {
namespace {

// 2^f, f in [-1/2, 1/2], by Horner's rule. float: minimax of degree 5, relative error 9e-8; double: Taylor, 4e-18.
template <class T>
struct Exp2Series;
template <>
struct Exp2Series<float> {
  static constexpr float kCoefficients[] = {0.001326472731307149f, 0.009671512991189957f, 0.05550733581185341f,
                                            0.24022242426872253f,  0.6931470036506653f,   1.0f};
  static constexpr float kRound = 12582912.0f;  // 1.5 2^23: adding it leaves the nearest integer in the low bits
  static constexpr int kMantissa = 23;
  static constexpr int kBias = 127;
};
template <>
struct Exp2Series<double> {
  static constexpr double kCoefficients[] = {
      1.3691488853904129e-12, 2.5678435993488206e-11, 4.4455382718708116e-10, 7.0549116208011233e-09,
      1.0178086009239699e-07, 1.3215486790144309e-06, 1.5252733804059840e-05, 1.5403530393381609e-04,
      1.3333558146428443e-03, 9.6181291076284771e-03, 5.5504108664821580e-02, 2.4022650695910071e-01,
      6.9314718055994531e-01, 1.0};
  static constexpr double kRound = 6755399441055744.0;  // 1.5 2^52
  static constexpr int kMantissa = 52;
  static constexpr int kBias = 1023;
};

template <class T, int N>
RH_INLINE Vector<T, N> exp2_series(Vector<T, N> fraction) {
  using Series = Exp2Series<T>;
  Vector<T, N> power = broadcast<T, N>(Series::kCoefficients[0]);
  constexpr int kTerms = sizeof(Series::kCoefficients) / sizeof(T);
#pragma GCC unroll 16
  for (int i = 1; i < kTerms; ++i) {
    power = multiply_add<T, N>(power, fraction, broadcast<T, N>(Series::kCoefficients[i]));
  }
  return power;
}

#if defined(__AVX512F__)
template <class T, int N>
constexpr bool kHasScale = sizeof(T) == 4 && N >= 8;

// 2^(i / 32)
alignas(64) constexpr float kRoots[32] = {
    1.0f, 1.0218972f, 1.0442737f, 1.0671405f, 1.0905077f, 1.1143868f, 1.1387886f, 1.1637249f,
    1.1892071f, 1.2152474f, 1.2418578f, 1.269051f, 1.2968396f, 1.3252367f, 1.3542556f, 1.38391f,
    1.4142135f, 1.4451808f, 1.4768262f, 1.5091645f, 1.5422108f, 1.5759809f, 1.6104903f, 1.6457555f,
    1.6817929f, 1.7186193f, 1.7562522f, 1.7947091f, 1.8340081f, 1.8741677f, 1.9152066f, 1.9571441f};

// 2^x for every x, with gradual underflow, overflow to infinity, and NaN kept: 2^(i / 32) from a table in registers, times
// 2^f, f in [0, 1 / 32), by a minimax series of degree 2 (6.5e-8), scaled by 2^floor(x). Three multiplications where
// Exp2Series takes five; beside them the ports that add and permute work, or with few ports there is as much as before.
template <int N>
RH_INLINE Vector<float, N> exp2_by_scale(Vector<float, N> x) {
  constexpr float kLinear = 0.69312373f, kSquare = 0.24265269f;
  constexpr float kRound = 393216.0f;  // 1.5 2^18: adding it leaves floor(32 x) in the low bits
  constexpr __mmask16 kAll = 0xFFFF;   // g++ 12 warns of the forms without a mask
  constexpr int kDown = _MM_FROUND_TO_NEG_INF | _MM_FROUND_NO_EXC, kSteps = 5 << 4;  // steps of 2^-5
  __m512 wide;
  if constexpr (N == 16) wide = x;
  else wide = _mm512_castps256_ps512(x);
  const __m512i index = _mm512_castps_si512(_mm512_maskz_add_round_ps(kAll, wide, _mm512_set1_ps(kRound), kDown));
  const __m512 roots = _mm512_permutex2var_ps(load<float, 16>(kRoots), index, load<float, 16>(kRoots + 16));
  Vector<float, N> root, fraction;
  if constexpr (N == 16) {
    root = roots;
    fraction = _mm512_maskz_reduce_ps(kAll, x, kSteps | kDown);
  } else {
    root = _mm512_maskz_extractf32x8_ps(static_cast<__mmask8>(kAll), roots, 0);
    fraction = _mm256_maskz_reduce_ps(static_cast<__mmask8>(kAll), x, kSteps | kDown);
  }
  const Vector<float, N> slope =
      multiply_add<float, N>(fraction, broadcast<float, N>(kSquare), broadcast<float, N>(kLinear));
  const Vector<float, N> power = multiply_add<float, N>(root * fraction, slope, root);
  if constexpr (N == 16) return _mm512_maskz_scalef_ps(kAll, power, x);
  else return _mm256_maskz_scalef_ps(static_cast<__mmask8>(kAll), power, x);
}
#else
template <class T, int N>
constexpr bool kHasScale = false;
template <int N>
Vector<float, N> exp2_by_scale(Vector<float, N>);
#endif

// 2^x where |x| <= 126 is known; otherwise the result has no meaning.
template <class T, int N>
RH_INLINE Vector<T, N> exp2_in_range(Vector<T, N> x) {
  if constexpr (kHasScale<T, N>) return exp2_by_scale<N>(x);
  using Integers = Vector<typename IntegerOf<T>::bits, N>;
  const Vector<T, N> shifted = x + Exp2Series<T>::kRound;
  const Vector<T, N> fraction = x - (shifted - Exp2Series<T>::kRound);
  return (Vector<T, N>)((Integers)exp2_series<T, N>(fraction) + ((Integers)shifted << Exp2Series<T>::kMantissa));
}

// 2^x for x up to 126, and 0 below -126 (where a softmax has nothing left to add).
template <class T, int N>
RH_INLINE Vector<T, N> exp2_or_zero(Vector<T, N> x) {
  const Vector<T, N> power = exp2_in_range<T, N>(at_least<T, N>(x, T(-126)));
  return x < T(-126) ? Vector<T, N>{} : power;
}

// 2^x for every x, with gradual underflow, overflow to infinity, and NaN kept: two factors share the exponent.
template <class T, int N>
RH_INLINE Vector<T, N> exp2_everywhere(Vector<T, N> x) {
  if constexpr (kHasScale<T, N>) return exp2_by_scale<N>(x);
  using Series = Exp2Series<T>;
  using Integers = Vector<typename IntegerOf<T>::type, N>;
  constexpr T kFar = T(2 * Series::kBias + 40);
  const Vector<T, N> near = at_most<T, N>(at_least<T, N>(x, -kFar), kFar);
  const Vector<T, N> shifted = near + Series::kRound;
  const Vector<T, N> whole = shifted - Series::kRound;
  const Integers exponent = (Integers)shifted - (Integers)broadcast<T, N>(Series::kRound);
  const Integers first = exponent >> 1;
  const Integers second = exponent - first;
  const Vector<T, N> factor1 = (Vector<T, N>)((first + Series::kBias) << Series::kMantissa);
  const Vector<T, N> factor2 = (Vector<T, N>)((second + Series::kBias) << Series::kMantissa);
  return exp2_series<T, N>(near - whole) * factor1 * factor2;
}

// 1 + exp(-2 u), u = sqrt(2/pi) (x + 0.044715 x^3): GELU by tanh is x over it, as PyTorch's approximate="tanh".
template <class T, int N>
RH_INLINE Vector<T, N> gelu_divisor(Vector<T, N> x) {
  constexpr T kLinear = T(-2 * 0.79788456080286535588 * 1.44269504088896340736);  // exp(-2u) = 2^(kLinear (...))
  constexpr T kCubic = T(-2 * 0.79788456080286535588 * 1.44269504088896340736 * 0.044715);
  const Vector<T, N> exponent = x * multiply_add<T, N>(x * x, kCubic, broadcast<T, N>(kLinear));
  if constexpr (kHasScale<T, N>) return exp2_by_scale<N>(exponent) + T(1);
  return exp2_in_range<T, N>(at_most<T, N>(at_least<T, N>(exponent, T(-126)), T(126))) + T(1);
}

template <class T, int N>
RH_INLINE Vector<T, N> gelu(Vector<T, N> x) {
  return x / gelu_divisor<T, N>(x);
}

// x sigmoid(x). Beyond 2^-+126 the exponential counts as that power.
template <class T, int N>
RH_INLINE Vector<T, N> silu(Vector<T, N> x) {
  const Vector<T, N> exponent = x * T(-1.44269504088896340736);
  return x / (exp2_in_range<T, N>(at_most<T, N>(at_least<T, N>(exponent, T(-126)), T(126))) + T(1));
}

}  // namespace
}  // namespace rohydr

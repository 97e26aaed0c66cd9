// SPDX-License-Identifier: MIT
// Device functions of CUDA C++ that C++ lacks: arithmetic, bits, loads with a cache hint, atomics. Only one thread runs
// at a time, so a plain update is atomic. Functions that a device computes approximately are computed exactly here.
#pragma once

#include <cmath>
#include <limits>

#include "block.h"

inline unsigned __umulhi(unsigned a, unsigned b) {
  return static_cast<unsigned>(static_cast<std::uint64_t>(a) * b >> 32);
}
inline int __mulhi(int a, int b) { return static_cast<int>(static_cast<std::int64_t>(a) * b >> 32); }
inline unsigned long long __umul64hi(unsigned long long a, unsigned long long b) {
  return static_cast<unsigned long long>(static_cast<unsigned __int128>(a) * b >> 64);
}
inline int __popc(unsigned x) { return std::popcount(x); }
inline int __popcll(unsigned long long x) { return std::popcount(x); }
inline int __clz(int x) { return std::countl_zero(static_cast<unsigned>(x)); }
inline int __ffs(int x) { return x == 0 ? 0 : std::countr_zero(static_cast<unsigned>(x)) + 1; }
inline unsigned __brev(unsigned x) {
  unsigned reversed = 0;
  for (int i = 0; i < 32; ++i) reversed |= (x >> i & 1u) << (31 - i);
  return reversed;
}
inline unsigned __byte_perm(unsigned low, unsigned high, unsigned selector) {
  const std::uint64_t bytes = static_cast<std::uint64_t>(high) << 32 | low;
  unsigned result = 0;
  for (int i = 0; i < 4; ++i) {
    result |= static_cast<unsigned>(bytes >> (8 * (selector >> (4 * i) & 7u)) & 0xFFu) << (8 * i);
  }
  return result;
}
inline unsigned __funnelshift_l(unsigned low, unsigned high, unsigned shift) {
  return static_cast<unsigned>((static_cast<std::uint64_t>(high) << 32 | low) >> (32 - (shift & 31u)));
}
inline unsigned __funnelshift_r(unsigned low, unsigned high, unsigned shift) {
  return static_cast<unsigned>((static_cast<std::uint64_t>(high) << 32 | low) >> (shift & 31u));
}

inline float __uint_as_float(unsigned x) { return std::bit_cast<float>(x); }
inline unsigned __float_as_uint(float x) { return std::bit_cast<unsigned>(x); }
inline float __int_as_float(int x) { return std::bit_cast<float>(x); }
inline int __float_as_int(float x) { return std::bit_cast<int>(x); }
inline double __longlong_as_double(long long x) { return std::bit_cast<double>(x); }
inline long long __double_as_longlong(double x) { return std::bit_cast<long long>(x); }
inline int __float2int_rn(float x) { return static_cast<int>(std::nearbyint(x)); }
inline int __float2int_rd(float x) { return static_cast<int>(std::floor(x)); }
inline int __float2int_rz(float x) { return static_cast<int>(x); }
inline float __int2float_rn(int x) { return static_cast<float>(x); }
inline float __uint2float_rn(unsigned x) { return static_cast<float>(x); }

inline float __fadd_rn(float a, float b) { return a + b; }
inline float __fsub_rn(float a, float b) { return a - b; }
inline float __fmul_rn(float a, float b) { return a * b; }
inline float __fmaf_rn(float a, float b, float c) { return std::fma(a, b, c); }
inline float __fdiv_rn(float a, float b) { return a / b; }
inline float __frcp_rn(float x) { return 1.0f / x; }
inline float __fsqrt_rn(float x) { return std::sqrt(x); }
inline double __dadd_rn(double a, double b) { return a + b; }
inline double __dmul_rn(double a, double b) { return a * b; }
inline double __fma_rn(double a, double b, double c) { return std::fma(a, b, c); }
inline float __fdividef(float a, float b) { return a / b; }
inline float __frsqrt_rn(float x) { return static_cast<float>(1.0 / std::sqrt(static_cast<double>(x))); }
inline float rsqrtf(float x) { return __frsqrt_rn(x); }
inline double rsqrt(double x) { return 1.0 / std::sqrt(x); }
inline float __expf(float x) { return std::exp(x); }
inline float __exp10f(float x) { return static_cast<float>(std::pow(10.0, static_cast<double>(x))); }
inline float __logf(float x) { return std::log(x); }
inline float __log2f(float x) { return std::log2(x); }
inline float __log10f(float x) { return std::log10(x); }
inline float __powf(float x, float y) { return std::pow(x, y); }
inline float __sinf(float x) { return std::sin(x); }
inline float __cosf(float x) { return std::cos(x); }
inline float __tanf(float x) { return std::tan(x); }
inline float __saturatef(float x) { return x > 0.0f ? (x < 1.0f ? x : 1.0f) : 0.0f; }  // NaN gives 0, as on a device
inline void __sincosf(float x, float* sine, float* cosine) {
  *sine = std::sin(x);
  *cosine = std::cos(x);
}
inline void sincospif(float x, float* sine, float* cosine) {
  const double turn = M_PI * static_cast<double>(x - 2.0f * std::nearbyint(0.5f * x));
  *sine = static_cast<float>(std::sin(turn));
  *cosine = static_cast<float>(std::cos(turn));
}

// CUDA has min and max in the global namespace, also for operands of two integer types.
template <typename A, typename B>
constexpr std::common_type_t<A, B> min(A a, B b) {
  using T = std::common_type_t<A, B>;
  return static_cast<T>(b) < static_cast<T>(a) ? static_cast<T>(b) : static_cast<T>(a);
}
template <typename A, typename B>
constexpr std::common_type_t<A, B> max(A a, B b) {
  using T = std::common_type_t<A, B>;
  return static_cast<T>(a) < static_cast<T>(b) ? static_cast<T>(b) : static_cast<T>(a);
}

template <typename T>
T __ldg(const T* place) { return *place; }
template <typename T>
T __ldcg(const T* place) { return *place; }
template <typename T>
T __ldcs(const T* place) { return *place; }
template <typename T>
T __ldca(const T* place) { return *place; }
template <typename T>
void __stcg(T* place, T value) { *place = value; }
template <typename T>
void __stcs(T* place, T value) { *place = value; }

namespace rohydr::sim {

template <typename T>
T update(T* place, auto change) {
  const T old = *place;
  *place = change(old);
  return old;
}

}  // namespace rohydr::sim

template <typename T>
T atomicAdd(T* place, std::type_identity_t<T> value) {
  return rohydr::sim::update(place, [value](T old) { return static_cast<T>(old + value); });
}
template <typename T>
T atomicSub(T* place, std::type_identity_t<T> value) {
  return rohydr::sim::update(place, [value](T old) { return static_cast<T>(old - value); });
}
template <typename T>
T atomicMax(T* place, std::type_identity_t<T> value) {
  return rohydr::sim::update(place, [value](T old) { return old < value ? value : old; });
}
template <typename T>
T atomicMin(T* place, std::type_identity_t<T> value) {
  return rohydr::sim::update(place, [value](T old) { return value < old ? value : old; });
}
template <typename T>
T atomicOr(T* place, std::type_identity_t<T> value) {
  return rohydr::sim::update(place, [value](T old) { return static_cast<T>(old | value); });
}
template <typename T>
T atomicAnd(T* place, std::type_identity_t<T> value) {
  return rohydr::sim::update(place, [value](T old) { return static_cast<T>(old & value); });
}
template <typename T>
T atomicExch(T* place, std::type_identity_t<T> value) {
  return rohydr::sim::update(place, [value](T) { return value; });
}
template <typename T>
T atomicCAS(T* place, std::type_identity_t<T> expected, std::type_identity_t<T> value) {
  return rohydr::sim::update(place, [=](T old) { return old == expected ? value : old; });
}

inline void __threadfence() {}
inline void __threadfence_block() {}
inline void __threadfence_system() {}
[[noreturn]] inline void __trap() { rohydr::sim::running_block()->fail("__trap() was called"); }

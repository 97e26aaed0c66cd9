// SPDX-License-Identifier: MIT
// Vectors of the instruction set that includes this file, by the compiler's vector extensions.
// Everything in csrc/cpu/kernels lives in an anonymous namespace and calls no std:: template: a weak symbol compiled
// with wide instructions could replace its namesake everywhere. The including file defines
//   RH_VECTOR_BYTES  bytes of a vector register,
//   RH_TILE_ROWS     rows of the matrix micro-kernel,
//   RH_TILE_VECTORS  vectors in a row of it; their product is the number of accumulators.
#pragma once

#include <cstddef>
#include <cstdint>
#if defined(__AVX__)
#include <immintrin.h>
#elif defined(__ARM_NEON)
#include <arm_neon.h>
#endif

#define RH_INLINE inline __attribute__((always_inline))

namespace rohydr {
namespace {

using Index = std::int64_t;

template <class T, int N>
struct VectorOf {
  typedef T type __attribute__((vector_size(sizeof(T) * N)));
};
template <class T, int N>
using Vector = typename VectorOf<T, N>::type;

template <class T>
struct IntegerOf;
template <>
struct IntegerOf<float> {
  using type = std::int32_t;
  using bits = std::uint32_t;  // wraps around
};
template <>
struct IntegerOf<double> {
  using type = std::int64_t;
  using bits = std::uint64_t;
};

template <class T>
constexpr int kLanes = RH_VECTOR_BYTES / static_cast<int>(sizeof(T));

constexpr Index round_up(Index value, Index multiple) { return (value + multiple - 1) / multiple * multiple; }
RH_INLINE Index smaller(Index a, Index b) { return a < b ? a : b; }
RH_INLINE Index larger(Index a, Index b) { return a > b ? a : b; }

template <class T, int N>
RH_INLINE Vector<T, N> load(const T* from) {
  Vector<T, N> result;
  __builtin_memcpy(&result, from, sizeof(result));
  return result;
}

template <class T, int N>
RH_INLINE void store(T* to, Vector<T, N> value) {
  __builtin_memcpy(to, &value, sizeof(value));
}

template <class T, int N>
RH_INLINE Vector<T, N> broadcast(T value) {
  return value - Vector<T, N>{};  // x - 0 is x, also for -0
}

template <class T, int N>
RH_INLINE Vector<T, N> absolute(Vector<T, N> value) {
  using Integer = typename IntegerOf<T>::type;
  constexpr Integer kMagnitude = static_cast<Integer>(~(static_cast<std::uint64_t>(1) << (8 * sizeof(T) - 1)));
  return (Vector<T, N>)((Vector<Integer, N>)value & kMagnitude);
}

// Bounds of one side; NaN in `value` stays NaN. With AVX this is one instruction, which the compiler does not find.
template <class T, int N>
RH_INLINE Vector<T, N> at_least(Vector<T, N> value, T bound) {
  return value < bound ? broadcast<T, N>(bound) : value;
}
template <class T, int N>
RH_INLINE Vector<T, N> at_most(Vector<T, N> value, T bound) {
  return value > bound ? broadcast<T, N>(bound) : value;
}
#if defined(__AVX__)
template <>
RH_INLINE Vector<float, 8> at_least<float, 8>(Vector<float, 8> value, float bound) {
  return _mm256_max_ps(_mm256_set1_ps(bound), value);
}
template <>
RH_INLINE Vector<float, 8> at_most<float, 8>(Vector<float, 8> value, float bound) {
  return _mm256_min_ps(_mm256_set1_ps(bound), value);
}
#endif

// Bit i is set where value[i] <= bound.
template <class T, int N>
RH_INLINE unsigned lanes_at_most(Vector<T, N> value, T bound) {
#if defined(__AVX512F__)
  if constexpr (sizeof(T) == 4 && N == 16) return _mm512_cmp_ps_mask(value, _mm512_set1_ps(bound), _CMP_LE_OQ);
#endif
#if defined(__AVX__)
  if constexpr (sizeof(T) == 4 && N == 8) {
    return static_cast<unsigned>(_mm256_movemask_ps(_mm256_cmp_ps(value, _mm256_set1_ps(bound), _CMP_LE_OQ)));
  }
#endif
  unsigned bits = 0;
  for (int i = 0; i < N; ++i) bits |= static_cast<unsigned>(value[i] <= bound) << i;
  return bits;
}

// The first `count` bits, all N where there are more.
template <int N>
RH_INLINE unsigned first_lanes(Index count) {
  return count < N ? (1u << count) - 1 : (1u << N) - 1;
}

template <class T, int N>
RH_INLINE Vector<T, N> lane_numbers() {
  Vector<T, N> result;
  for (int i = 0; i < N; ++i) result[i] = static_cast<T>(i);
  return result;
}

// The lower and the upper half of a vector's lanes, added.
template <class T, int N>
RH_INLINE Vector<T, N / 2> add_halves(Vector<T, N> v) {
#if __has_builtin(__builtin_shufflevector)  // without it the vector takes a way through memory
  if constexpr (N == 16) {
    return __builtin_shufflevector(v, v, 0, 1, 2, 3, 4, 5, 6, 7) +
           __builtin_shufflevector(v, v, 8, 9, 10, 11, 12, 13, 14, 15);
  } else if constexpr (N == 8) {
    return __builtin_shufflevector(v, v, 0, 1, 2, 3) + __builtin_shufflevector(v, v, 4, 5, 6, 7);
  } else {
    return __builtin_shufflevector(v, v, 0, 1) + __builtin_shufflevector(v, v, 2, 3);
  }
#else
  Vector<T, N / 2> half[2];
  __builtin_memcpy(half, &v, sizeof(half));
  return half[0] + half[1];
#endif
}

RH_INLINE float square_root(float x) { return __builtin_sqrtf(x); }
RH_INLINE double square_root(double x) { return __builtin_sqrt(x); }

// a b + c, rounded once where the instruction set can. Nothing else is contracted: what a compiler fuses depends on the
// code around it, and with that the bits of a row would depend on the tile that it stands in.
template <class T, int N>
RH_INLINE Vector<T, N> multiply_add(Vector<T, N> a, Vector<T, N> b, Vector<T, N> c) {
#if defined(__FMA__)
  if constexpr (sizeof(T) == 4 && N == 4) return _mm_fmadd_ps(a, b, c);
  if constexpr (sizeof(T) == 4 && N == 8) return _mm256_fmadd_ps(a, b, c);
#if defined(__AVX512F__)
  if constexpr (sizeof(T) == 4 && N == 16) return _mm512_fmadd_ps(a, b, c);
#endif
#elif defined(__ARM_NEON)
  if constexpr (sizeof(T) == 4 && N == 4) return vfmaq_f32(c, a, b);
#endif
  return a * b + c;
}
template <class T, int N>
RH_INLINE Vector<T, N> multiply_add(Vector<T, N> a, T b, Vector<T, N> c) {
  return multiply_add<T, N>(a, broadcast<T, N>(b), c);
}

#if defined(__clang__)
#define RH_SHUFFLE(...) __builtin_shufflevector(a, b, __VA_ARGS__)
#else
#define RH_SHUFFLE(...) __builtin_shuffle(a, b, Vector<std::int32_t, N>{__VA_ARGS__})
#endif

// Interleaves 32-bit (Width 1) or 64-bit (Width 2) parts of a and b inside each group of four lanes, low or high half:
// with Width 4, the low or high four lanes of both (of eight). Each is one instruction.
template <int Width, bool High, int N>
RH_INLINE Vector<float, N> interleave(Vector<float, N> a, Vector<float, N> b) {
  constexpr int h = High ? 1 : 0;
  if constexpr (N == 4) {
    if constexpr (Width == 1) return RH_SHUFFLE(2 * h, 4 + 2 * h, 1 + 2 * h, 5 + 2 * h);
    else return RH_SHUFFLE(2 * h, 1 + 2 * h, 4 + 2 * h, 5 + 2 * h);
  } else if constexpr (N == 16) {
    constexpr int k = 2 * h;
    if constexpr (Width == 1) {
      return RH_SHUFFLE(k, 16 + k, 1 + k, 17 + k, 4 + k, 20 + k, 5 + k, 21 + k, 8 + k, 24 + k, 9 + k, 25 + k, 12 + k,
                        28 + k, 13 + k, 29 + k);
    } else {
      return RH_SHUFFLE(k, 1 + k, 16 + k, 17 + k, 4 + k, 5 + k, 20 + k, 21 + k, 8 + k, 9 + k, 24 + k, 25 + k, 12 + k,
                        13 + k, 28 + k, 29 + k);
    }
  } else {
    if constexpr (Width == 1) {
      return RH_SHUFFLE(2 * h, 8 + 2 * h, 1 + 2 * h, 9 + 2 * h, 4 + 2 * h, 12 + 2 * h, 5 + 2 * h, 13 + 2 * h);
    } else if constexpr (Width == 2) {
      return RH_SHUFFLE(2 * h, 1 + 2 * h, 8 + 2 * h, 9 + 2 * h, 4 + 2 * h, 5 + 2 * h, 12 + 2 * h, 13 + 2 * h);
    } else {
      return RH_SHUFFLE(4 * h, 1 + 4 * h, 2 + 4 * h, 3 + 4 * h, 8 + 4 * h, 9 + 4 * h, 10 + 4 * h, 11 + 4 * h);
    }
  }
}

// Of four neighbouring groups of eight numbers the first, or the last, four of each: (4, 4) transposed.
template <bool Last, int N>
RH_INLINE Vector<float, N> side_halves(Vector<float, N> a, Vector<float, N> b) {
  static_assert(N == 16);
  constexpr int k = Last ? 4 : 0;
  return RH_SHUFFLE(k, 8 + k, 16 + k, 24 + k, 1 + k, 9 + k, 17 + k, 25 + k, 2 + k, 10 + k, 18 + k, 26 + k, 3 + k,
                    11 + k, 19 + k, 27 + k);
}
#if defined(__AVX__)
// Two numbers, again and again.
template <int N>
RH_INLINE Vector<float, N> repeat_pair(const float* from) {
  double both;
  __builtin_memcpy(&both, from, sizeof(both));
  if constexpr (N == 8) return _mm256_castpd_ps(_mm256_set1_pd(both));
#if defined(__AVX512F__)
  if constexpr (N == 16) return _mm512_castpd_ps(_mm512_set1_pd(both));
#endif
}

// to (N, 2): a and b in turn.
template <int N>
RH_INLINE void store_pairs(float* to, Vector<float, N> a, Vector<float, N> b) {
  if constexpr (N == 8) {
    const Vector<float, N> low = interleave<1, false, N>(a, b), high = interleave<1, true, N>(a, b);
    store<float, N>(to, interleave<4, false, N>(low, high));
    store<float, N>(to + N, interleave<4, true, N>(low, high));
  } else if constexpr (N == 4) {
    store<float, N>(to, interleave<1, false, N>(a, b));
    store<float, N>(to + N, interleave<1, true, N>(a, b));
  } else {
    store<float, N>(to, RH_SHUFFLE(0, 16, 1, 17, 2, 18, 3, 19, 4, 20, 5, 21, 6, 22, 7, 23));
    store<float, N>(to + N, RH_SHUFFLE(8, 24, 9, 25, 10, 26, 11, 27, 12, 28, 13, 29, 14, 30, 15, 31));
  }
}

// The opposite: the even lanes, and the odd ones.
RH_INLINE void split_pairs(Vector<float, 8> value, Vector<float, 4>& even, Vector<float, 4>& odd) {
  const __m256 order = _mm256_permutevar8x32_ps(value, _mm256_setr_epi32(0, 2, 4, 6, 1, 3, 5, 7));
  even = _mm256_castps256_ps128(order);
  odd = _mm256_extractf128_ps(order, 1);
}
#if defined(__AVX512F__)
RH_INLINE void split_pairs(Vector<float, 16> value, Vector<float, 8>& even, Vector<float, 8>& odd) {
  const __m512i places = _mm512_setr_epi32(0, 2, 4, 6, 8, 10, 12, 14, 1, 3, 5, 7, 9, 11, 13, 15);
  const __m512 order = _mm512_maskz_permutexvar_ps(0xFFFF, places, value);
  even = _mm512_maskz_extractf32x8_ps(0xFF, order, 0);
  odd = _mm512_maskz_extractf32x8_ps(0xFF, order, 1);
}
#endif

// Two numbers, each in a half of the lanes.
#if defined(__AVX512F__)
template <int N>
RH_INLINE Vector<float, N> side_by_side(const float* from) {
  const __m512i halves = _mm512_setr_epi32(0, 0, 0, 0, 0, 0, 0, 0, 1, 1, 1, 1, 1, 1, 1, 1);
  return _mm512_maskz_permutexvar_ps(0xFFFF, halves, repeat_pair<N>(from));
}
#else
template <int N>
Vector<float, N> side_by_side(const float*);
#endif

// Four or eight numbers, again and again.
template <int N, int Count>
RH_INLINE Vector<float, N> repeat(const float* from) {
  if constexpr (Count == N) return load<float, N>(from);
  if constexpr (Count == 4 && N == 8) return _mm256_broadcast_ps(reinterpret_cast<const __m128*>(from));
#if defined(__AVX512F__)
  if constexpr (Count == 4 && N == 16) return _mm512_maskz_broadcast_f32x4(0xFFFF, _mm_loadu_ps(from));
  if constexpr (Count == 8 && N == 16) return _mm512_maskz_broadcast_f32x8(0xFFFF, _mm256_loadu_ps(from));
#endif
}
#endif

// Of the groups of four lanes of a and b, in turn, the first half, or the last.
template <bool Last>
RH_INLINE Vector<float, 16> groups_in_turn(Vector<float, 16> a, Vector<float, 16> b) {
  constexpr int k = Last ? 8 : 0, N = 16;
  return RH_SHUFFLE(k, k + 1, k + 2, k + 3, 16 + k, 17 + k, 18 + k, 19 + k, 4 + k, 5 + k, 6 + k, 7 + k, 20 + k, 21 + k,
                    22 + k, 23 + k);
}

#undef RH_SHUFFLE

// In-register transposition of a square of N vectors of N = 4 or 8 lanes.
template <int N>
RH_INLINE void transpose_square(Vector<float, N> (&row)[N]) {
  Vector<float, N> pair[N], quad[N];
#pragma GCC unroll 4
  for (int i = 0; i < N; i += 2) {
    pair[i] = interleave<1, false, N>(row[i], row[i + 1]);
    pair[i + 1] = interleave<1, true, N>(row[i], row[i + 1]);
  }
#pragma GCC unroll 4
  for (int i = 0; i < N; i += 4) {
    quad[i] = interleave<2, false, N>(pair[i], pair[i + 2]);
    quad[i + 1] = interleave<2, true, N>(pair[i], pair[i + 2]);
    quad[i + 2] = interleave<2, false, N>(pair[i + 1], pair[i + 3]);
    quad[i + 3] = interleave<2, true, N>(pair[i + 1], pair[i + 3]);
  }
#pragma GCC unroll 4
  for (int i = 0; i < 4; ++i) {
    if constexpr (N == 8) {
      row[i] = interleave<4, false, N>(quad[i], quad[i + 4]);
      row[i + 4] = interleave<4, true, N>(quad[i], quad[i + 4]);
    } else {
      row[i] = quad[i];
    }
  }
}

// sum (i) = the sum over the lanes of v[i], each added in the same order: upper to lower half until four are left, then
// neighbours.
template <int N>
RH_INLINE void row_sums(const Vector<float, N> (&v)[4], float (&sum)[4]) {
  if constexpr (N > 4) {
    const Vector<float, N / 2> half[4] = {add_halves<float, N>(v[0]), add_halves<float, N>(v[1]),
                                          add_halves<float, N>(v[2]), add_halves<float, N>(v[3])};
    row_sums<N / 2>(half, sum);
  } else {
    Vector<float, 4> row[4] = {v[0], v[1], v[2], v[3]};
    transpose_square<4>(row);
    store<float, 4>(sum, (row[0] + row[1]) + (row[2] + row[3]));
  }
}
template <int N>
RH_INLINE void row_sums(const Vector<double, N> (&v)[4], double (&sum)[4]) {
  static_assert(N == 2);
  for (int i = 0; i < 4; ++i) sum[i] = v[i][0] + v[i][1];
}

#if defined(__AVX__)
// Of two vectors whose groups of four lanes belong to rows of their own the sums of neighbouring lanes: those of a's row,
// and then of b's, in each group.
template <int N>
RH_INLINE Vector<float, N> neighbour_sums(Vector<float, N> a, Vector<float, N> b) {
  constexpr int kEven = 0x88, kOdd = 0xDD;
  if constexpr (N == 8) return _mm256_shuffle_ps(a, b, kEven) + _mm256_shuffle_ps(a, b, kOdd);
#if defined(__AVX512F__)
  constexpr __mmask16 kAll = 0xFFFF;
  if constexpr (N == 16) return _mm512_maskz_shuffle_ps(kAll, a, b, kEven) + _mm512_maskz_shuffle_ps(kAll, a, b, kOdd);
#endif
}

// As many rows as lanes.
template <int N>
  requires(N > 4)
RH_INLINE void row_sums(const Vector<float, N> (&v)[N], float (&sum)[N]) {
  Vector<float, N> quad[4];  // groups of four lanes: of rows i, 4 + i, ...
#pragma GCC unroll 4
  for (int i = 0; i < 4; ++i) {
    if constexpr (N == 8) {
      quad[i] = _mm256_permute2f128_ps(v[i], v[4 + i], 0x20) + _mm256_permute2f128_ps(v[i], v[4 + i], 0x31);
#if defined(__AVX512F__)
    } else {
      constexpr __mmask16 kAll = 0xFFFF;
      Vector<float, N> pair[2];
#pragma GCC unroll 2
      for (int k = 0; k < 2; ++k) {
        const Vector<float, N> a = v[8 * k + i], b = v[8 * k + 4 + i];
        pair[k] = _mm512_maskz_shuffle_f32x4(kAll, a, b, 0x44) + _mm512_maskz_shuffle_f32x4(kAll, a, b, 0xEE);
      }
      quad[i] = _mm512_maskz_shuffle_f32x4(kAll, pair[0], pair[1], 0x88) +
                _mm512_maskz_shuffle_f32x4(kAll, pair[0], pair[1], 0xDD);
#endif
    }
  }
  store<float, N>(sum, neighbour_sums<N>(neighbour_sums<N>(quad[0], quad[1]), neighbour_sums<N>(quad[2], quad[3])));
}
#endif

RH_INLINE void transpose_square(Vector<double, 2> (&row)[2]) {
  const Vector<double, 2> first = row[0], second = row[1];
  row[0] = Vector<double, 2>{first[0], second[0]};
  row[1] = Vector<double, 2>{first[1], second[1]};
}

}  // namespace
}  // namespace rohydr

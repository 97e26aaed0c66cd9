// SPDX-License-Identifier: MIT
// softmax(Q K') V for short sequences, queries in the lanes: a lane owns one query of one head, keys come one by one as
// broadcast scalars, and scores, weights and outputs never leave the registers. No element depends on its neighbours.
//   per (query, key): 2 D multiply-adds and one 2^x; memory: K and V of a head, once for each vector of queries.
// Scores are in units of log2: whoever makes Q multiplies it by log2(e) / sqrt(D).
#pragma once

#include "exponentials.h"

namespace rohydr {
namespace {

// |score| <= sum_d |q_d| max_k |k_d|. While that is at most kScoreLimit, 2^score can be summed as it is: neither the
// sum nor its products with V leave the range of float. Otherwise the largest score of the query is taken off first.
// The decision is each lane's own, so that a query gives the same bits beside any other.
constexpr double kScoreLimit = 60;

template <class T>
struct KeysValues {
  const T* keys;          // head's first channel of key j: keys + index[j] * stride
  const T* values;        // likewise
  Index stride;
  const std::int32_t* index;  // (count) rows that exist
  Index count;
  const T* largest;  // (D) max_k |k_d| over the keys of this head; not finite where a key is not
};

// largest (columns) = max over the rows `index` of |keys|, not finite where one of them is not: as integers, magnitudes
// are in the same order, with NaN behind infinity.
template <int Vectors, int N, class T>
RH_INLINE void largest_of_columns(const T* keys, Index stride, const std::int32_t* index, Index count, T* largest) {
  using Integers = Vector<typename IntegerOf<T>::type, N>;
  Integers most[Vectors] = {};  // side by side, for each is one long chain
  for (Index j = 0; j < count; ++j) {
    const T* const key = keys + index[j] * stride;
#pragma GCC unroll 4
    for (int v = 0; v < Vectors; ++v) {
      const Integers size = (Integers)absolute<T, N>(load<T, N>(key + v * N));
      most[v] = size > most[v] ? size : most[v];
    }
  }
#pragma GCC unroll 4
  for (int v = 0; v < Vectors; ++v) store<T, N>(largest + v * N, (Vector<T, N>)most[v]);
}

template <class T>
void largest_magnitudes(const T* keys, Index stride, const std::int32_t* index, Index count, Index columns,
                        T* largest) {
  constexpr int N = kLanes<T>;
  Index column = 0;
  for (; column + 4 * N <= columns; column += 4 * N) {
    largest_of_columns<4, N>(keys + column, stride, index, count, largest + column);
  }
  for (; column + N <= columns; column += N) {
    largest_of_columns<1, N>(keys + column, stride, index, count, largest + column);
  }
  for (; column < columns; ++column) largest_of_columns<1, 1>(keys + column, stride, index, count, largest + column);
}

// Whether softmax needs no shift in any of `lanes` queries of a head.
template <int D, int N, class T>
bool within_limit(const T* q, Index q_stride, Index lanes, const T* largest) {
  bool within = true;
  for (Index lane = 0; lane < lanes; lane += N) {
    Vector<T, N> bound{};
    for (Index d = 0; d < D; ++d) {
      bound = multiply_add<T, N>(absolute<T, N>(load<T, N>(q + d * q_stride + lane)), largest[d], bound);
    }
    const unsigned inside = first_lanes<N>(lanes - lane);
    within = within && (lanes_at_most<T, N>(bound, T(kScoreLimit)) & inside) == inside;
  }
  return within;
}

// Scores of Count keys from `first` on.
template <int D, int N, int Count, class T>
RH_INLINE void scores(const T* q, Index q_stride, const KeysValues<T>& kv, Index first, Index depth,
                      Vector<T, N> (&score)[Count]) {
  const T* key[Count];
#pragma GCC unroll 8
  for (int j = 0; j < Count; ++j) key[j] = kv.keys + kv.index[first + j] * kv.stride;
  const Vector<T, N> q0 = load<T, N>(q);
#pragma GCC unroll 8
  for (int j = 0; j < Count; ++j) score[j] = key[j][0] * q0;
#pragma GCC unroll 32
  for (Index d = 1; d < (D ? D : depth); ++d) {
    const Vector<T, N> qd = load<T, N>(q + d * q_stride);
#pragma GCC unroll 8
    for (int j = 0; j < Count; ++j) score[j] = multiply_add<T, N>(qd, key[j][d], score[j]);
  }
}

// sum += weights, output += weight * value for Count keys. `output` is a register array when D is known, else memory.
template <int D, int N, int Count, class T>
RH_INLINE void add_values(const Vector<T, N> (&weight)[Count], const KeysValues<T>& kv, Index first, Index depth,
                          Vector<T, N>& sum, Vector<T, N> (&output)[D ? D : 1], T* memory, Index memory_stride) {
  const T* value[Count];
#pragma GCC unroll 8
  for (int j = 0; j < Count; ++j) {
    sum = sum + weight[j];
    value[j] = kv.values + kv.index[first + j] * kv.stride;
  }
  if constexpr (D != 0) {
#pragma GCC unroll 32
    for (int d = 0; d < D; ++d) {
#pragma GCC unroll 8
      for (int j = 0; j < Count; ++j) output[d] = multiply_add<T, N>(weight[j], value[j][d], output[d]);
    }
  } else {
    for (Index d = 0; d < depth; ++d) {
      Vector<T, N> line = load<T, N>(memory + d * memory_stride);
#pragma GCC unroll 8
      for (int j = 0; j < Count; ++j) line = multiply_add<T, N>(weight[j], value[j][d], line);
      store<T, N>(memory + d * memory_stride, line);
    }
  }
}

template <class T, int N, int Count, bool Shifted>
RH_INLINE void weigh(Vector<T, N> (&score)[Count], Vector<T, N> shift) {
#pragma GCC unroll 8
  for (int j = 0; j < Count; ++j) {
    score[j] = Shifted ? exp2_or_zero<T, N>(score[j] - shift) : exp2_in_range<T, N>(score[j]);
  }
}

// N queries of one head. q and out: (D, lanes), lines `q_stride` and `out_stride` apart. norms, if not null, gets two
// lines: one over the sum of the weights, and what was taken off the scores.
template <int D, int N, bool Shifted, class T>
RH_INLINE void queries(const T* q, Index q_stride, const KeysValues<T>& kv, Index depth, Vector<T, N> shift, T* out,
                       Index out_stride, T* norms, Index norms_stride) {
  constexpr int kKeys = 4;
  Vector<T, N> sum{};
  Vector<T, N> output[D ? D : 1] = {};
  if constexpr (D == 0) {
    for (Index d = 0; d < depth; ++d) store<T, N>(out + d * out_stride, sum);
  }
  Index j = 0;
  if (kv.count >= kKeys) {  // the values of a step are added after the scores of the next: 2^x has that time to finish
    Vector<T, N> weight[kKeys];
    scores<D, N, kKeys>(q, q_stride, kv, 0, depth, weight);
    weigh<T, N, kKeys, Shifted>(weight, shift);
    for (; j + 2 * kKeys <= kv.count; j += kKeys) {
      Vector<T, N> next[kKeys];
      scores<D, N, kKeys>(q, q_stride, kv, j + kKeys, depth, next);
      add_values<D, N, kKeys>(weight, kv, j, depth, sum, output, out, out_stride);
      weigh<T, N, kKeys, Shifted>(next, shift);
#pragma GCC unroll 8
      for (int i = 0; i < kKeys; ++i) weight[i] = next[i];
    }
    add_values<D, N, kKeys>(weight, kv, j, depth, sum, output, out, out_stride);
    j += kKeys;
  }
  for (; j < kv.count; ++j) {
    Vector<T, N> weight[1];
    scores<D, N, 1>(q, q_stride, kv, j, depth, weight);
    weigh<T, N, 1, Shifted>(weight, shift);
    add_values<D, N, 1>(weight, kv, j, depth, sum, output, out, out_stride);
  }
  if constexpr (Shifted) sum = sum + (shift - shift);  // an undefined shift makes the row undefined
  const Vector<T, N> scale = kv.count > 0 ? T(1) / sum : sum;  // no key: zeros
  if (norms != nullptr) {
    store<T, N>(norms, scale);
    store<T, N>(norms + norms_stride, Shifted ? shift : Vector<T, N>{});
  }
#pragma GCC unroll 32
  for (Index d = 0; d < (D ? D : depth); ++d) {
    const Vector<T, N> line = D ? output[D ? d : 0] : load<T, N>(out + d * out_stride);
    store<T, N>(out + d * out_stride, line * scale);
  }
}

// The part to take off each lane's scores: 0 in the lanes that are within the limit, the largest score in the others, or
// next to nothing where that is 0: the way back knows by it which lanes were which.
template <int N, class T>
__attribute__((noinline)) Vector<T, N> lane_shifts(const T* q, Index q_stride, const KeysValues<T>& kv, Index depth,
                                                   Vector<T, N> bound) {
  Vector<T, N> most = broadcast<T, N>(T(-3e38));
  Vector<T, N> poison{};
  for (Index j = 0; j < kv.count; ++j) {
    Vector<T, N> score[1];
    scores<0, N, 1>(q, q_stride, kv, j, depth, score);
    most = score[0] > most ? score[0] : most;
    poison = score[0] * T(0) + poison;  // an infinite or undefined score makes the row undefined, as in softmax
  }
  most = most == Vector<T, N>{} ? broadcast<T, N>(T(-1e-30)) : most;  // below 0, so that 2^(0 - it) is 1 exactly
  return bound <= T(kScoreLimit) ? Vector<T, N>{} : most + poison;
}

// Returns how many queries left the cheap path.
template <int D, int N, class T>
RH_INLINE Index head_queries(const T* q, Index q_stride, Index lanes, const KeysValues<T>& kv, Index depth, T* out,
                             Index out_stride, T* norms, Index norms_stride) {
  Vector<T, N> bound{};
  for (Index d = 0; d < (D ? D : depth); ++d) {
    bound = multiply_add<T, N>(absolute<T, N>(load<T, N>(q + d * q_stride)), kv.largest[d], bound);
  }
  // Lanes beyond `lanes` belong to somebody else, or to nobody: they have no say.
  const unsigned outside = ~lanes_at_most<T, N>(bound, T(kScoreLimit)) & first_lanes<N>(lanes);
  const Index hits = __builtin_popcount(outside);
  if (__builtin_expect(hits == 0, 1)) {
    queries<D, N, false>(q, q_stride, kv, depth, bound, out, out_stride, norms, norms_stride);
  } else {
    const Vector<T, N> shift = lane_shifts<N>(q, q_stride, kv, depth, bound);
    queries<D, N, true>(q, q_stride, kv, depth, shift, out, out_stride, norms, norms_stride);
  }
  return hits;
}

// `lanes` queries of one head, which stand in neighbouring lanes from q on. Up to a vector of lanes beyond the last one
// is read in q and overwritten in out.
template <int D, class T>
Index head(const T* q, Index q_stride, Index lanes, const KeysValues<T>& kv, Index depth, T* out, Index out_stride,
           T* norms = nullptr, Index norms_stride = 0) {
  constexpr int N = kLanes<T>;
  Index hits = 0;
  Index lane = 0;
  for (; lanes - lane > (N > 4 ? N / 2 : 0); lane += N) {
    hits += head_queries<D, N>(q + lane, q_stride, lanes - lane, kv, depth, out + lane, out_stride,
                               norms == nullptr ? nullptr : norms + lane, norms_stride);
  }
  if constexpr (N > 4) {
    if (lane < lanes) {
      hits += head_queries<D, N / 2>(q + lane, q_stride, lanes - lane, kv, depth, out + lane, out_stride,
                                     norms == nullptr ? nullptr : norms + lane, norms_stride);
    }
  }
  return hits;
}

template <class T>
Index head(const T* q, Index q_stride, Index lanes, const KeysValues<T>& kv, Index depth, T* out, Index out_stride,
           T* norms = nullptr, Index norms_stride = 0) {
  switch (depth) {
    case 4:
      return head<4>(q, q_stride, lanes, kv, depth, out, out_stride, norms, norms_stride);
    case 8:
      return head<8>(q, q_stride, lanes, kv, depth, out, out_stride, norms, norms_stride);
    case 16:
      return head<16>(q, q_stride, lanes, kv, depth, out, out_stride, norms, norms_stride);
    default:
      return head<0>(q, q_stride, lanes, kv, depth, out, out_stride, norms, norms_stride);
  }
}

}  // namespace
}  // namespace rohydr

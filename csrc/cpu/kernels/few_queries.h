// SPDX-License-Identifier: MIT
// Attention of the few queries that full vectors leave over: T = 50 are three vectors of 16, and two. For the scores a
// query takes four lanes, one for each of four neighbouring heads, whose channels of each key are laid out side by side;
// for the outputs channels are in the lanes. So hardly a lane is idle. Each sum runs in the order of attention.h, so a
// query has the same bits.
//   per key, R queries and four heads: 8 R D multiply-adds and 4 R 2^x, by full vectors; D shuffles of four lanes
#pragma once

#include "key_blocks.h"

namespace rohydr {
namespace {

template <class T>
constexpr bool kHasFewQueries = sizeof(T) == 4 && kLanes<T> >= 8;
constexpr Index kSideHeads = 4;
constexpr Index kFewKeys = 16;  // laid out at a time

// The most queries that are faster this way than with one head in the lanes.
template <class T>
constexpr Index most_few_queries(Index size, Index heads) {
  return (size == 8 || size == 16) && heads >= kSideHeads ? 4 : 0;
}

// Where channel d of a row is once its heads stand side by side: what the shuffles leave.
template <int D>
constexpr int side_place(int d) {
  if (kLanes<float> == 16 && D == 8) return d * kSideHeads;
  constexpr int kPart = kLanes<float> == 16 ? 16 : 8, kRow = kPart * kSideHeads;
  return d / kPart * kRow + d % 4 * kPart + d % kPart / 4 * 4;
}

// to (D, kSideHeads), channels in the order of side_place, from kSideHeads neighbouring heads of D channels.
template <int D>
RH_INLINE void heads_side_by_side(const float* row, float* to) {
  constexpr int N = kLanes<float>;
  if constexpr (N > D) {
    const Vector<float, N> first = load<float, N>(row), second = load<float, N>(row + N);
    store<float, N>(to, side_halves<false, N>(first, second));
    store<float, N>(to + N, side_halves<true, N>(first, second));
    return;
  }
#pragma GCC unroll 2
  for (int d = 0; d < D; d += N) {
    Vector<float, N> own[kSideHeads];
#pragma GCC unroll 4
    for (int h = 0; h < kSideHeads; ++h) own[h] = load<float, N>(row + h * D + d);
    const Vector<float, N> pair[4] = {interleave<1, false, N>(own[0], own[1]), interleave<1, false, N>(own[2], own[3]),
                                      interleave<1, true, N>(own[0], own[1]), interleave<1, true, N>(own[2], own[3])};
#pragma GCC unroll 2
    for (int i = 0; i < 2; ++i) {
      float* const place = to + d * kSideHeads + i * 2 * N;
      store<float, N>(place, interleave<2, false, N>(pair[2 * i], pair[2 * i + 1]));
      store<float, N>(place + N, interleave<2, true, N>(pair[2 * i], pair[2 * i + 1]));
    }
  }
}

// to (kFewKeys, D, kSideHeads) from the rows (..., kv.stride) of `count` keys from `first` on, and the last one again up to
// a multiple of 8.
template <int D>
RH_INLINE void few_rows(const float* rows, const KeysValues<float>& kv, Index first, Index count, float* to) {
  for (Index j = 0; j < round_up(count, 8); ++j) {
    heads_side_by_side<D>(rows + kv.index[first + smaller(j, count - 1)] * kv.stride, to + j * D * kSideHeads);
  }
}

// to (D, R, kSideHeads) from lines (kSideHeads D, lanes); beyond the last of `lanes` queries it once more.
template <int D, int R>
RH_INLINE void few_lines(const float* lines, Index stride, Index lanes, float* to) {
  for (int r = 0; r < R; ++r) {
    const float* const own = lines + smaller(r, lanes - 1);
    for (int d = 0; d < D; ++d) {
      for (int h = 0; h < kSideHeads; ++h) to[(d * R + r) * kSideHeads + h] = own[(h * D + d) * stride];
    }
  }
}

// Lanes (query, head) of the scores of R queries.
template <int R>
constexpr int kFewLanes = R * kSideHeads < kLanes<float> ? R * kSideHeads : kLanes<float>;

// to (kFewKeys, R, kSideHeads): of the first `count` rows laid out in `keys`, and on to a multiple of 8, the products with
// R queries (D, R, kSideHeads), or two to their power.
template <int D, int R, bool kPower>
RH_INLINE void few_products(const float* query, const float* keys, Index count, float* to) {
  constexpr int kLine = R * kSideHeads, N = kFewLanes<R>, kKeys = 8;
#pragma GCC unroll 2
  for (int lane = 0; lane < kLine; lane += N) {
    for (Index first = 0; first < count; first += kKeys) {
      Vector<float, N> sum[kKeys];
#pragma GCC unroll 16
      for (int d = 0; d < D; ++d) {
        const Vector<float, N> own = load<float, N>(query + d * kLine + lane);
#pragma GCC unroll 8
        for (int j = 0; j < kKeys; ++j) {
          const Vector<float, N> value = repeat_four<N>(keys + (first + j) * D * kSideHeads + side_place<D>(d));
          sum[j] = d == 0 ? value * own : multiply_add<float, N>(own, value, sum[j]);
        }
      }
#pragma GCC unroll 8
      for (int j = 0; j < kKeys; ++j) {
        store<float, N>(to + (first + j) * kLine + lane, kPower ? exp2_in_range<float, N>(sum[j]) : sum[j]);
      }
    }
  }
}

// sum (R, kSideHeads) += the weights of `count` keys.
template <int R>
RH_INLINE void few_sums(const float* weights, Index count, float* sum) {
  constexpr int kLine = R * kSideHeads, N = kFewLanes<R>;
#pragma GCC unroll 2
  for (int lane = 0; lane < kLine; lane += N) {
    Vector<float, N> total = load<float, N>(sum + lane);
    for (Index j = 0; j < count; ++j) total = total + load<float, N>(weights + j * kLine + lane);
    store<float, N>(sum + lane, total);
  }
}

// output (kSideHeads, R, D) += weights * values of `count` keys from `first` on, some heads at a time.
template <int D, int R>
RH_INLINE void few_values(const float* weights, const KeysValues<float>& kv, Index first, Index count, float* output) {
  constexpr int N = D < kLanes<float> ? D : kLanes<float>, kParts = D / N;
  constexpr int kChains = kLanes<float> == 16 ? 16 : 8;
  constexpr int kHeads = kChains / (R * kParts) < kSideHeads ? kChains / (R * kParts) : kSideHeads;
  for (int head = 0; head < kSideHeads; head += kHeads) {
    float* const own = output + head * R * D;
    Vector<float, N> line[kHeads * R * kParts];
#pragma GCC unroll 16
    for (int i = 0; i < kHeads * R * kParts; ++i) line[i] = load<float, N>(own + i * N);
    for (Index j = 0; j < count; ++j) {
      const float* const value = kv.values + kv.index[first + j] * kv.stride + head * D;
      const float* const weight = weights + j * R * kSideHeads + head;
#pragma GCC unroll 16
      for (int i = 0; i < kHeads * R * kParts; ++i) {
        const int h = i / kParts / R, r = i / kParts % R, part = i % kParts;
        line[i] = multiply_add<float, N>(load<float, N>(value + h * D + part * N), weight[r * kSideHeads + h], line[i]);
      }
    }
#pragma GCC unroll 16
    for (int i = 0; i < kHeads * R * kParts; ++i) store<float, N>(own + i * N, line[i]);
  }
}

// `lanes` queries, at most R, of kSideHeads heads, whose scores are within the limit; q, out and norms as of
// `attend_heads`.
template <int D, int R>
__attribute__((noinline)) void few_queries(const float* q, Index q_stride, Index lanes, const KeysValues<float>& kv,
                                           float* out, Index out_stride, float* norms, Index norms_stride) {
  constexpr int kLine = R * kSideHeads;
  alignas(64) float query[D * kLine], output[kSideHeads * R * D] = {};
  few_lines<D, R>(q, q_stride, lanes, query);
  alignas(64) float keys[kFewKeys * D * kSideHeads], weights[kFewKeys * kLine], sum[kLine] = {};
  for (Index first = 0; first < kv.count; first += kFewKeys) {
    const Index count = smaller(kFewKeys, kv.count - first);
    few_rows<D>(kv.keys, kv, first, count, keys);
    few_products<D, R, true>(query, keys, count, weights);
    few_sums<R>(weights, count, sum);
    few_values<D, R>(weights, kv, first, count, output);
  }
  for (int h = 0; h < kSideHeads; ++h) {
    for (Index r = 0; r < lanes; ++r) {
      const float own = kv.count > 0 ? 1 / sum[r * kSideHeads + h] : 0;
      for (int d = 0; d < D; ++d) out[(h * D + d) * out_stride + r] = output[(h * R + r) * D + d] * own;
      if (norms == nullptr) continue;
      norms[2 * h * norms_stride + r] = own;
      norms[(2 * h + 1) * norms_stride + r] = 0;
    }
  }
}

// Attention of few queries of `count` heads of D channels; as `attend_heads`.
template <int D, class T>
Index few_queries_of_heads(const T* q, Index q_stride, Index lanes, KeysValues<T> kv, Index count, T* out,
                           Index out_stride, T* norms, Index norms_stride) {
  constexpr int N = kLanes<T>;
  Index hits = 0;
  while (count > 0) {
    bool together = count >= kSideHeads;
    for (Index h = 0; together && h < kSideHeads; ++h) {
      together = within_limit<D, N / 2>(q + h * D * q_stride, q_stride, lanes, kv.largest + h * D);
    }
    const Index heads = smaller(count, kSideHeads);
    if (together) {
      const auto run = lanes <= 2 ? few_queries<D, 2> : few_queries<D, 4>;
      run(q, q_stride, lanes, kv, out, out_stride, norms, norms_stride);
    }
    for (Index h = 0; h < heads; ++h) {
      if (!together) hits += head<D>(q, q_stride, lanes, kv, Index{D}, out, out_stride, norms, norms_stride);
      q += D * q_stride;
      out += D * out_stride;
      kv.keys += D;
      kv.values += D;
      kv.largest += D;
      if (norms != nullptr) norms += 2 * norms_stride;
    }
    count -= heads;
  }
  return hits;
}

// `lanes` queries of `count` heads of `size` channels each; for every head as `head`, which says what is read and
// written beyond. The first of `norms`' lines is the first head's.
template <class T>
Index attend_heads(const T* q, Index q_stride, Index lanes, const KeysValues<T>& whole, Index size, Index count,
                   T* out, Index out_stride, T* norms = nullptr, Index norms_stride = 0) {
  Index few = 0;
  if constexpr (kHasFewQueries<T>) {
    const Index left = lanes % kLanes<T>;
    if (left <= most_few_queries<T>(size, count)) few = left;
  }
  const Index many = lanes - few;
  Index hits = 0;
  for (Index i = 0; i < count && many > 0; ++i) {
    KeysValues<T> kv = whole;
    kv.keys += i * size;
    kv.values += i * size;
    kv.largest += i * size;
    hits += head_of_full_vectors(q + i * size * q_stride, q_stride, many, kv, size, out + i * size * out_stride,
                                 out_stride, norms == nullptr ? nullptr : norms + 2 * i * norms_stride, norms_stride);
  }
  if constexpr (kHasFewQueries<T>) {
    if (few > 0) {
      const auto run = size == 8 ? few_queries_of_heads<8, T> : few_queries_of_heads<16, T>;
      hits += run(q + many, q_stride, few, whole, count, out + many, out_stride,
                  norms == nullptr ? nullptr : norms + many, norms_stride);
    }
  }
  return hits;
}

}  // namespace
}  // namespace rohydr

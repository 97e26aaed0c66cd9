// SPDX-License-Identifier: MIT
// Attention of the few queries that full vectors leave over: T = 50 are three vectors of 16, and two. For the scores a
// query takes four lanes, one for each of four neighbouring heads, whose channels of each key are laid out side by side,
// and where lanes are left, the next key takes them; for the outputs channels are in the lanes. So hardly a lane is idle.
// Each sum runs in the order of attention.h, so a query has the same bits.
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

// How many keys share a vector of scores of R queries.
template <int R>
constexpr int kFewStep = R * kSideHeads < kLanes<float> ? kLanes<float> / (R * kSideHeads) : 1;
// A line of scores, (R, kFewStep, kSideHeads), is as long, in floats.
template <int R>
constexpr int kFewLine = R * kFewStep<R> * kSideHeads;

// Where the scores of key j and query r are, of (keys / kFewStep, R, kFewStep, kSideHeads).
template <int R>
RH_INLINE Index few_score(Index j, int r) {
  return j / kFewStep<R> * kFewLine<R> + (r * kFewStep<R> + j % kFewStep<R>) * kSideHeads;
}

// `row` as kSideHeads neighbouring heads of D channels, laid out side by side: (D, kSideHeads) in some order.
template <int D>
using SideRow = Vector<float, kLanes<float>>[D * kSideHeads / kLanes<float>];

template <int D>
RH_INLINE void heads_side_by_side(const float* row, SideRow<D>& to) {
  constexpr int N = kLanes<float>;
  if constexpr (N > D) {
    const Vector<float, N> first = load<float, N>(row), second = load<float, N>(row + N);
    to[0] = side_halves<false, N>(first, second);
    to[1] = side_halves<true, N>(first, second);
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
      to[d * kSideHeads / N + 2 * i] = interleave<2, false, N>(pair[2 * i], pair[2 * i + 1]);
      to[d * kSideHeads / N + 2 * i + 1] = interleave<2, true, N>(pair[2 * i], pair[2 * i + 1]);
    }
  }
}

// Where channel d is in that order: its vector, and its group of kSideHeads lanes.
template <int D>
constexpr int side_vector(int d) {
  constexpr int N = kLanes<float>;
  return N > D ? d / kSideHeads : d / N * kSideHeads + d % 4;
}
template <int D>
constexpr int side_group(int d) {
  return kLanes<float> > D ? d % kSideHeads : d % kLanes<float> / 4;
}

// Where channel d is in a line of rows of Step keys: groups of the first and of the second take turns.
template <int D, int Step>
constexpr int side_place(int d) {
  return (side_vector<D>(d) * kLanes<float> + side_group<D>(d) * kSideHeads) * Step;
}

// to (kFewKeys / Step, D, Step, kSideHeads), channels in the order of side_place, from the rows (..., kv.stride) of
// `count` keys from `first` on, and the last one again up to a multiple of 8.
template <int D, int Step>
RH_INLINE void few_rows(const float* rows, const KeysValues<float>& kv, Index first, Index count, float* to) {
  constexpr int N = kLanes<float>, kVectors = D * kSideHeads / N;
  for (Index j = 0; j < round_up(count, 8); j += Step) {
    SideRow<D> side[Step];
#pragma GCC unroll 2
    for (int i = 0; i < Step; ++i) {
      heads_side_by_side<D>(rows + kv.index[first + smaller(j + i, count - 1)] * kv.stride, side[i]);
    }
#pragma GCC unroll 8
    for (int v = 0; v < kVectors; ++v) {
      float* const place = to + (j * kVectors + v * Step) * N;
      if constexpr (Step == 2) {
        store<float, N>(place, groups_in_turn<false>(side[0][v], side[1][v]));
        store<float, N>(place + N, groups_in_turn<true>(side[0][v], side[1][v]));
      } else {
        store<float, N>(place, side[0][v]);
      }
    }
  }
}

// to (D, R, kFewStep, kSideHeads) from lines (kSideHeads D, lanes), for each key of a vector the same; beyond the last
// of `lanes` queries it once more.
template <int D, int R>
RH_INLINE void few_lines(const float* lines, Index stride, Index lanes, float* to) {
  for (int r = 0; r < R; ++r) {
    const float* const own = lines + smaller(r, lanes - 1);
    for (int d = 0; d < D; ++d) {
      for (int i = 0; i < kFewStep<R> * kSideHeads; ++i) {
        to[d * kFewLine<R> + r * kFewStep<R> * kSideHeads + i] = own[(i % kSideHeads * D + d) * stride];
      }
    }
  }
}

// to, see few_score: of the first `count` rows laid out in `keys`, and on to a multiple of 8, the products with R
// queries of few_lines, or two to their power.
template <int D, int R, bool kPower>
RH_INLINE void few_products(const float* query, const float* keys, Index count, float* to) {
  constexpr int kLine = kFewLine<R>, N = kLine < kLanes<float> ? kLine : kLanes<float>, kStep = kFewStep<R>;
  const auto products = [&]<int Lines>(Index first, int lane) __attribute__((always_inline)) {
    Vector<float, N> sum[Lines];
#pragma GCC unroll 16
    for (int d = 0; d < D; ++d) {
      const Vector<float, N> own = load<float, N>(query + d * kLine + lane);
#pragma GCC unroll 8
      for (int j = 0; j < Lines; ++j) {
        const float* const place = keys + (first + j) * D * kStep * kSideHeads + side_place<D, kStep>(d);
        const Vector<float, N> value = repeat<N, kStep * kSideHeads>(place);
        sum[j] = d == 0 ? value * own : multiply_add<float, N>(own, value, sum[j]);
      }
    }
#pragma GCC unroll 8
    for (int j = 0; j < Lines; ++j) {
      store<float, N>(to + (first + j) * kLine + lane, kPower ? exp2_in_range<float, N>(sum[j]) : sum[j]);
    }
  };
  const Index lines = round_up(count, 8) / kStep;
#pragma GCC unroll 2
  for (int lane = 0; lane < kLine; lane += N) {
    Index first = 0;
    for (; first + 8 <= lines; first += 8) products.template operator()<8>(first, lane);
    if constexpr (kStep > 1) {
      for (; first < lines; first += 4) products.template operator()<4>(first, lane);
    }
  }
}

// Neighbouring heads that share a vector of channels.
template <int D>
constexpr int kFewTogether = D < kLanes<float> ? kLanes<float> / D : 1;

// Where the outputs of a query of one head begin, of (kSideHeads / kFewTogether, R, kFewTogether, D).
template <int D, int R>
constexpr Index few_place(int head, int r) {
  constexpr int kTogether = kFewTogether<D>;
  return ((head / kTogether * R + r) * kTogether + head % kTogether) * D;
}

// output, see few_place, += weights * values of `count` keys from `first` on, some heads at a time; `sum`
// (R, kSideHeads) += the weights, where it is not null.
template <int D, int R>
RH_INLINE void few_values(const float* weights, const KeysValues<float>& kv, Index first, Index count, float* output,
                          float* sum) {
  constexpr int N = kLanes<float>, kTogether = kFewTogether<D>, kParts = kTogether * D / N;
  constexpr int kChains = N == 16 ? 16 : 8, kGroups = kSideHeads / kTogether, kNext = kFewStep<R> * kSideHeads;
  constexpr int kAtOnce = kChains / (R * kParts) < kGroups ? kChains / (R * kParts) : kGroups;
  constexpr int kLines = kAtOnce * R * kParts;
  for (int group = 0; group < kGroups; group += kAtOnce) {
    float* const own = output + group * R * kTogether * D;
    const bool summed = sum != nullptr && group == 0;
    Vector<float, N> line[kLines];
    Vector<float, kSideHeads> total[R];
#pragma GCC unroll 16
    for (int i = 0; i < kLines; ++i) line[i] = load<float, N>(own + i * N);
#pragma GCC unroll 4
    for (int r = 0; r < R && summed; ++r) total[r] = load<float, kSideHeads>(sum + r * kSideHeads);
    for (Index j = 0; j < count; ++j) {
      const float* const value = kv.values + kv.index[first + j] * kv.stride + group * kTogether * D;
      const float* const weight = weights + few_score<R>(j, 0);
#pragma GCC unroll 4
      for (int r = 0; r < R && summed; ++r) total[r] = total[r] + load<float, kSideHeads>(weight + r * kNext);
#pragma GCC unroll 16
      for (int i = 0; i < kLines; ++i) {
        const int g = i / kParts / R, r = i / kParts % R, part = i % kParts;
        const Vector<float, N> v = load<float, N>(value + g * kTogether * D + part * N);
        const float* const w = weight + r * kNext + (group + g) * kTogether;
        if constexpr (kTogether == 2) line[i] = multiply_add<float, N>(v, side_by_side<N>(w), line[i]);
        else line[i] = multiply_add<float, N>(v, *w, line[i]);
      }
    }
#pragma GCC unroll 16
    for (int i = 0; i < kLines; ++i) store<float, N>(own + i * N, line[i]);
#pragma GCC unroll 4
    for (int r = 0; r < R && summed; ++r) store<float, kSideHeads>(sum + r * kSideHeads, total[r]);
  }
}

// `lanes` queries, at most R, of kSideHeads heads, whose scores are within the limit; q, out and norms as of
// `attend_heads`.
template <int D, int R>
__attribute__((noinline)) void few_queries(const float* q, Index q_stride, Index lanes, const KeysValues<float>& kv,
                                           float* out, Index out_stride, float* norms, Index norms_stride) {
  alignas(64) float query[D * kFewLine<R>], output[kSideHeads * R * D] = {};
  few_lines<D, R>(q, q_stride, lanes, query);
  alignas(64) float keys[kFewKeys * D * kSideHeads], weights[kFewKeys * R * kSideHeads], sum[R * kSideHeads] = {};
  for (Index first = 0; first < kv.count; first += kFewKeys) {
    const Index count = smaller(kFewKeys, kv.count - first);
    few_rows<D, kFewStep<R>>(kv.keys, kv, first, count, keys);
    few_products<D, R, true>(query, keys, count, weights);
    few_values<D, R>(weights, kv, first, count, output, sum);
  }
  for (int h = 0; h < kSideHeads; ++h) {
    for (int r = 0; r < lanes; ++r) {
      const float own = kv.count > 0 ? 1 / sum[r * kSideHeads + h] : 0;
      for (int d = 0; d < D; ++d) out[(h * D + d) * out_stride + r] = output[few_place<D, R>(h, r) + d] * own;
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

// SPDX-License-Identifier: MIT
// Attention of the few queries that full vectors leave over: T = 50 are three vectors of 16, and two. Keys are in the
// lanes while scores are computed, channels while values are added, so hardly a lane is idle. Each sum runs in the order
// of attention.h, so a query has the same bits here and there.
//   per 8 keys and query: 2 D multiply-adds of 8 lanes and one vector of 2^x; per 8 keys: D / 8 transpositions
#pragma once

#include "key_blocks.h"

namespace rohydr {
namespace {

// The most queries that are faster this way, by the size of the heads.
template <class T>
constexpr bool kHasFewQueries = sizeof(T) == 4 && kLanes<T> >= 8;
constexpr Index most_few_queries(Index size) { return size == 8 ? 3 : size == 16 ? 4 : 0; }

// Queries q[0..R) of Heads neighbouring heads, whose scores are within the limit; arguments as of `queries`.
template <int D, int R, int Heads>
void few_queries(const float* q, Index q_stride, const KeysValues<float>& kv, float* out, Index out_stride,
                 float* norms, Index norms_stride) {
  constexpr int N = 8, kParts = D / N;
  using Lanes = Vector<float, N>;
  Lanes output[Heads][R][kParts] = {};
  float sum[Heads][R] = {};
  for (Index first = 0; first < kv.count; first += N) {
    const Index count = smaller(N, kv.count - first);
    const std::int32_t* const index = kv.index + first;
    alignas(32) float weight[Heads][R][N];
#pragma GCC unroll 2
    for (int h = 0; h < Heads; ++h) {
      Lanes score[R];
#pragma GCC unroll 2
      for (int part = 0; part < kParts; ++part) {
        const int channel = h * D + part * N;
        Lanes key[N];  // of each key, and then of each channel; beyond the last key it once more
#pragma GCC unroll 8
        for (Index i = 0; i < N; ++i) {
          key[i] = load<float, N>(kv.keys + index[smaller(i, count - 1)] * kv.stride + channel);
        }
        transpose_square<N>(key);
#pragma GCC unroll 8
        for (int d = 0; d < N; ++d) {
          const float* const own = q + (channel + d) * q_stride;
#pragma GCC unroll 4
          for (int r = 0; r < R; ++r) {
            score[r] = part == 0 && d == 0 ? key[d] * own[r] : multiply_add<float, N>(key[d], own[r], score[r]);
          }
        }
      }
#pragma GCC unroll 4
      for (int r = 0; r < R; ++r) store<float, N>(weight[h][r], exp2_in_range<float, N>(score[r]));
    }
    for (Index j = 0; j < count; ++j) {
      const float* const value = kv.values + index[j] * kv.stride;
#pragma GCC unroll 2
      for (int h = 0; h < Heads; ++h) {
#pragma GCC unroll 4
        for (int r = 0; r < R; ++r) {
          const float w = weight[h][r][j];
          sum[h][r] += w;
#pragma GCC unroll 2
          for (int part = 0; part < kParts; ++part) {
            Lanes& line = output[h][r][part];
            line = multiply_add<float, N>(load<float, N>(value + h * D + part * N), w, line);
          }
        }
      }
    }
  }
  for (int h = 0; h < Heads; ++h) {
    for (int r = 0; r < R; ++r) {
      const float scale = kv.count > 0 ? 1 / sum[h][r] : 0;
      for (int d = 0; d < D; ++d) out[(h * D + d) * out_stride + r] = output[h][r][d / N][d % N] * scale;
      if (norms == nullptr) continue;
      norms[2 * h * norms_stride + r] = scale;
      norms[(2 * h + 1) * norms_stride + r] = 0;
    }
  }
}

template <int D, int Heads>
void few_queries(const float* q, Index q_stride, Index lanes, const KeysValues<float>& kv, float* out,
                 Index out_stride, float* norms, Index norms_stride) {
  switch (lanes) {
    case 1:
      return few_queries<D, 1, Heads>(q, q_stride, kv, out, out_stride, norms, norms_stride);
    case 2:
      return few_queries<D, 2, Heads>(q, q_stride, kv, out, out_stride, norms, norms_stride);
    case 3:
      return few_queries<D, 3, Heads>(q, q_stride, kv, out, out_stride, norms, norms_stride);
    default:
      return few_queries<D, 4, Heads>(q, q_stride, kv, out, out_stride, norms, norms_stride);
  }
}

// Attention of `count` heads of D channels, few queries each; as `attend_heads`.
template <int D, class T>
Index few_queries_of_heads(const T* q, Index q_stride, Index lanes, KeysValues<T> kv, Index count, T* out,
                           Index out_stride, T* norms, Index norms_stride) {
  Index hits = 0;
  while (count > 0) {
    const auto fits = [&](Index h) {
      return count > h && within_limit<D, kLanes<T> / 2>(q + h * D * q_stride, q_stride, lanes, kv.largest + h * D);
    };
    Index done = 1;
    if (!fits(0)) {
      hits += head<D>(q, q_stride, lanes, kv, Index{D}, out, out_stride, norms, norms_stride);
    } else if (fits(1)) {
      few_queries<D, 2>(q, q_stride, lanes, kv, out, out_stride, norms, norms_stride);
      done = 2;
    } else {
      few_queries<D, 1>(q, q_stride, lanes, kv, out, out_stride, norms, norms_stride);
    }
    q += done * D * q_stride;
    out += done * D * out_stride;
    kv.keys += done * D;
    kv.values += done * D;
    kv.largest += done * D;
    if (norms != nullptr) norms += 2 * done * norms_stride;
    count -= done;
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
    if (left <= most_few_queries(size)) few = left;
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

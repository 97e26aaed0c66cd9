// SPDX-License-Identifier: MIT
// Attention of several vectors of queries by blocks of keys. attention.h holds one vector of queries in registers together
// with its output; there each broadcast key and value serves one multiply-add. Here two or three vectors share it: the
// weights of a block are written to the stack, in the nearest cache, and the values are added from there, some channels
// at a time. Each sum runs in the order of attention.h, so a query has the same bits.
//   per (vector of queries, key): 2 D multiply-adds, 2 D / V broadcasts, one 2^x, and D / kChannels + 1 accesses to its
//   weight
#pragma once

#include "attention.h"

namespace rohydr {
namespace {

// Others have four lanes, and no fused multiply-add, or registers enough.
template <class T>
constexpr bool kHasKeyBlocks = sizeof(T) == 4 && kLanes<T> >= 8;
constexpr Index kBlockKeys = 64;
constexpr int kBlockVectors = kLanes<float> == 16 ? 3 : 2;  // at most

// Of neighbouring keys the scores of V vectors of queries.
template <int V, int Count>
using BlockScores = Vector<float, kLanes<float>>[Count][V];

// weights (Count, V, N) += 2^score, number `i` of them, and to its `sum`.
template <int V, int Count>
RH_INLINE void block_weight(int i, const BlockScores<V, Count>& score, float* weights,
                            Vector<float, kLanes<float>> (&sum)[V]) {
  constexpr int N = kLanes<float>;
  const Vector<float, N> weight = exp2_in_range<float, N>(score[i / V][i % V]);
  sum[i % V] = sum[i % V] + weight;
  store<float, N>(weights + i * N, weight);
}

// The scores of Count keys from `first` on. Meanwhile, where `before` is not null, the weights of these scores: one after
// another, so that multiply-adds are at hand while a power waits for its last one.
template <int D, int V, int Count>
RH_INLINE void block_scores(const float* q, Index q_stride, const KeysValues<float>& kv, Index first,
                            BlockScores<V, Count>& score, const BlockScores<V, Count>* before, float* weights,
                            Vector<float, kLanes<float>> (&sum)[V]) {
  constexpr int N = kLanes<float>;
  const float* key[Count];
#pragma GCC unroll 4
  for (int j = 0; j < Count; ++j) key[j] = kv.keys + kv.index[first + j] * kv.stride;
#pragma GCC unroll 16
  for (int d = 0; d < D; ++d) {
    Vector<float, N> qd[V];
#pragma GCC unroll 4
    for (int v = 0; v < V; ++v) qd[v] = load<float, N>(q + d * q_stride + v * N);
#pragma GCC unroll 4
    for (int j = 0; j < Count; ++j) {
#pragma GCC unroll 4
      for (int v = 0; v < V; ++v) {
        score[j][v] = d == 0 ? key[j][0] * qd[v] : multiply_add<float, N>(qd[v], key[j][d], score[j][v]);
      }
    }
    if (before == nullptr) continue;
#pragma GCC unroll 16
    for (int i = 0; i < Count * V; ++i) {
      if (i * D / (Count * V) == d) block_weight<V, Count>(i, *before, weights, sum);
    }
  }
}

template <int V, int Count>
RH_INLINE void block_weights(const BlockScores<V, Count>& score, float* weights,
                             Vector<float, kLanes<float>> (&sum)[V]) {
#pragma GCC unroll 16
  for (int i = 0; i < Count * V; ++i) block_weight<V, Count>(i, score, weights, sum);
}

// weights (count, V, N) of `count` keys from `first` on, added to `sum`.
template <int D, int V>
RH_INLINE void weights_of_block(const float* q, Index q_stride, const KeysValues<float>& kv, Index first, Index count,
                                float* weights, Vector<float, kLanes<float>> (&sum)[V]) {
  constexpr int N = kLanes<float>, kKeys = 4;
  constexpr bool kAhead = N == 16;  // registers for the next scores beside these
  const auto place = [&](Index j) { return weights + j * V * N; };
  Index j = 0;
  if constexpr (kAhead) {
    if (count >= kKeys) {
      BlockScores<V, kKeys> score, next;
      block_scores<D, V, kKeys>(q, q_stride, kv, first, score, nullptr, nullptr, sum);
      for (; j + 2 * kKeys <= count; j += kKeys) {
        block_scores<D, V, kKeys>(q, q_stride, kv, first + j + kKeys, next, &score, place(j), sum);
#pragma GCC unroll 16
        for (int i = 0; i < kKeys * V; ++i) score[i / V][i % V] = next[i / V][i % V];
      }
      block_weights<V, kKeys>(score, place(j), sum);
      j += kKeys;
    }
  }
  for (; !kAhead && j + kKeys <= count; j += kKeys) {
    BlockScores<V, kKeys> score;
    block_scores<D, V, kKeys>(q, q_stride, kv, first + j, score, nullptr, nullptr, sum);
    block_weights<V, kKeys>(score, place(j), sum);
  }
  for (; j < count; ++j) {
    BlockScores<V, 1> score;
    block_scores<D, V, 1>(q, q_stride, kv, first + j, score, nullptr, nullptr, sum);
    block_weights<V, 1>(score, place(j), sum);
  }
}

// out (Channels, V, N) += weights * values of `count` keys from `first` on, from zero where they are the first ones;
// times `scale` unless it is null.
template <int Channels, int V>
RH_INLINE void block_values(const float* weights, const KeysValues<float>& kv, Index first, Index count, Index channel,
                            const Vector<float, kLanes<float>>* scale, float* out, Index out_stride) {
  constexpr int N = kLanes<float>;
  Vector<float, N> line[Channels][V] = {};
  if (first > 0) {
#pragma GCC unroll 4
    for (int c = 0; c < Channels; ++c) {
#pragma GCC unroll 4
      for (int v = 0; v < V; ++v) line[c][v] = load<float, N>(out + c * out_stride + v * N);
    }
  }
  for (Index j = 0; j < count; ++j) {
    const float* const value = kv.values + kv.index[first + j] * kv.stride + channel;
    Vector<float, N> weight[V];
#pragma GCC unroll 4
    for (int v = 0; v < V; ++v) weight[v] = load<float, N>(weights + (j * V + v) * N);
#pragma GCC unroll 4
    for (int c = 0; c < Channels; ++c) {
#pragma GCC unroll 4
      for (int v = 0; v < V; ++v) line[c][v] = multiply_add<float, N>(weight[v], value[c], line[c][v]);
    }
  }
#pragma GCC unroll 4
  for (int c = 0; c < Channels; ++c) {
#pragma GCC unroll 4
    for (int v = 0; v < V; ++v) {
      store<float, N>(out + c * out_stride + v * N, scale == nullptr ? line[c][v] : line[c][v] * scale[v]);
    }
  }
}

// V vectors of queries of one head, whose scores are within the limit, and at least one key; arguments as of `queries`.
template <int D, int V>
__attribute__((noinline)) void key_blocks(const float* q, Index q_stride, const KeysValues<float>& kv, float* out,
                                          Index out_stride, float* norms, Index norms_stride) {
  constexpr int N = kLanes<float>, kChannels = 4;
  alignas(64) float weights[kBlockKeys * V * N];
  Vector<float, N> sum[V] = {}, scale[V];
  for (Index first = 0; first < kv.count; first += kBlockKeys) {
    const Index count = smaller(kBlockKeys, kv.count - first);
    weights_of_block<D, V>(q, q_stride, kv, first, count, weights, sum);
    const bool last = first + count == kv.count;
    if (last) {
      for (int v = 0; v < V; ++v) scale[v] = 1.0f / sum[v];
    }
    for (Index channel = 0; channel < D; channel += kChannels) {
      block_values<kChannels, V>(weights, kv, first, count, channel, last ? scale : nullptr, out + channel * out_stride,
                                 out_stride);
    }
  }
  if (norms == nullptr) return;
  for (int v = 0; v < V; ++v) {
    store<float, N>(norms + v * N, scale[v]);
    store<float, N>(norms + norms_stride + v * N, Vector<float, N>{});
  }
}

// How many of the vectors that are left go together: of four, 2 and 2 rather than 3 and 1.
RH_INLINE Index block_vectors(Index left) { return left == 4 ? 2 : smaller(left, kBlockVectors); }

template <int D>
Index head_by_blocks(const float* q, Index q_stride, Index lanes, const KeysValues<float>& kv, float* out,
                     Index out_stride, float* norms, Index norms_stride) {
  constexpr int N = kLanes<float>;
  const auto from = [&](Index lane) { return norms == nullptr ? nullptr : norms + lane; };
  Index hits = 0, lane = 0;
  while (lanes - lane >= 2 * N && kv.count > 0) {
    const Index vectors = block_vectors((lanes - lane) / N);
    if (within_limit<D, N>(q + lane, q_stride, vectors * N, kv.largest)) {
      const auto run = vectors == kBlockVectors ? key_blocks<D, kBlockVectors> : key_blocks<D, 2>;
      run(q + lane, q_stride, kv, out + lane, out_stride, from(lane), norms_stride);
    } else {
      hits += head<D>(q + lane, q_stride, vectors * N, kv, Index{D}, out + lane, out_stride, from(lane), norms_stride);
    }
    lane += vectors * N;
  }
  return hits + head<D>(q + lane, q_stride, lanes - lane, kv, Index{D}, out + lane, out_stride, from(lane),
                        norms_stride);
}

// As `head`, which it leaves what it cannot do.
template <class T>
Index head_of_full_vectors(const T* q, Index q_stride, Index lanes, const KeysValues<T>& kv, Index size, T* out,
                           Index out_stride, T* norms, Index norms_stride) {
  if constexpr (kHasKeyBlocks<T>) {
    if (size == 8) return head_by_blocks<8>(q, q_stride, lanes, kv, out, out_stride, norms, norms_stride);
    if (size == 16) return head_by_blocks<16>(q, q_stride, lanes, kv, out, out_stride, norms, norms_stride);
  }
  return head(q, q_stride, lanes, kv, size, out, out_stride, norms, norms_stride);
}

}  // namespace
}  // namespace rohydr

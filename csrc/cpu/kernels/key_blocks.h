// SPDX-License-Identifier: MIT
// Attention of full vectors of queries by blocks of keys, for instruction sets with 16 registers. attention.h holds a
// vector of queries in registers together with its output; there each broadcast key and value serves one multiply-add.
// Here two vectors share it: the weights of a block are written to the stack, in the nearest cache, and the values are
// added from there, some channels at a time. Each sum runs in the order of attention.h, so a query has the same bits.
//   per (vector of queries, key): 2 D multiply-adds, D broadcasts, one 2^x, and D / kChannels + 1 accesses to its weight
#pragma once

#include "attention.h"

namespace rohydr {
namespace {

// Eight lanes are AVX2: the other instruction sets have 32 registers, or no fused multiply-add.
template <class T>
constexpr bool kHasKeyBlocks = sizeof(T) == 4 && kLanes<T> == 8;
constexpr Index kBlockKeys = 64;
constexpr int kBlockVectors = 2;

// weights (Count, kBlockVectors, N) of Count keys from `first` on, added to `sum`.
template <int D, int Count>
RH_INLINE void block_weights(const float* q, Index q_stride, const KeysValues<float>& kv, Index first, float* weights,
                             Vector<float, kLanes<float>> (&sum)[kBlockVectors]) {
  constexpr int N = kLanes<float>, V = kBlockVectors;
  const float* key[Count];
#pragma GCC unroll 4
  for (int j = 0; j < Count; ++j) key[j] = kv.keys + kv.index[first + j] * kv.stride;
  Vector<float, N> score[Count][V];
#pragma GCC unroll 16
  for (int d = 0; d < D; ++d) {
    Vector<float, N> qd[V];
#pragma GCC unroll 2
    for (int v = 0; v < V; ++v) qd[v] = load<float, N>(q + d * q_stride + v * N);
#pragma GCC unroll 4
    for (int j = 0; j < Count; ++j) {
#pragma GCC unroll 2
      for (int v = 0; v < V; ++v) {
        score[j][v] = d == 0 ? key[j][0] * qd[v] : multiply_add<float, N>(qd[v], key[j][d], score[j][v]);
      }
    }
  }
#pragma GCC unroll 4
  for (int j = 0; j < Count; ++j) {
#pragma GCC unroll 2
    for (int v = 0; v < V; ++v) {
      const Vector<float, N> weight = exp2_in_range<float, N>(score[j][v]);
      sum[v] = sum[v] + weight;
      store<float, N>(weights + (j * V + v) * N, weight);
    }
  }
}

// out (Channels, kBlockVectors, N) += weights * values of `count` keys from `first` on, from zero where they are the
// first ones; times `scale` unless it is null.
template <int Channels>
RH_INLINE void block_values(const float* weights, const KeysValues<float>& kv, Index first, Index count, Index channel,
                            const Vector<float, kLanes<float>>* scale, float* out, Index out_stride) {
  constexpr int N = kLanes<float>, V = kBlockVectors;
  Vector<float, N> line[Channels][V] = {};
  if (first > 0) {
#pragma GCC unroll 4
    for (int c = 0; c < Channels; ++c) {
#pragma GCC unroll 2
      for (int v = 0; v < V; ++v) line[c][v] = load<float, N>(out + c * out_stride + v * N);
    }
  }
  for (Index j = 0; j < count; ++j) {
    const float* const value = kv.values + kv.index[first + j] * kv.stride + channel;
    Vector<float, N> weight[V];
#pragma GCC unroll 2
    for (int v = 0; v < V; ++v) weight[v] = load<float, N>(weights + (j * V + v) * N);
#pragma GCC unroll 4
    for (int c = 0; c < Channels; ++c) {
#pragma GCC unroll 2
      for (int v = 0; v < V; ++v) line[c][v] = multiply_add<float, N>(weight[v], value[c], line[c][v]);
    }
  }
#pragma GCC unroll 4
  for (int c = 0; c < Channels; ++c) {
#pragma GCC unroll 2
    for (int v = 0; v < V; ++v) {
      store<float, N>(out + c * out_stride + v * N, scale == nullptr ? line[c][v] : line[c][v] * scale[v]);
    }
  }
}

// kBlockVectors vectors of queries of one head, whose scores are within the limit, and at least one key; arguments as of
// `queries`.
template <int D>
__attribute__((noinline)) void key_blocks(const float* q, Index q_stride, const KeysValues<float>& kv, float* out,
                                          Index out_stride, float* norms, Index norms_stride) {
  constexpr int N = kLanes<float>, V = kBlockVectors, kKeys = 4, kChannels = 4;
  alignas(64) float weights[kBlockKeys * V * N];
  Vector<float, N> sum[V] = {}, scale[V];
  for (Index first = 0; first < kv.count; first += kBlockKeys) {
    const Index count = smaller(kBlockKeys, kv.count - first);
    Index j = 0;
    for (; j + kKeys <= count; j += kKeys) {
      block_weights<D, kKeys>(q, q_stride, kv, first + j, weights + j * V * N, sum);
    }
    for (; j < count; ++j) block_weights<D, 1>(q, q_stride, kv, first + j, weights + j * V * N, sum);
    const bool last = first + count == kv.count;
    if (last) {
      for (int v = 0; v < V; ++v) scale[v] = 1.0f / sum[v];
    }
    for (Index channel = 0; channel < D; channel += kChannels) {
      block_values<kChannels>(weights, kv, first, count, channel, last ? scale : nullptr, out + channel * out_stride,
                              out_stride);
    }
  }
  if (norms == nullptr) return;
  for (int v = 0; v < V; ++v) {
    store<float, N>(norms + v * N, scale[v]);
    store<float, N>(norms + norms_stride + v * N, Vector<float, N>{});
  }
}

template <int D>
Index head_by_blocks(const float* q, Index q_stride, Index lanes, const KeysValues<float>& kv, float* out,
                     Index out_stride, float* norms, Index norms_stride) {
  constexpr int N = kLanes<float>;
  constexpr Index kBoth = kBlockVectors * N;
  const auto from = [&](Index lane) { return norms == nullptr ? nullptr : norms + lane; };
  Index hits = 0, lane = 0;
  for (; lanes - lane >= kBoth && kv.count > 0; lane += kBoth) {
    if (within_limit<D, N>(q + lane, q_stride, kBoth, kv.largest)) {
      key_blocks<D>(q + lane, q_stride, kv, out + lane, out_stride, from(lane), norms_stride);
    } else {
      hits += head<D>(q + lane, q_stride, kBoth, kv, Index{D}, out + lane, out_stride, from(lane), norms_stride);
    }
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

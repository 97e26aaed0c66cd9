// SPDX-License-Identifier: MIT
// The way back through attention for several vectors of queries by blocks of keys, as key_blocks.h goes there: each
// broadcast key and value serves all of them, and the gradients of the scores wait on the stack for dQ. The order of every
// sum is that of attention_backward.h, so the bits are the same.
//   per (vector of queries, key): 3 D multiply-adds and one 2^x, 3 D / V broadcasts
#pragma once

#include "key_blocks.h"
#include "key_value_gradients.h"

namespace rohydr {
namespace {

// Sixteen lanes: other instruction sets have too few registers for scores and slopes of two vectors.
template <class T, int D>
constexpr bool kHasGradientBlocks = kHasPairs<T, D> && kLanes<T> == 16;

// p and ds of Count keys from `first` on into the planes of `h`, and ds to `slopes` (Count, V, N).
template <int D, int V, int Count>
RH_INLINE void block_slopes(const HeadGradient<float>& h, Index lane, const KeysValues<float>& kv, Index first,
                            const Vector<float, kLanes<float>> (&dot)[V], float* slopes) {
  constexpr int N = kLanes<float>;
  const float *key[Count], *value[Count];
#pragma GCC unroll 4
  for (int j = 0; j < Count; ++j) {
    const Index place = kv.index[first + j] * kv.stride;
    key[j] = kv.keys + place;
    value[j] = kv.values + place;
  }
  Vector<float, N> score[Count][V], slope[Count][V];
#pragma GCC unroll 16
  for (int d = 0; d < D; ++d) {
    const Index line = d * h.lines_stride + lane;
    Vector<float, N> q[V], g[V];
#pragma GCC unroll 4
    for (int v = 0; v < V; ++v) {
      q[v] = load<float, N>(h.q + line + v * N);
      g[v] = load<float, N>(h.gradient + line + v * N);
    }
#pragma GCC unroll 4
    for (int j = 0; j < Count; ++j) {
#pragma GCC unroll 4
      for (int v = 0; v < V; ++v) {
        score[j][v] = d == 0 ? key[j][0] * q[v] : multiply_add<float, N>(q[v], key[j][d], score[j][v]);
        slope[j][v] = multiply_add<float, N>(g[v], value[j][d], d == 0 ? Vector<float, N>{} : slope[j][v]);
      }
    }
  }
#pragma GCC unroll 4
  for (int j = 0; j < Count; ++j) {
#pragma GCC unroll 4
    for (int v = 0; v < V; ++v) {
      const Vector<float, N> weight = exp2_in_range<float, N>(score[j][v]) * load<float, N>(h.norms + lane + v * N);
      const Vector<float, N> ds = (slope[j][v] - dot[v]) * weight;
      store_pairs<N>(h.weights + 2 * ((first + j) * h.plane_stride + lane + v * N), weight, ds);
      store<float, N>(slopes + (j * V + v) * N, ds);
    }
  }
}

// V vectors of queries from `lane` on, none of them shifted, and at least one key.
template <int D, int V>
__attribute__((noinline)) void gradient_blocks(const HeadGradient<float>& h, Index lane, const KeysValues<float>& kv) {
  constexpr int N = kLanes<float>, kKeys = 3, kChannels = 4;
  Vector<float, N> dot[V] = {}, scale[V];
  for (int v = 0; v < V; ++v) {
    for (int d = 0; d < D; ++d) {
      const Index place = d * h.lines_stride + lane + v * N;
      dot[v] = multiply_add<float, N>(load<float, N>(h.gradient + place), load<float, N>(h.output + place), dot[v]);
    }
    scale[v] = broadcast<float, N>(h.q_scale);
  }
  KeysValues<float> to_keys = kv;  // dQ = ds K: what values are in the forward
  to_keys.values = kv.keys;
  alignas(64) float slopes[kBlockKeys * V * N];
  for (Index first = 0; first < kv.count; first += kBlockKeys) {
    const Index count = smaller(kBlockKeys, kv.count - first);
    Index j = 0;
    for (; j + kKeys <= count; j += kKeys) {
      block_slopes<D, V, kKeys>(h, lane, kv, first + j, dot, slopes + j * V * N);
    }
    for (; j < count; ++j) block_slopes<D, V, 1>(h, lane, kv, first + j, dot, slopes + j * V * N);
    const bool last = first + count == kv.count;
    for (Index channel = 0; channel < D; channel += kChannels) {
      block_values<kChannels, V>(slopes, to_keys, first, count, channel, last ? scale : nullptr,
                                 h.q_gradient + channel * h.lines_stride + lane, h.lines_stride);
    }
  }
}

// The full vectors of queries before `lanes` that go together; returns the first lane that is left.
template <int D>
Index gradients_by_blocks(const HeadGradient<float>& h, Index lanes, const KeysValues<float>& kv) {
  constexpr int N = kLanes<float>;
  Index lane = 0;
  while (lanes - lane >= 2 * N && kv.count > 0) {
    const Index vectors = block_vectors((lanes - lane) / N);
    if (any_shifted<N>(h.norms + h.norms_stride + lane, vectors * N)) return lane;  // the other way knows how
    (vectors == kBlockVectors ? gradient_blocks<D, kBlockVectors> : gradient_blocks<D, 2>)(h, lane, kv);
    lane += vectors * N;
  }
  return lane;
}

}  // namespace
}  // namespace rohydr

// SPDX-License-Identifier: MIT
// The gradients of attention for one head and one sample, queries in the lanes as in attention.h. The weights are
// computed again; they and the gradients of the scores are written once, key by key, for the sums over queries:
//   p = 2^(s - shift) norm, ds = p (dO V' - sum_d dO O), dQ = ds K, dK = ds' Q, dV = p' dO.
#pragma once

#include "gradient_blocks.h"

namespace rohydr {
namespace {

template <int D, int N, bool Shifted, class T>
RH_INLINE void query_gradients(const HeadGradient<T>& h, Index lane, const KeysValues<T>& kv, Index depth) {
  constexpr int kKeys = 4;
  const T* const q = h.q + lane;
  const T* const g = h.gradient + lane;
  T* const target = h.q_gradient + lane;
  const Vector<T, N> norm = load<T, N>(h.norms + lane), shift = load<T, N>(h.norms + h.norms_stride + lane);
  Vector<T, N> dot{};  // sum_d dO O
  for (Index d = 0; d < (D ? D : depth); ++d) {
    const Index line = d * h.lines_stride;
    dot = multiply_add<T, N>(load<T, N>(g + line), load<T, N>(h.output + lane + line), dot);
  }
  Vector<T, N> sum[D ? D : 1] = {};
  if constexpr (D == 0) {
    for (Index d = 0; d < depth; ++d) store<T, N>(target + d * h.lines_stride, Vector<T, N>{});
  }
  // Scores, and dO V' - dot, of Count keys.
  const auto look = [&]<int Count>(Index first, Vector<T, N> (&weight)[Count], Vector<T, N> (&slope)[Count])
                        __attribute__((always_inline)) {
    scores<D, N, Count>(q, h.lines_stride, kv, first, depth, weight);
    const T* value[Count];
#pragma GCC unroll 8
    for (int j = 0; j < Count; ++j) {
      value[j] = kv.values + kv.index[first + j] * kv.stride;
      slope[j] = Vector<T, N>{};
    }
#pragma GCC unroll 32
    for (Index d = 0; d < (D ? D : depth); ++d) {
      const Vector<T, N> gd = load<T, N>(g + d * h.lines_stride);
#pragma GCC unroll 8
      for (int j = 0; j < Count; ++j) slope[j] = multiply_add<T, N>(gd, value[j][d], slope[j]);
    }
    // Taken off last: where one key has all the weight, O is its V, and the two sums are the same to the bit.
#pragma GCC unroll 8
    for (int j = 0; j < Count; ++j) slope[j] = slope[j] - dot;
  };
  // p and ds from them, kept for the sums over queries.
  const auto weighed = [&]<int Count>(Index first, Vector<T, N> (&weight)[Count], Vector<T, N> (&slope)[Count])
                           __attribute__((always_inline)) {
    weigh<T, N, Count, Shifted>(weight, shift);
#pragma GCC unroll 8
    for (int j = 0; j < Count; ++j) {
      weight[j] = weight[j] * norm;
      slope[j] = slope[j] * weight[j];
      if constexpr (kHasPairs<T, D>) {
        store_pairs<N>(h.weights + 2 * ((first + j) * h.plane_stride + lane), weight[j], slope[j]);
      } else {
        store<T, N>(h.weights + (first + j) * h.plane_stride + lane, weight[j]);
        store<T, N>(h.slopes + (first + j) * h.plane_stride + lane, slope[j]);
      }
    }
  };
  // dQ += ds K.
  const auto add = [&]<int Count>(Index first, const Vector<T, N> (&slope)[Count]) __attribute__((always_inline)) {
    const T* key[Count];
#pragma GCC unroll 8
    for (int j = 0; j < Count; ++j) key[j] = kv.keys + kv.index[first + j] * kv.stride;
    if constexpr (D != 0) {
#pragma GCC unroll 32
      for (int d = 0; d < D; ++d) {
#pragma GCC unroll 8
        for (int j = 0; j < Count; ++j) sum[d] = multiply_add<T, N>(slope[j], key[j][d], sum[d]);
      }
    } else {
      for (Index d = 0; d < depth; ++d) {
        Vector<T, N> line = load<T, N>(target + d * h.lines_stride);
#pragma GCC unroll 8
        for (int j = 0; j < Count; ++j) line = multiply_add<T, N>(slope[j], key[j][d], line);
        store<T, N>(target + d * h.lines_stride, line);
      }
    }
  };
  Index j = 0;
  if (kv.count >= kKeys) {  // as in the forward, the next keys are looked at before the sums of these
    Vector<T, N> weight[kKeys], slope[kKeys];
    look(Index{0}, weight, slope);
    weighed(Index{0}, weight, slope);
    for (; j + 2 * kKeys <= kv.count; j += kKeys) {
      Vector<T, N> next_weight[kKeys], next_slope[kKeys];
      look(j + kKeys, next_weight, next_slope);
      add(j, slope);
      weighed(j + kKeys, next_weight, next_slope);
#pragma GCC unroll 8
      for (int i = 0; i < kKeys; ++i) slope[i] = next_slope[i];
    }
    add(j, slope);
    j += kKeys;
  }
  for (; j < kv.count; ++j) {
    Vector<T, N> weight[1], slope[1];
    look(j, weight, slope);
    weighed(j, weight, slope);
    add(j, slope);
  }
#pragma GCC unroll 32
  for (Index d = 0; d < (D ? D : depth); ++d) {
    T* const place = target + d * h.lines_stride;
    const Vector<T, N> line = D ? sum[D ? d : 0] : load<T, N>(place);
    store<T, N>(place, line * h.q_scale);
  }
}

template <int D, int N, class T>
RH_INLINE void query_gradients_of(const HeadGradient<T>& h, Index lane, Index lanes, const KeysValues<T>& kv,
                                  Index depth) {
  if (any_shifted<N>(h.norms + h.norms_stride + lane, smaller(N, lanes - lane))) {
    query_gradients<D, N, true>(h, lane, kv, depth);
  } else {
    query_gradients<D, N, false>(h, lane, kv, depth);
  }
}

// All gradients of one head. k_gradient and v_gradient are added to, at the rows that kv.index names.
template <int D, class T>
void head_gradients(const HeadGradient<T>& h, Index lanes, const KeysValues<T>& kv, Index depth, T* k_gradient,
                    T* v_gradient, Index target_stride) {
  constexpr int N = kLanes<T>;
  Index lane = 0;
  if constexpr (kHasGradientBlocks<T, D>) lane = gradients_by_blocks<D>(h, lanes, kv);
  for (; lanes - lane > (N > 4 ? N / 2 : 0); lane += N) query_gradients_of<D, N>(h, lane, lanes, kv, depth);
  if constexpr (N > 4) {
    if (lane < lanes) query_gradients_of<D, N / 2>(h, lane, lanes, kv, depth);
  }
  if constexpr (kHasPairs<T, D>) {
    pair_gradients<D>(h, lanes, kv, k_gradient, v_gradient, target_stride);
  } else {
    key_value_gradients(h, lanes, kv, depth, k_gradient, v_gradient, target_stride);
  }
}

template <class T>
void head_gradients(const HeadGradient<T>& h, Index lanes, const KeysValues<T>& kv, Index depth, T* k_gradient,
                    T* v_gradient, Index target_stride) {
  switch (depth) {
    case 8:
      return head_gradients<8>(h, lanes, kv, depth, k_gradient, v_gradient, target_stride);
    case 16:
      return head_gradients<16>(h, lanes, kv, depth, k_gradient, v_gradient, target_stride);
    default:
      return head_gradients<0>(h, lanes, kv, depth, k_gradient, v_gradient, target_stride);
  }
}

}  // namespace
}  // namespace rohydr

// SPDX-License-Identifier: MIT
// The way back through attention for the few queries that full vectors leave over, as few_queries.h goes there: four heads
// at a time, side by side in the lanes for scores, slopes and their products, channels in the lanes for the gradients.
#pragma once

#include "attention_backward.h"
#include "few_queries.h"

namespace rohydr {
namespace {

// Rows index[first + j] of dK += ln 2 ds q, of dV += p dO, over R queries (kSideHeads, R, D).
template <int D, int R>
RH_INLINE void few_sums_over_queries(const float* weights, const float* slopes, const float* q_rows,
                                     const float* gradient_rows, const KeysValues<float>& kv, Index first, Index count,
                                     float* k_gradient, float* v_gradient, Index target_stride) {
  constexpr int N = D < kLanes<float> ? D : kLanes<float>, kNext = kFewStep<R> * kSideHeads;  // query
  const Vector<float, N> ln2 = broadcast<float, N>(static_cast<float>(kLn2));
  for (int h = 0; h < kSideHeads; ++h) {
    for (int part = 0; part < D; part += N) {
      Vector<float, N> q[R], g[R];
#pragma GCC unroll 4
      for (int r = 0; r < R; ++r) {
        q[r] = load<float, N>(q_rows + (h * R + r) * D + part);
        g[r] = load<float, N>(gradient_rows + (h * R + r) * D + part);
      }
      for (Index j = 0; j < count; ++j) {
        const Index place = kv.index[first + j] * target_stride + h * D + part;
        const float* const p = weights + few_score<R>(j, 0) + h;
        const float* const ds = slopes + few_score<R>(j, 0) + h;
        Vector<float, N> of_value = load<float, N>(v_gradient + place), of_key{};
#pragma GCC unroll 4
        for (int r = 0; r < R; ++r) {
          of_value = multiply_add<float, N>(g[r], p[r * kNext], of_value);
          of_key = multiply_add<float, N>(q[r], ds[r * kNext], of_key);
        }
        store<float, N>(v_gradient + place, of_value);
        store<float, N>(k_gradient + place, multiply_add<float, N>(of_key, ln2, load<float, N>(k_gradient + place)));
      }
    }
  }
}

// All gradients of `lanes` queries, at most R, of kSideHeads heads, none of them shifted; `h` is of the first head.
template <int D, int R>
__attribute__((noinline)) void few_gradients(const HeadGradient<float>& h, Index lanes, const KeysValues<float>& kv,
                                             float* k_gradient, float* v_gradient, Index target_stride) {
  constexpr int kLine = kFewLine<R>, N = kLine < kLanes<float> ? kLine : kLanes<float>, kStep = kFewStep<R>;
  constexpr int kRow = D * kSideHeads;
  alignas(64) float query[D * kLine], gradient[D * kLine], output[D * kLine], norm[kLine] = {}, dot[kLine];
  alignas(64) float q_rows[kRow * R], gradient_rows[kRow * R], q_gradient[kRow * R] = {};
  few_lines<D, R>(h.q, h.lines_stride, lanes, query);
  few_lines<D, R>(h.gradient, h.lines_stride, lanes, gradient);
  few_lines<D, R>(h.output, h.lines_stride, lanes, output);
  for (int lane = 0; lane < kLine; lane += N) {  // sum_d dO O, as in attention_backward.h
    Vector<float, N> sum{};
    for (int i = lane; i < D * kLine; i += kLine) {
      sum = multiply_add<float, N>(load<float, N>(gradient + i), load<float, N>(output + i), sum);
    }
    store<float, N>(dot + lane, sum);
  }
  for (int head = 0; head < kSideHeads; ++head) {
    for (int r = 0; r < R; ++r) {
      const Index row = smaller(r, lanes - 1);
      for (int i = 0; r < lanes && i < kStep; ++i) {  // others weigh nothing
        norm[(r * kStep + i) * kSideHeads + head] = h.norms[2 * head * h.norms_stride + r];
      }
      for (int d = 0; d < D; ++d) {
        q_rows[(head * R + r) * D + d] = h.q_rows[row * h.rows_stride + head * D + d];
        gradient_rows[(head * R + r) * D + d] = h.gradient_rows[row * h.gradient_stride + head * D + d];
      }
    }
  }
  KeysValues<float> to_keys = kv;  // dQ = ds K: what values are in the forward
  to_keys.values = kv.keys;
  alignas(64) float side[kFewKeys * kRow], weights[kFewKeys * R * kSideHeads], slopes[kFewKeys * R * kSideHeads];
  for (Index first = 0; first < kv.count; first += kFewKeys) {
    const Index count = smaller(kFewKeys, kv.count - first);
    few_rows<D, kStep>(kv.keys, kv, first, count, side);
    few_products<D, R, true>(query, side, count, weights);
    few_rows<D, kStep>(kv.values, kv, first, count, side);
    few_products<D, R, false>(gradient, side, count, slopes);
    for (Index i = 0; i < round_up(count, kStep) * R * kSideHeads; i += N) {
      const Index lane = i % kLine;
      const Vector<float, N> weight = load<float, N>(weights + i) * load<float, N>(norm + lane);
      store<float, N>(weights + i, weight);
      store<float, N>(slopes + i, (load<float, N>(slopes + i) - load<float, N>(dot + lane)) * weight);
    }
    few_values<D, R>(slopes, to_keys, first, count, q_gradient, nullptr);
    few_sums_over_queries<D, R>(weights, slopes, q_rows, gradient_rows, kv, first, count, k_gradient, v_gradient,
                                target_stride);
  }
  for (int head = 0; head < kSideHeads; ++head) {
    for (int r = 0; r < lanes; ++r) {
      for (int d = 0; d < D; ++d) {
        h.q_gradient[(head * D + d) * h.lines_stride + r] = q_gradient[few_place<D, R>(head, r) + d] * h.q_scale;
      }
    }
  }
}

// The gradients of the queries from `lane` on, `h` still being that of the first one.
template <class T>
HeadGradient<T> from_query(HeadGradient<T> h, Index lane) {
  h.q += lane;
  h.output += lane;
  h.gradient += lane;
  h.q_gradient += lane;
  h.norms += lane;
  h.q_rows += lane * h.rows_stride;
  h.gradient_rows += lane * h.gradient_stride;
  return h;
}

template <class T>
HeadGradient<T> next_head(HeadGradient<T> h, Index size) {
  h.q += size * h.lines_stride;
  h.output += size * h.lines_stride;
  h.gradient += size * h.lines_stride;
  h.q_gradient += size * h.lines_stride;
  h.norms += 2 * h.norms_stride;
  h.q_rows += size;
  h.gradient_rows += size;
  return h;
}

// All gradients of `count` heads of `size` channels, `h` that of the first; k_gradient and v_gradient are added to.
template <class T>
void heads_gradients(HeadGradient<T> h, Index lanes, KeysValues<T> kv, Index size, Index count, T* k_gradient,
                     T* v_gradient, Index target_stride) {
  Index few = 0;
  if constexpr (kHasFewQueries<T>) {
    const Index left = lanes % kLanes<T>;
    if (left <= most_few_queries<T>(size, count)) few = left;
  }
  while (count > 0) {
    const Index heads = few > 0 && count >= kSideHeads ? kSideHeads : 1;
    bool together = false;
    if constexpr (kHasFewQueries<T>) {
      together = heads > 1;
      for (Index i = 0; together && i < heads; ++i) {
        together = !any_shifted<4>(h.norms + (2 * i + 1) * h.norms_stride + lanes - few, few);
      }
      if (together) {
        const HeadGradient<T> last = from_query(h, lanes - few);
        const auto run = size == 8 ? (few <= 2 ? few_gradients<8, 2> : few_gradients<8, 4>)
                                   : (few <= 2 ? few_gradients<16, 2> : few_gradients<16, 4>);
        run(last, few, kv, k_gradient, v_gradient, target_stride);
      }
    }
    const Index many = together ? lanes - few : lanes;
    for (Index i = 0; i < heads; ++i) {
      head_gradients(h, many, kv, size, k_gradient, v_gradient, target_stride);
      h = next_head(h, size);
      kv.keys += size;
      kv.values += size;
      k_gradient += size;
      v_gradient += size;
    }
    count -= heads;
  }
}

}  // namespace
}  // namespace rohydr

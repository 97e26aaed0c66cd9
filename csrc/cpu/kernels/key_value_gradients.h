// SPDX-License-Identifier: MIT
// The sums over queries in the way back through attention of one head: dV = p' dO, dK = ds' Q.
#pragma once

#include "attention.h"
#include "gemm.h"

namespace rohydr {
namespace {

constexpr double kLn2 = 0.69314718055994530942;

// Lines are (D, lanes): neighbouring queries in neighbouring lanes.
template <class T>
struct HeadGradient {
  const T* q;        // lines, times log2(e) / sqrt(D) as in the forward
  const T* output;   // lines O
  const T* gradient; // lines dO
  T* q_gradient;     // lines, of the q without that factor
  Index lines_stride;
  const T* norms;    // (2, lanes) from the forward
  Index norms_stride;
  const T* q_rows;         // (queries, rows_stride), as q
  const T* gradient_rows;  // (queries, gradient_stride) dO
  Index rows_stride, gradient_stride;
  T* weights;  // (keys, plane_stride) p, or with kHasPairs (keys, plane_stride, 2) p and ds
  T* slopes;   // (keys, plane_stride) ds, or unused
  T* pair_rows;  // (queries, D, 2) dO and q, with kHasPairs
  Index plane_stride;
  T q_scale;  // 1 / sqrt(D)
};

// Whether something was taken off the scores of one of `count` queries, the first of which `shift` is of. So many are
// read as fill vectors of N lanes.
template <int N, class T>
RH_INLINE bool any_shifted(const T* shift, Index count) {
  unsigned inside = ~0u;
  for (Index i = 0; i < count; i += N) {
    inside &= lanes_at_most<T, N>(absolute<T, N>(load<T, N>(shift + i)), T(0)) | ~first_lanes<N>(count - i);
  }
  return inside != ~0u;
}

// target[index[row]] (columns) += factor * value. Keys and values of a condition may lie in a far cache.
template <class T>
struct AddToKeys {
  const std::int32_t* index;
  T* target;
  Index stride, count;  // columns
  T factor;
  RH_INLINE void prefetch(Index row, Index) const { __builtin_prefetch(target + index[row] * stride, 1); }
  template <class Value>
  RH_INLINE void operator()(Index row, Index, Value value) const {
    constexpr int N = static_cast<int>(sizeof(Value) / sizeof(T));
    T* const place = target + index[row] * stride;
    if (count >= N) {
      store<T, N>(place, multiply_add<T, N>(value, factor, load<T, N>(place)));
    } else {
      for (Index i = 0; i < count; ++i) place[i] = value[i] * factor + place[i];
    }
  }
};

// target += factor * sum_q plane[row][q] right[q]: dV and dK.
template <int N, class T>
RH_INLINE void add_sums_over_queries(const T* plane, Index plane_stride, Index queries, const T* right,
                                     Index right_stride, const KeysValues<T>& kv, Index column, Index count,
                                     T factor, T* target, Index target_stride) {
  const T* const none = nullptr;
  panel_product<1, N>(RowMajor<T>{plane, plane_stride}, kv.count, right + column, right_stride, none, queries, Index{0},
                      AddToKeys<T>{kv.index, target + column, target_stride, count, factor});
}

template <class T>
void key_value_gradients(const HeadGradient<T>& h, Index queries, const KeysValues<T>& kv, Index depth, T* k_gradient,
                         T* v_gradient, Index target_stride) {
  constexpr int N = kLanes<T>;
  const auto both = [&]<int Lanes>(Index column) {
    const Index count = depth - column;
    add_sums_over_queries<Lanes>(h.weights, h.plane_stride, queries, h.gradient_rows, h.gradient_stride, kv, column,
                                 count, T(1), v_gradient, target_stride);
    add_sums_over_queries<Lanes>(h.slopes, h.plane_stride, queries, h.q_rows, h.rows_stride, kv, column, count,
                                 T(kLn2), k_gradient, target_stride);
  };
  Index column = 0;
  for (; column + N <= depth; column += N) both.template operator()<N>(column);
  if constexpr (N > 8) {
    for (; column + 8 <= depth; column += 8) both.template operator()<8>(column);
  }
  if constexpr (N >= 4) {
    for (; column < depth; column += 4) both.template operator()<4>(column);
  } else {
    for (; column < depth; column += N) both.template operator()<N>(column);
  }
}

// With heads of 8 and 16 channels both sums are one product: lanes alternate between a channel of dV and of dK, the
// elements of p and ds between the queries of a key, and one broadcast of two numbers serves both. So vectors are full
// where a head has fewer channels than they have lanes.
#if defined(__AVX__)
template <class T, int D>
constexpr bool kHasPairs = sizeof(T) == 4 && (D == 8 || D == 16);

struct PairMajor {
  const float* data;  // (rows, stride / 2, 2)
  Index stride;
  RH_INLINE Vector<float, kLanes<float>> at(Index row, Index k) const {
    return repeat_pair<kLanes<float>>(data + row * stride + 2 * k);
  }
  RH_INLINE PairMajor from(Index row) const { return {data + row * stride, stride}; }
};

// Rows index[row] of dV += the even lanes, of dK += ln 2 times the odd ones.
struct AddPairsToKeys {
  const std::int32_t* index;
  float* k_gradient;
  float* v_gradient;
  Index stride;
  RH_INLINE void prefetch(Index row, Index) const {
    __builtin_prefetch(k_gradient + index[row] * stride, 1);
    __builtin_prefetch(v_gradient + index[row] * stride, 1);
  }
  RH_INLINE void operator()(Index row, Index column, Vector<float, kLanes<float>> value) const {
    constexpr int N = kLanes<float> / 2;
    Vector<float, N> of_value, of_key;
    split_pairs(value, of_value, of_key);
    const Index place = index[row] * stride + column / 2;
    store<float, N>(v_gradient + place, of_value + load<float, N>(v_gradient + place));
    const Vector<float, N> factor = broadcast<float, N>(static_cast<float>(kLn2));
    store<float, N>(k_gradient + place, multiply_add<float, N>(of_key, factor, load<float, N>(k_gradient + place)));
  }
};

template <int D>
void pair_gradients(const HeadGradient<float>& h, Index queries, const KeysValues<float>& kv, float* k_gradient,
                    float* v_gradient, Index target_stride) {
  constexpr int N = kLanes<float>, kVectors = 2 * D / N < RH_TILE_VECTORS ? 2 * D / N : RH_TILE_VECTORS;
  for (Index row = 0; row < queries; ++row) {
    for (int d = 0; d < D; d += 8) {
      store_pairs<8>(h.pair_rows + 2 * (row * D + d), load<float, 8>(h.gradient_rows + row * h.gradient_stride + d),
                     load<float, 8>(h.q_rows + row * h.rows_stride + d));
    }
  }
  const float* const none = nullptr;
  for (int column = 0; column < 2 * D; column += kVectors * N) {
    panel_product<kVectors, N>(PairMajor{h.weights, 2 * h.plane_stride}, kv.count, h.pair_rows + column, Index{2 * D},
                               none, queries, Index{column},
                               AddPairsToKeys{kv.index, k_gradient, v_gradient, target_stride});
  }
}
#else
template <class T, int D>
constexpr bool kHasPairs = false;
#endif

}  // namespace
}  // namespace rohydr

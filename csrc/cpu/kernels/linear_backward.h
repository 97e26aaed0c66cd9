// SPDX-License-Identifier: MIT
// The way back through a layer y = x W' + b, and through SiLU: what follows a chain's conditioning. A call of these
// computes some columns of dW, or some rows of dx, alone and in a fixed order.
#pragma once

#include "linears.h"

namespace rohydr {
namespace {

// Terms of a sum that are added up by themselves: thousands one by one would round too much.
constexpr Index kTerms = 128;

template <class T>
struct AddColumns {
  T* out;
  Index stride, columns;
  RH_INLINE void operator()(Index row, Index column, Vector<T, kLanes<T>> value) const {
    constexpr int N = kLanes<T>;
    T* const to = out + row * stride + column;
    if (column + N <= columns) return store<T, N>(to, value + load<T, N>(to));
    for (Index i = 0; i < columns - column; ++i) to[i] += value[i];
  }
};

// dW = dy' x, for `count` outputs from `first` on.
template <class T>
void linear_weight_gradient(const LinearBackwardCall<T>& call, Index first, Index count) {
  T* const out = call.weight_gradient + first * call.inputs;
  for (Index i = 0; i < count * call.inputs; ++i) out[i] = T(0);
  for (Index row = 0; row < call.rows; row += kTerms) {
    const ChannelMajor<T> dy{call.dy + row * call.dy_stride + first, call.dy_stride};
    product_of_rows(dy, count, call.x + row * call.stride, call.stride, smaller(kTerms, call.rows - row), call.inputs,
                    AddColumns<T>{out, call.inputs, call.inputs});
  }
}

// db = the sum of dy, for at most kLinearColumns outputs.
template <class T>
void linear_bias_gradient(const LinearBackwardCall<T>& call, Index first, Index count) {
  T* const out = call.bias_gradient + first;
  for (Index i = 0; i < count; ++i) out[i] = T(0);
  for (Index row = 0; row < call.rows; row += kTerms) {
    T sum[kLinearColumns] = {};
    for (Index r = row; r < smaller(row + kTerms, call.rows); ++r) {
      for (Index i = 0; i < count; ++i) sum[i] += call.dy[r * call.dy_stride + first + i];
    }
    for (Index i = 0; i < count; ++i) out[i] += sum[i];
  }
}

// dx += dy W, for `count` rows from `first` on.
template <class T>
void linear_input_gradient(const LinearBackwardCall<T>& call, Index first, Index count) {
  T* const out = call.x_gradient + first * call.stride;
  for (Index column = 0; column < call.outputs; column += kTerms) {
    const RowMajor<T> dy{call.dy + first * call.dy_stride + column, call.dy_stride};
    product_of_rows(dy, count, call.weight + column * call.stride, call.stride,
                    smaller(kTerms, call.outputs - column), call.stride, AddColumns<T>{out, call.stride, call.stride});
  }
}

// value = SiLU(x) and slope = SiLU'(x) of `count` numbers, in whole vectors.
template <class T>
void silu_and_slope(const T* x, Index count, T* value, T* slope) {
  constexpr int N = kLanes<T>;
  for (Index i = 0; i < count; i += N) {
    const Vector<T, N> number = load<T, N>(x + i);
    const Vector<T, N> exponent = number * T(-1.44269504088896340736);
    const Vector<T, N> power = exp2_in_range<T, N>(at_most<T, N>(at_least<T, N>(exponent, T(-126)), T(126)));
    const Vector<T, N> sigmoid = T(1) / (power + T(1));
    store<T, N>(value + i, number * sigmoid);
    store<T, N>(slope + i, sigmoid * (number * (T(1) - sigmoid) + T(1)));
  }
}

}  // namespace
}  // namespace rohydr

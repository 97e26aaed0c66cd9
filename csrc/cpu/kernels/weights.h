// SPDX-License-Identifier: MIT
// What happens to weights and to their gradients as a whole, once in a step of training.
#pragma once

#include "rows.h"

namespace rohydr {
namespace {

// out (columns, rows) = in (rows, columns)', of which nothing beyond is touched.
template <class T>
void transpose_within(const T* in, Index in_stride, Index rows, Index columns, T* out, Index out_stride) {
  constexpr Index N = kLanes<T> >= 8 ? 8 : kLanes<T>;
  const Index whole_rows = rows / N * N, whole_columns = columns / N * N;
  transpose(in, in_stride, whole_rows, whole_columns, out, out_stride);
  for (Index row = 0; row < rows; ++row) {
    for (Index c = row < whole_rows ? whole_columns : 0; c < columns; ++c) {
      out[c * out_stride + row] = in[row * in_stride + c];
    }
  }
}

// Adds `from` to `to` and makes it zeros.
template <class T>
void add_and_clear(T* to, T* from, Index count) {
  constexpr int N = kLanes<T>;
  const Index whole = count / N * N;
  for (Index i = 0; i < whole; i += N) {
    store<T, N>(to + i, load<T, N>(to + i) + load<T, N>(from + i));
    store<T, N>(from + i, Vector<T, N>{});
  }
  for (Index i = whole; i < count; ++i) {
    to[i] += from[i];
    from[i] = T(0);
  }
}

}  // namespace
}  // namespace rohydr

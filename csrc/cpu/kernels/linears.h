// SPDX-License-Identifier: MIT
// Several linear layers of equal shape on the same rows: y_i = x W_i' + b_i. They run once for a whole chain, so
// weights are not packed beforehand: a block of columns is laid out just before its rows are computed.
#pragma once

#include "gemm.h"
#include "rows.h"

namespace rohydr {
namespace {

template <class T, bool Silu>
struct StoreColumns {
  T* out;
  Index stride, columns;
  RH_INLINE void operator()(Index row, Index column, Vector<T, kLanes<T>> value) const {
    constexpr int N = kLanes<T>;
    if constexpr (Silu) value = silu<T, N>(value);
    T* const to = out + row * stride + column;
    if (column + N <= columns) return store<T, N>(to, value);
    for (Index i = 0; i < columns - column; ++i) to[i] = value[i];
  }
};

template <class T>
Index linears_workspace(Index depth) {
  const Index wide = round_up(depth, 8);
  return wide * kLinearsColumns + kLinearsColumns + 8 * wide;
}

// Columns `column`.. of layer `matrix`, at most kLinearsColumns, for `rows` rows.
template <class T>
void linears(const LinearsCall<T>& call, Index matrix, Index column, Index first, Index rows, T* memory) {
  constexpr Index N = kLanes<T>;
  const Index depth = call.depth, wide = round_up(depth, 8);
  const Index columns = smaller(call.columns - column, kLinearsColumns), whole = columns / 8 * 8;
  T* const lines = memory;                             // (wide, kLinearsColumns) W'
  T* const bias = lines + wide * kLinearsColumns;      // (kLinearsColumns)
  T* const padded = bias + kLinearsColumns;            // (8, wide) rows of W that are not whole squares
  const T* const w = call.weights[matrix] + column * depth;
  for (Index i = 0; i < round_up(columns, N); ++i) bias[i] = i < columns ? call.biases[matrix][column + i] : T(0);
  for (Index i = 0; i < columns; i += 8) {
    if (i < whole && wide == depth) {
      transpose(w + i * depth, depth, 8, depth, lines + i, kLinearsColumns);
      continue;
    }
    for (Index r = 0; r < 8; ++r) {
      const bool there = i + r < columns;
      for (Index k = 0; k < wide; ++k) padded[r * wide + k] = there && k < depth ? w[(i + r) * depth + k] : T(0);
    }
    transpose(padded, wide, 8, depth, lines + i, kLinearsColumns);
  }
  const RowMajor<T> x{call.x + first * depth, depth};
  T* const out = call.out + matrix * call.matrix_stride + first * call.row_stride + column;
  const auto multiply = [&](const auto& epilogue) {
    product_of_rows(x, rows, static_cast<const T*>(lines), kLinearsColumns, depth, columns, epilogue,
                    static_cast<const T*>(bias));
  };
  if (call.silu) return multiply(StoreColumns<T, true>{out, call.row_stride, columns});
  multiply(StoreColumns<T, false>{out, call.row_stride, columns});
}

}  // namespace
}  // namespace rohydr

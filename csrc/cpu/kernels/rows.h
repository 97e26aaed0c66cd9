// SPDX-License-Identifier: MIT
// What happens to rows between the products: LayerNorm with modulation, transposition.
#pragma once

#include "simd.h"

namespace rohydr {
namespace {

constexpr double kLayerNormEpsilon = 1e-6;

// `modulated_layer_norm`, four rows at a time, which share instructions only: each is computed alone. Where fewer are left,
// the last one is taken again.
template <class T>
void layer_norm_by_fours(const T* x, Index rows, Index width, Index stride, const T* shift, const T* scale, T* out,
                         T* statistics) {
  constexpr int N = kLanes<T>;
  const Index whole = width / N * N;
  const Vector<T, N> inside = lane_numbers<T, N>() < T(width - whole) ? broadcast<T, N>(T(1)) : Vector<T, N>{};
  const T share = T(1) / static_cast<T>(width);
  for (Index first = 0; first < rows; first += 4) {
    Index place[4];
#pragma GCC unroll 4
    for (int r = 0; r < 4; ++r) place[r] = smaller(first + r, rows - 1) * stride;
    Vector<T, N> total[4] = {}, squares[4] = {};
    for (Index c = 0; c < width; c += N) {
#pragma GCC unroll 4
      for (int r = 0; r < 4; ++r) total[r] = total[r] + load<T, N>(x + place[r] + c);
    }
    T mean[4], inverse[4];
    row_sums<N>(total, mean);
    for (int r = 0; r < 4; ++r) mean[r] *= share;
    for (Index c = 0; c < whole; c += N) {
#pragma GCC unroll 4
      for (int r = 0; r < 4; ++r) {
        const Vector<T, N> centred = load<T, N>(x + place[r] + c) - mean[r];
        squares[r] = multiply_add<T, N>(centred, centred, squares[r]);
      }
    }
    if (whole < width) {
#pragma GCC unroll 4
      for (int r = 0; r < 4; ++r) {
        const Vector<T, N> centred = (load<T, N>(x + place[r] + whole) - mean[r]) * inside;
        squares[r] = multiply_add<T, N>(centred, centred, squares[r]);
      }
    }
    row_sums<N>(squares, inverse);
    for (int r = 0; r < 4; ++r) inverse[r] = T(1) / square_root(inverse[r] * share + T(kLayerNormEpsilon));
    if (statistics != nullptr) {
      for (int r = 0; r < 4; ++r) {
        const Index row = smaller(first + r, rows - 1);
        statistics[2 * row] = mean[r];
        statistics[2 * row + 1] = inverse[r];
      }
    }
    for (Index c = 0; c < width; c += N) {
      const Vector<T, N> factor = load<T, N>(scale + c) + T(1), offset = load<T, N>(shift + c);
#pragma GCC unroll 4
      for (int r = 0; r < 4; ++r) {
        const Vector<T, N> normal = (load<T, N>(x + place[r] + c) - mean[r]) * inverse[r];
        store<T, N>(out + place[r] + c, multiply_add<T, N>(normal, factor, offset));
      }
    }
  }
}

// The same bits for as many rows as a vector has lanes, of kVectors vectors each: their sums are added side by side.
// Pointers go from row to row, for so many addresses would not fit into registers.
template <int kVectors, class T>
void layer_norm_of_lanes(const T* x, Index stride, const T* shift, const T* scale, T* out, T* statistics) {
  constexpr int N = kLanes<T>, kWidth = kVectors * N;
  const auto sums_of_rows = [&](auto of_row, T(&sum)[N]) {
    Vector<T, N> total[N];
    const T* row = x;
    for (int r = 0; r < N; ++r, row += stride) total[r] = of_row(row, r);
    row_sums<N>(total, sum);
  };
  alignas(64) T mean[N], inverse[N];
  sums_of_rows(
      [&](const T* row, int) {
        Vector<T, N> total{};
#pragma GCC unroll 8
        for (int c = 0; c < kWidth; c += N) total = total + load<T, N>(row + c);
        return total;
      },
      mean);
  for (int r = 0; r < N; ++r) mean[r] *= T(1) / T(kWidth);
  sums_of_rows(
      [&](const T* row, int r) {
        Vector<T, N> squares{};
#pragma GCC unroll 8
        for (int c = 0; c < kWidth; c += N) {
          const Vector<T, N> centred = load<T, N>(row + c) - mean[r];
          squares = multiply_add<T, N>(centred, centred, squares);
        }
        return squares;
      },
      inverse);
  for (int r = 0; r < N; ++r) inverse[r] = T(1) / square_root(inverse[r] * (T(1) / T(kWidth)) + T(kLayerNormEpsilon));
  for (int r = 0; statistics != nullptr && r < N; ++r) {
    statistics[2 * r] = mean[r];
    statistics[2 * r + 1] = inverse[r];
  }
  constexpr int kTogether = kVectors < 4 ? kVectors : 4;
  for (int column = 0; column < kWidth; column += kTogether * N) {
    Vector<T, N> factor[kTogether], offset[kTogether];
#pragma GCC unroll 4
    for (int i = 0; i < kTogether; ++i) {
      factor[i] = load<T, N>(scale + column + i * N) + T(1);
      offset[i] = load<T, N>(shift + column + i * N);
    }
    const T* row = x + column;
    T* to = out + column;
    for (int r = 0; r < N; ++r, row += stride, to += stride) {
#pragma GCC unroll 4
      for (int i = 0; i < kTogether; ++i) {
        const Vector<T, N> normal = (load<T, N>(row + i * N) - mean[r]) * inverse[r];
        store<T, N>(to + i * N, multiply_add<T, N>(normal, factor[i], offset[i]));
      }
    }
  }
}

// out = LN(x) (1 + scale) + shift for rows of `width` channels, `stride` apart and padded to whole vectors with 0 in x
// (what out holds there has no meaning). Two passes: the mean is taken off before squares are summed.
// statistics, if not null, gets (rows, 2): mean, and one over the deviation.
template <class T>
void modulated_layer_norm(const T* x, Index rows, Index width, Index stride, const T* shift, const T* scale, T* out,
                          T* statistics = nullptr) {
  constexpr int N = kLanes<T>;
  if constexpr (N >= 8) {
    const auto lanes = width == 2 * N   ? layer_norm_of_lanes<2, T>
                       : width == 4 * N ? layer_norm_of_lanes<4, T>
                       : width == 8 * N ? layer_norm_of_lanes<8, T>
                                        : nullptr;
    for (; lanes != nullptr && rows >= N; rows -= N) {
      lanes(x, stride, shift, scale, out, statistics);
      x += N * stride;
      out += N * stride;
      if (statistics != nullptr) statistics += 2 * N;
    }
  }
  layer_norm_by_fours(x, rows, width, stride, shift, scale, out, statistics);
}

// out (columns, rows) = in (rows, columns)', in squares of 8 (4 where a vector has no more lanes): up to 7 rows and
// columns beyond the last ones are read, and lines and lanes beyond the last ones written.
template <class T>
void transpose(const T* in, Index in_stride, Index rows, Index columns, T* out, Index out_stride) {
  constexpr int N = kLanes<T> >= 8 ? 8 : kLanes<T>;
  for (Index row = 0; row < rows; row += N) {
    for (Index column = 0; column < columns; column += N) {
      Vector<T, N> square[N];
#pragma GCC unroll 8
      for (int i = 0; i < N; ++i) square[i] = load<T, N>(in + (row + i) * in_stride + column);
      transpose_square(square);
#pragma GCC unroll 8
      for (int i = 0; i < N; ++i) store<T, N>(out + (column + i) * out_stride + row, square[i]);
    }
  }
}

}  // namespace
}  // namespace rohydr

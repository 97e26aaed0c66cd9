// SPDX-License-Identifier: MIT
// Products of a few tens of rows with packed weights: C = A W' + bias, finished by an epilogue while in registers.
// Every element is one chain of multiply-adds over k, from its bias on, whatever the tile: its bits depend neither on
// the other rows nor on where the row stands.
#pragma once

#include "../kernels.h"
#include "simd.h"

namespace rohydr {
namespace {

// A as (rows, k) with rows `stride` apart.
template <class T>
struct RowMajor {
  const T* data;
  Index stride;
  RH_INLINE T at(Index row, Index k) const { return data[row * stride + k]; }
  RH_INLINE RowMajor from(Index row) const { return {data + row * stride, stride}; }
};

// A as (k, rows): what attention leaves, one line for each channel.
template <class T>
struct ChannelMajor {
  const T* data;
  Index stride;
  RH_INLINE T at(Index row, Index k) const { return data[k * stride + row]; }
  RH_INLINE ChannelMajor from(Index row) const { return {data + row, stride}; }
};

template <int Rows, int Vectors, class T, class Left, class Epilogue>
RH_INLINE void tile(Left a, const T* panel, const T* bias, Index depth, Index row, Index column,
                    const Epilogue& epilogue) {
  constexpr int N = kLanes<T>;
  Vector<T, N> sum[Rows][Vectors];
#pragma GCC unroll 16
  for (int r = 0; r < Rows; ++r) {
#pragma GCC unroll 4
    for (int v = 0; v < Vectors; ++v) sum[r][v] = load<T, N>(bias + v * N);
  }
#pragma GCC unroll 4
  for (Index k = 0; k < depth; ++k) {
    Vector<T, N> w[Vectors];
#pragma GCC unroll 4
    for (int v = 0; v < Vectors; ++v) w[v] = load<T, N>(panel + (k * Vectors + v) * N);
#pragma GCC unroll 16
    for (int r = 0; r < Rows; ++r) {
      const T left = a.at(r, k);
#pragma GCC unroll 4
      for (int v = 0; v < Vectors; ++v) sum[r][v] = left * w[v] + sum[r][v];
    }
  }
#pragma GCC unroll 16
  for (int r = 0; r < Rows; ++r) {
#pragma GCC unroll 4
    for (int v = 0; v < Vectors; ++v) epilogue(row + r, column + v * N, sum[r][v]);
  }
}

template <int Rows, int Vectors, class T, class Left, class Epilogue>
RH_INLINE void tile_of(Index rows, Left a, const T* panel, const T* bias, Index depth, Index row, Index column,
                       const Epilogue& epilogue) {
  if constexpr (Rows > 1) {
    if (rows < Rows) return tile_of<Rows - 1, Vectors>(rows, a, panel, bias, depth, row, column, epilogue);
  }
  tile<Rows, Vectors>(a, panel, bias, depth, row, column, epilogue);
}

template <int Vectors, class T, class Left, class Epilogue>
void panel_product(Left a, Index rows, const T* panel, const T* bias, Index depth, Index column,
                   const Epilogue& epilogue) {
  Index row = 0;
  for (Index tiles = (rows + RH_TILE_ROWS - 1) / RH_TILE_ROWS; tiles > 0; --tiles) {
    const Index height = (rows - row + tiles - 1) / tiles;  // even: 50 rows are 5 times 10, not 4 times 12 and 2
    tile_of<RH_TILE_ROWS, Vectors>(height, a.from(row), panel, bias, depth, row, column, epilogue);
    row += height;
  }
}

// epilogue(row, column, values) is called once for each vector of the (rows, columns) result.
template <class T, class Left, class Epilogue>
void product(Left a, Index rows, const PackedMatrix<T>& w, const Epilogue& epilogue) {
  constexpr Index kPanel = RH_TILE_VECTORS * kLanes<T>;
  const Index columns = round_up(w.columns, kLanes<T>);
  Index column = 0;
  for (; column + kPanel <= columns; column += kPanel) {
    panel_product<RH_TILE_VECTORS>(a, rows, w.data + column * w.depth, w.bias + column, w.depth, column, epilogue);
  }
  for (; column < columns; column += kLanes<T>) {
    panel_product<1>(a, rows, w.data + column * w.depth, w.bias + column, w.depth, column, epilogue);
  }
}

template <class T>
struct Store {
  T* out;
  Index stride;
  RH_INLINE void operator()(Index row, Index column, Vector<T, kLanes<T>> value) const {
    store<T, kLanes<T>>(out + row * stride + column, value);
  }
};

template <class T>
struct StoreGelu {
  T* out;
  Index stride;
  RH_INLINE void operator()(Index row, Index column, Vector<T, kLanes<T>> value) const {
    store<T, kLanes<T>>(out + row * stride + column, gelu<T, kLanes<T>>(value));
  }
};

// out += gate * value.
template <class T>
struct AddGated {
  T* out;
  Index stride;
  const T* gate;
  RH_INLINE void operator()(Index row, Index column, Vector<T, kLanes<T>> value) const {
    T* const place = out + row * stride + column;
    store<T, kLanes<T>>(place, load<T, kLanes<T>>(gate + column) * value + load<T, kLanes<T>>(place));
  }
};

// out = value + the position of the row's token.
template <class T>
struct StoreWithPosition {
  T* out;
  Index stride;
  const T* position;  // (tokens, position_stride)
  Index position_stride;
  const std::int32_t* token;  // (rows)
  RH_INLINE void operator()(Index row, Index column, Vector<T, kLanes<T>> value) const {
    const T* const place = position + token[row] * position_stride + column;
    store<T, kLanes<T>>(out + row * stride + column, value + load<T, kLanes<T>>(place));
  }
};

}  // namespace
}  // namespace rohydr

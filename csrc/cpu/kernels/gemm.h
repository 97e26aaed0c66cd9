// SPDX-License-Identifier: MIT
// Products of a few tens of rows with packed weights: C = A W' + bias, finished by an epilogue while in registers.
// Every element is one chain of multiply-adds over k, from its bias on, whatever the tile: its bits depend neither on
// the other rows nor on where the row stands.
#pragma once

#include "../kernels.h"
#include "exponentials.h"

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

// What a product fetches into the second cache for a later one: at each k of a tile, the line at `place`, then `step`
// bytes on. Left to itself the processor asks for a panel of weights when its first tile needs it, all at once.
struct Ahead {
  std::uintptr_t place;  // no pointer: it goes past the end of the arena
  std::uintptr_t step;   // bytes
  RH_INLINE void fetch(Index k) const {
    __builtin_prefetch(reinterpret_cast<const void*>(place + static_cast<std::uintptr_t>(k) * step), 0, 2);
  }
  RH_INLINE Ahead after(Index depth) const { return {place + static_cast<std::uintptr_t>(depth) * step, step}; }
};
struct NothingAhead {
  RH_INLINE void fetch(Index) const {}
  RH_INLINE NothingAhead after(Index) const { return {}; }
};

// `panel` has lines `panel_stride` apart, one for each k; `bias` may be null for 0. An epilogue that reads or adds to far
// memory has prefetch(row, column).
template <int Rows, int Vectors, int N, class T, class Left, class Epilogue, class Next>
RH_INLINE void tile(Left a, const T* panel, Index panel_stride, const T* bias, Index depth, Index row, Index column,
                    const Epilogue& epilogue, Next ahead) {
  if constexpr (requires { epilogue.prefetch(row, column); }) {
#pragma GCC unroll 16
    for (int r = 0; r < Rows; ++r) {
#pragma GCC unroll 4
      for (int v = 0; v < Vectors; ++v) epilogue.prefetch(row + r, column + v * N);
    }
  }
  Vector<T, N> sum[Rows][Vectors];
#pragma GCC unroll 16
  for (int r = 0; r < Rows; ++r) {
#pragma GCC unroll 4
    for (int v = 0; v < Vectors; ++v) sum[r][v] = bias == nullptr ? Vector<T, N>{} : load<T, N>(bias + v * N);
  }
#pragma GCC unroll 4
  for (Index k = 0; k < depth; ++k) {
    ahead.fetch(k);
    Vector<T, N> w[Vectors];
#pragma GCC unroll 4
    for (int v = 0; v < Vectors; ++v) w[v] = load<T, N>(panel + k * panel_stride + v * N);
#pragma GCC unroll 16
    for (int r = 0; r < Rows; ++r) {
      const auto left = a.at(r, k);  // a number, or a vector of two in turn
#pragma GCC unroll 4
      for (int v = 0; v < Vectors; ++v) sum[r][v] = multiply_add<T, N>(w[v], left, sum[r][v]);
    }
  }
#pragma GCC unroll 16
  for (int r = 0; r < Rows; ++r) {
#pragma GCC unroll 4
    for (int v = 0; v < Vectors; ++v) epilogue(row + r, column + v * N, sum[r][v]);
  }
}

template <int Rows, int Vectors, int N, class T, class Left, class Epilogue, class Next>
RH_INLINE void tile_of(Index rows, Left a, const T* panel, Index panel_stride, const T* bias, Index depth, Index row,
                       Index column, const Epilogue& epilogue, Next ahead) {
  if constexpr (Rows > 1) {
    if (rows < Rows) {
      return tile_of<Rows - 1, Vectors, N>(rows, a, panel, panel_stride, bias, depth, row, column, epilogue, ahead);
    }
  }
  tile<Rows, Vectors, N>(a, panel, panel_stride, bias, depth, row, column, epilogue, ahead);
}

constexpr Index tile_count(Index rows) { return (rows + RH_TILE_ROWS - 1) / RH_TILE_ROWS; }

template <int Vectors, int N, class T, class Left, class Epilogue, class Next = NothingAhead>
void panel_product(Left a, Index rows, const T* panel, Index panel_stride, const T* bias, Index depth, Index column,
                   const Epilogue& epilogue, Next ahead = {}) {
  Index row = 0;
  for (Index tiles = tile_count(rows); tiles > 0; --tiles) {
    const Index height = (rows - row + tiles - 1) / tiles;  // even: 50 rows are 5 times 10, not 4 times 12 and 2
    tile_of<RH_TILE_ROWS, Vectors, N>(height, a.from(row), panel, panel_stride, bias, depth, row, column, epilogue,
                                      ahead);
    row += height;
    ahead = ahead.after(depth);
  }
}

// epilogue(row, column, values) is called once for each vector of the (rows, columns) result. With `kFar`, for weights
// that come from a far cache, each panel fetches the next, the last one what follows the matrix in its arena: the next
// matrix in order of use.
template <bool kFar = false, class T, class Left, class Epilogue>
void product(Left a, Index rows, const PackedMatrix<T>& w, const Epilogue& epilogue) {
  constexpr int N = kLanes<T>;
  constexpr Index kPanel = RH_TILE_VECTORS * N;
  const Index columns = round_up(w.columns, N);
  const auto bias = [&](Index column) { return w.bias == nullptr ? nullptr : w.bias + column; };
  constexpr std::uintptr_t kLine = static_cast<std::uintptr_t>(kPanel) * sizeof(T);
  const std::uintptr_t step = kLine / static_cast<std::uintptr_t>(larger(tile_count(rows), 1));
  Index column = 0;
  for (; column + kPanel <= columns; column += kPanel) {
    const T* const panel = w.data + column * w.depth;
    const auto multiply = [&](auto ahead) {
      panel_product<RH_TILE_VECTORS, N>(a, rows, panel, kPanel, bias(column), w.depth, column, epilogue, ahead);
    };
    if constexpr (kFar) {
      multiply(Ahead{reinterpret_cast<std::uintptr_t>(panel + kPanel * w.depth), step});
    } else {
      multiply(NothingAhead{});
    }
  }
  for (; column < columns; column += N) {
    panel_product<1, N>(a, rows, w.data + column * w.depth, Index{N}, bias(column), w.depth, column, epilogue);
  }
}

// The same with rows of activations, `right_stride` apart, on the right: result (rows, columns) = A B + bias, B (depth,
// columns). `bias` may be null.
template <class T, class Left, class Epilogue>
void product_of_rows(Left a, Index rows, const T* right, Index right_stride, Index depth, Index columns,
                     const Epilogue& epilogue, const T* bias = nullptr) {
  constexpr int N = kLanes<T>;
  constexpr Index kPanel = RH_TILE_VECTORS * N;
  const auto from = [&](Index column) { return bias == nullptr ? nullptr : bias + column; };
  Index column = 0;
  for (; column + kPanel <= round_up(columns, N); column += kPanel) {
    panel_product<RH_TILE_VECTORS, N>(a, rows, right + column, right_stride, from(column), depth, column, epilogue);
  }
  for (; column < columns; column += N) {
    panel_product<1, N>(a, rows, right + column, right_stride, from(column), depth, column, epilogue);
  }
}

// Where element (k, column) of a packed matrix is, `column` the first of a vector.
template <class T>
RH_INLINE Index panel_place(Index padded_columns, Index depth, Index k, Index column) {
  constexpr Index kPanel = RH_TILE_VECTORS * kLanes<T>;
  const Index start = column / kPanel * kPanel;
  return start + kPanel <= padded_columns ? start * depth + k * kPanel + column - start
                                          : column * depth + k * kLanes<T>;
}

template <class T>
struct Store {
  T* out;
  Index stride;
  RH_INLINE void operator()(Index row, Index column, Vector<T, kLanes<T>> value) const {
    store<T, kLanes<T>>(out + row * stride + column, value);
  }
};

// out = GELU(value), and the value itself where `before` is not null.
template <class T>
struct StoreGelu {
  T* out;
  Index stride;
  T* before;
  RH_INLINE void operator()(Index row, Index column, Vector<T, kLanes<T>> value) const {
    const Index place = row * stride + column;
    if (before != nullptr) store<T, kLanes<T>>(before + place, value);
    store<T, kLanes<T>>(out + place, gelu<T, kLanes<T>>(value));
  }
};

// out = before + gate * value; `before` may be out.
template <class T>
struct AddGated {
  const T* before;
  T* out;
  Index stride;
  const T* gate;
  RH_INLINE void operator()(Index row, Index column, Vector<T, kLanes<T>> value) const {
    const Index place = row * stride + column;
    constexpr int N = kLanes<T>;
    store<T, N>(out + place, multiply_add<T, N>(load<T, N>(gate + column), value, load<T, N>(before + place)));
  }
};

// The same with a gate for each row, and the value itself where `branch` is not null.
template <class T>
struct AddGatedAndKeep {
  const T* before;
  T* out;
  T* branch;
  Index stride;
  const T* gate;
  const Index* gate_offset;  // (rows)
  RH_INLINE void operator()(Index row, Index column, Vector<T, kLanes<T>> value) const {
    const Index place = row * stride + column;
    constexpr int N = kLanes<T>;
    const Vector<T, N> factor = load<T, N>(gate + gate_offset[row] + column);
    if (branch != nullptr) store<T, N>(branch + place, value);
    store<T, N>(out + place, multiply_add<T, N>(factor, value, load<T, N>(before + place)));
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

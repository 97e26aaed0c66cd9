// SPDX-License-Identifier: MIT
// What the way back through attention multiplies: rows in shared or global memory, and the packed condition.
#pragma once

#include <type_traits>

#include "gradient_parameters.h"
#include "tiles.cuh"

namespace rohydr {

// Matrices (rows, W) as operands of E. rows(n, c): B of X Y' for rows 16 n and channels 16 c; columns(n, c): B of S Y.
template <class E>
struct RowsInShared;
template <class E>
struct PackedCondition;

template <>
struct RowsInShared<Bf16> {
  const Bf16 *of_rows, *of_columns;  // this lane's
  int step;

  __device__ RowsInShared(const Bf16* data, int stride) : step(kTile * stride) {
    const int lane = ptx::thread_index() % 32;
    of_rows = data + ((lane & 7) + (lane >> 4) * 8) * stride + ((lane >> 3) & 1) * 8;
    of_columns = data + (lane & 15) * stride + (lane >> 4) * 8;
  }

  __device__ uint4 rows(int n, int c, int) const {
    std::uint32_t b[4];
    ptx::ldmatrix_x4(b, of_rows + n * step + c * kTile);
    return make_uint4(b[0], b[1], b[2], b[3]);
  }
  __device__ uint4 columns(int n, int c, int) const {
    std::uint32_t b[4];
    ptx::ldmatrix_x4_trans(b, of_columns + n * step + c * kTile);
    return make_uint4(b[0], b[1], b[2], b[3]);
  }
};

// Rows in global memory.
struct RowsInGlobal {
  const Bf16* data;
  int stride;

  __device__ uint4 rows(int n, int c, int lane) const {
    const Bf16* const from = data + static_cast<std::int64_t>(n * kTile + lane / 4) * stride + c * kTile + lane % 4 * 2;
    const auto at = [&](int row, int channel) {
      return *reinterpret_cast<const std::uint32_t*>(from + row * stride + channel);
    };
    return make_uint4(at(0, 0), at(0, 8), at(8, 0), at(8, 8));
  }
};

template <>
struct PackedCondition<Bf16> {
  const uint4 *by_rows, *by_columns;
  int channel_tiles;

  __device__ uint4 rows(int n, int c, int lane) const { return by_rows[(n * channel_tiles + c) * 32 + lane]; }
  __device__ uint4 columns(int n, int c, int lane) const { return by_columns[(n * channel_tiles + c) * 32 + lane]; }
};

// In float32 all of them are rows.
template <>
struct RowsInShared<float> {
  const float* data;
  int stride;
};
template <>
struct PackedCondition<float> : RowsInShared<float> {};

// The condition's keys, or its values, of a sample and layer as pack_gradient_condition_kernel has left them.
template <class E, int W>
__device__ PackedCondition<E> packed_condition(const GradientParameters& p, std::int64_t sample, int layer,
                                               bool values) {
  if constexpr (std::is_same_v<E, float>) {
    return {{reinterpret_cast<const float*>(p.condition_at(sample, layer, values ? 1 : 0)), W}};
  } else {
    return {p.condition_at(sample, layer, values ? 2 : 0), p.condition_at(sample, layer, values ? 1 : 3), W / kTile};
  }
}

}  // namespace rohydr

// SPDX-License-Identifier: MIT
// Who computes what. A block owns one sample; its rows (real tokens) come in pairs of tiles of 16, 32 rows, and each
// pair has Columns<W>::kWarps warps, which share the columns: warp c takes the tiles of 16 columns c, c + kWarps, ...
// Of such a tile of 32 x 16 a thread holds 16 numbers, as mma.sync gives them: [m][j][i], m the tile of 16 rows, j the
// half of 8 columns, i = 0, 1 two neighbouring columns of row lane / 4, i = 2, 3 those of the row 8 below.
#pragma once

#include <cuda_bf16.h>

#include <cstdint>

#include "constants.cuh"
#include "device.cuh"

namespace rohydr {

constexpr int kPairRows = 32;
constexpr int kTile = 16;  // rows, columns and depth of a tile
constexpr unsigned kFullWarp = 0xffffffffu;

using Bf16 = __nv_bfloat16;

using Fragment = float[2][2][4];

// Pairs of tiles that a block may have: with more of them a thread would have too few registers.
template <class E, int W>
constexpr int kMaxPairs = sizeof(E) == 2 || W == 32 ? 4 : W == 64 ? 3 : 2;

template <int W>
struct Columns {
  static_assert(W % kTile == 0, "whole tiles");
  static constexpr int kWarps = W >= 64 ? 4 : W / kTile;
  static constexpr int kTiles = W / kTile / kWarps;  // of W columns, for each warp
  static_assert(kWarps * kTiles * kTile == W, "equal shares");
};

// Where this thread's numbers lie. Each part asks anew, so that the compiler does not keep the addresses of all parts
// in registers at once.
template <int W>
struct Place {
  int pair, column_warp, lane;

  __device__ Place() {
    const int thread = ptx::thread_index();
    pair = thread / 32 / Columns<W>::kWarps;
    column_warp = thread / 32 % Columns<W>::kWarps;
    lane = thread % 32;
  }

  __device__ int row(int m, int h) const { return kPairRows * pair + kTile * m + 8 * h + lane / 4; }
  __device__ int column(int j) const { return 8 * j + lane % 4 * 2; }  // the first of two, in its tile
  __device__ int tile(int i) const { return column_warp + i * Columns<W>::kWarps; }
};

// How operands of type E are kept in shared memory and in packed weights, and multiplied.
template <class E>
struct Operand;

// Packed: for each tile of 16 columns and 16 of depth a piece of 16 bytes for each lane: the two registers of B of
// mma.m16n8k16 for columns 0 to 7, and those for columns 8 to 15.
template <>
struct Operand<Bf16> {
  static constexpr int kPad = 8;            // elements after a row: rows of ldmatrix in different banks
  static constexpr int kPiecesPerDepth = 2;  // 16 bytes each, of a tile of columns

  static __device__ void store2(Bf16* to, float first, float second) {
    *reinterpret_cast<std::uint32_t*>(to) = ptx::pack_bf16(first, second);
  }

  // acc[n] += A W_n': A the pair's rows (32, depth) at `a`, W_n the tile of columns that starts `stride` pieces after
  // the one before. depth is a multiple of 16.
  template <int N>
  static __device__ void multiply(Fragment (&acc)[N], const Bf16* a, int lda, const uint4* w, int stride, int depth,
                                  int lane) {
    const Bf16* const from = a + (lane & 15) * lda + (lane >> 4) * 8;
#pragma unroll 4
    for (int k = 0; k < depth / kTile; ++k) {
      uint4 b[N];
#pragma unroll
      for (int n = 0; n < N; ++n) b[n] = __ldg(w + n * stride + k * 32 + lane);
#pragma unroll
      for (int m = 0; m < 2; ++m) {
        std::uint32_t rows[4];
        ptx::ldmatrix_x4(rows, from + m * kTile * lda + k * kTile);
#pragma unroll
        for (int n = 0; n < N; ++n) {
          ptx::mma_bf16(acc[n][m][0], rows, b[n].x, b[n].y);
          ptx::mma_bf16(acc[n][m][1], rows, b[n].z, b[n].w);
        }
      }
    }
  }
};

// Packed: for each tile of 16 columns and each of depth 16 numbers, four for each quarter of a warp's lanes: the
// columns that those lanes hold. Multiplied in float32 throughout: tensor cores would round the operands.
template <>
struct Operand<float> {
  static constexpr int kPad = 4;
  static constexpr int kPiecesPerDepth = 4;

  static __device__ void store2(float* to, float first, float second) {
    *reinterpret_cast<float2*>(to) = make_float2(first, second);
  }

  template <int N>
  static __device__ void multiply(Fragment (&acc)[N], const float* a, int lda, const uint4* w, int stride, int depth,
                                  int lane) {
    const float* const from = a + lane / 4 * lda;
#pragma unroll 1
    for (int k = 0; k < depth; k += 4) {
      float rows[4][4];  // (2 m + h, depth)
#pragma unroll
      for (int r = 0; r < 4; ++r) {
        const float4 four = *reinterpret_cast<const float4*>(from + 8 * r * lda + k);
        rows[r][0] = four.x, rows[r][1] = four.y, rows[r][2] = four.z, rows[r][3] = four.w;
      }
#pragma unroll
      for (int d = 0; d < 4; ++d) {
#pragma unroll
        for (int n = 0; n < N; ++n) {
          const float4 b = __ldg(reinterpret_cast<const float4*>(w + n * stride) + (k + d) * 4 + lane % 4);
#pragma unroll
          for (int r = 0; r < 4; ++r) {
            Fragment& to = acc[n];
            const int m = r / 2, h = r % 2;
            to[m][0][2 * h] = fmaf(rows[r][d], b.x, to[m][0][2 * h]);
            to[m][0][2 * h + 1] = fmaf(rows[r][d], b.y, to[m][0][2 * h + 1]);
            to[m][1][2 * h] = fmaf(rows[r][d], b.z, to[m][1][2 * h]);
            to[m][1][2 * h + 1] = fmaf(rows[r][d], b.w, to[m][1][2 * h + 1]);
          }
        }
      }
    }
  }
};

// A matrix (columns, depth) with its bias, packed by pack.cuh.
struct PackedTiles {
  const uint4* data;
  const float* bias;  // (columns rounded up to 16)
  int depth;          // rounded up to 16

  template <class E>
  __device__ int tile_size() const {
    return depth * Operand<E>::kPiecesPerDepth;
  }
};

__device__ inline float2 load2(const float* from) { return __ldg(reinterpret_cast<const float2*>(from)); }

// visit(m, h, j, first, second) for the pairs of neighbours that this thread holds of a tile.
template <class Visit>
__device__ void for_pairs(const Fragment& acc, const Visit& visit) {
#pragma unroll
  for (int j = 0; j < 2; ++j) {
#pragma unroll
    for (int m = 0; m < 2; ++m) {
#pragma unroll
      for (int h = 0; h < 2; ++h) visit(m, h, j, acc[m][j][2 * h], acc[m][j][2 * h + 1]);
    }
  }
}

// f(acc) to rows of E that are `stride` elements apart; `to` is where this thread's first number belongs.
template <class E, class Function>
__device__ void store_tile(E* to, int stride, const Fragment& acc, const Function& f) {
#pragma unroll
  for (int r = 0; r < 4; ++r) {
#pragma unroll
    for (int j = 0; j < 2; ++j) {
      Operand<E>::store2(to + 8 * j, f(acc[r / 2][j][r % 2 * 2]), f(acc[r / 2][j][r % 2 * 2 + 1]));
    }
    to += 8 * stride;
  }
}

// N tiles of columns, tile(first), tile(first + 1), ..., of A W' + b.
template <int N, int W, class E>
__device__ void product(Fragment (&acc)[N], const Place<W>& place, const E* a, int lda, const PackedTiles& w,
                        int first) {
#pragma unroll
  for (int n = 0; n < N; ++n) {
#pragma unroll
    for (int j = 0; j < 2; ++j) {
      const float2 bias = load2(w.bias + place.tile(first + n) * kTile + place.column(j));
#pragma unroll
      for (int m = 0; m < 2; ++m) {
        acc[n][m][j][0] = acc[n][m][j][2] = bias.x;
        acc[n][m][j][1] = acc[n][m][j][3] = bias.y;
      }
    }
  }
  const int size = w.tile_size<E>();
  Operand<E>::multiply(acc, a + kPairRows * place.pair * lda, lda, w.data + place.tile(first) * size,
                       Columns<W>::kWarps * size, w.depth, place.lane);
}

// store(tile, acc) for all `tiles` tiles of columns of A W' + b that are this warp's, two at a time.
template <int W, class E, class Store>
__device__ void product_of_tiles(const Place<W>& place, const E* a, int lda, const PackedTiles& w, int tiles,
                                 const Store& store) {
  int i = 0;
#pragma unroll 1
  for (; place.tile(i + 1) < tiles; i += 2) {
    Fragment acc[2];
    product(acc, place, a, lda, w, i);
    store(place.tile(i), acc[0]);
    store(place.tile(i + 1), acc[1]);
  }
  if (place.tile(i) < tiles) {
    Fragment acc[1];
    product(acc, place, a, lda, w, i);
    store(place.tile(i), acc[0]);
  }
}

}  // namespace rohydr

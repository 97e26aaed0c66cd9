// SPDX-License-Identifier: MIT
// Products for the way back, whose steps are too small to be bound by anything but time that passes: units of 16 rows
// and N tiles of 16 columns, dealt to all warps of a block, with weights that are under way before they are needed.
#pragma once

#include "row_passes.cuh"

namespace rohydr {

// Of such a tile a thread holds 8 numbers, as mma.sync gives them: [j][i], j the half of 8 columns, i = 0, 1 two
// neighbouring columns of row lane / 4, i = 2, 3 those of the row 8 below.
using Tile = float[2][4];

// Operands in shared memory: of rows whose first `split` columns are in `first`, and the others in `second`.
template <class E>
struct LeftRows {
  const E* first;
  int stride;
  const E* second = nullptr;
  int second_stride = 0;
  int split = 1 << 30;

  __device__ const E* at(int row, int column) const {
    return column < split ? first + row * stride + column : second + row * second_stride + (column - split);
  }
  __device__ int stride_at(int column) const { return column < split ? stride : second_stride; }
};

// Weights of N tiles of columns at some depths. Beyond the last tile and the whole depth something is fetched that is
// not used, behind the last matrix GradientScratch::kBeyond bytes.
template <class E, int N, int W>
struct WeightPieces;

template <int N, int W>
struct WeightPieces<Bf16, N, W> {
  static constexpr int kSteps = (W < 64 ? W : 64) / kTile / N;  // tiles of depth
  static constexpr int kDepth = kSteps * kTile;
  static constexpr int kPiecesPerDepth = 2;
  uint4 piece[N][kSteps];

  // `from`: this lane's piece of the first tile at some depth; `size`: pieces of a tile.
  static __device__ int lane_of(int lane) { return lane; }
  __device__ void fetch(const uint4* from, int size) {
#pragma unroll
    for (int n = 0; n < N; ++n) {
#pragma unroll
      for (int k = 0; k < kSteps; ++k) piece[n][k] = ptx::load_16(from + n * size + k * 32);
    }
  }

  __device__ void multiply(Tile (&acc)[N], const LeftRows<Bf16>& a, int m, int depth, int end, int lane) const {
    const Bf16* const from = a.at(m * kTile + (lane & 15), depth) + (lane >> 4) * 8;
#pragma unroll
    for (int k = 0; k < kSteps; ++k) {
      if (depth + k * kTile >= end) break;
      std::uint32_t rows[4];
      ptx::ldmatrix_x4(rows, from + k * kTile);
#pragma unroll
      for (int n = 0; n < N; ++n) {
        ptx::mma_bf16(acc[n][0], rows, piece[n][k].x, piece[n][k].y);
        ptx::mma_bf16(acc[n][1], rows, piece[n][k].z, piece[n][k].w);
      }
    }
  }
};

template <int N, int W>
struct WeightPieces<float, N, W> {
  static constexpr int kDepth = 4;
  static constexpr int kPiecesPerDepth = 4;
  float4 piece[N][kDepth];

  static __device__ int lane_of(int lane) { return lane % 4; }
  __device__ void fetch(const uint4* from, int size) {
#pragma unroll
    for (int n = 0; n < N; ++n) {
#pragma unroll
      for (int d = 0; d < kDepth; ++d) piece[n][d] = __ldg(reinterpret_cast<const float4*>(from + n * size) + d * 4);
    }
  }

  __device__ void multiply(Tile (&acc)[N], const LeftRows<float>& a, int m, int depth, int, int lane) const {
    const float* const from = a.at(m * kTile + lane / 4, depth);
#pragma unroll
    for (int h = 0; h < 2; ++h) {
      const float4 four = *reinterpret_cast<const float4*>(from + 8 * h * a.stride_at(depth));
      const float row[4] = {four.x, four.y, four.z, four.w};
#pragma unroll
      for (int d = 0; d < kDepth; ++d) {
#pragma unroll
        for (int n = 0; n < N; ++n) {
          const float4& b = piece[n][d];
          acc[n][0][2 * h] = fmaf(row[d], b.x, acc[n][0][2 * h]);
          acc[n][0][2 * h + 1] = fmaf(row[d], b.y, acc[n][0][2 * h + 1]);
          acc[n][1][2 * h] = fmaf(row[d], b.z, acc[n][1][2 * h]);
          acc[n][1][2 * h + 1] = fmaf(row[d], b.w, acc[n][1][2 * h + 1]);
        }
      }
    }
  }
};

// What comes with each tile of results, where nothing is asked.
struct Nothing {
  __device__ Nothing operator()(int, int) const { return {}; }
};

// A tile in global memory as threads hold it: [j][h] pairs of neighbours.
template <class E>
struct alignas(16) PairsOfTile {
  Pair<E> pair[2][2];
};

// Which tiles of rows and columns a warp takes: m, m + 2^shift, ... and n, n + (warps >> shift), ...; a power of two,
// since divisions would cost more than products.
struct WarpTiles {
  int warp, down, shift;  // down: tiles of rows

  __device__ WarpTiles(int warp, int rows) : warp(warp), down(rows / kTile), shift(down == 8 ? 3 : down == 4 ? 2 : 1) {}
  __device__ int m() const { return warp & ((1 << shift) - 1); }
  __device__ int n() const { return warp >> shift; }
};

// visit(row, column, j, h, first, second) for the pairs of neighbours that this thread holds of tile n of columns and m
// of rows.
template <class Visit>
__device__ __forceinline__ void for_pairs(const Tile& acc, int m, int n, const Visit& visit) {
  const int lane = ptx::thread_index() % 32, row = m * kTile + lane / 4, column = n * kTile + lane % 4 * 2;
#pragma unroll
  for (int j = 0; j < 2; ++j) {
#pragma unroll
    for (int h = 0; h < 2; ++h) visit(row + 8 * h, column + 8 * j, j, h, acc[j][2 * h], acc[j][2 * h + 1]);
  }
}

// store(m, n, acc, fetch(m, n)) for the tiles m of rows and n of columns of A W' + b, with `columns` columns, N tiles
// of which are taken together. Begins with a barrier, behind which A is whole; the first weights come meanwhile, and
// what is fetched comes before it is needed.
template <int N, int W, int kWarps, class E, class Store, class Fetch>
__device__ __forceinline__ void products_of_tiles(const LeftRows<E>& a, const WarpTiles& mine, const PackedTiles& w,
                                                  int columns, const Store& store, const Fetch& fetch) {
  using Pieces = WeightPieces<E, N, W>;
  constexpr int kStep = Pieces::kDepth * Pieces::kPiecesPerDepth;
  const int lane = ptx::thread_index() % 32, tiles = columns / kTile, size = w.tile_size<E>();
  const int across = (kWarps >> mine.shift) * N, down = 1 << mine.shift;
  int tile = mine.n() * N;
  const uint4* from = w.data + tile * size + Pieces::lane_of(lane);
  Pieces pieces;
  pieces.fetch(tile < tiles ? from : w.data, size);
  __syncthreads();  // what stands in A is whole
#pragma unroll 1
  for (; tile < tiles; tile += across) {
#pragma unroll 1
    for (int m = mine.m(); m < mine.down; m += down) {
      decltype(fetch(0, 0)) fetched[N];
#pragma unroll
      for (int n = 0; n < N; ++n) fetched[n] = fetch(m, N == 1 || tile + n < tiles ? tile + n : tile);
      Tile acc[N] = {};
      const uint4* const start = from;
#pragma unroll 1
      for (int depth = 0; depth < w.depth; depth += Pieces::kDepth) {
        Pieces after = pieces;
        bool more = true;
        if (depth + Pieces::kDepth < w.depth) {
          from += kStep;
        } else if (m + down < mine.down) {
          from = start;
        } else {
          from = start + across * size;
          more = tile + across < tiles;
        }
        if (more) after.fetch(from, size);
        pieces.multiply(acc, a, m, depth, w.depth, lane);
        pieces = after;
      }
#pragma unroll
      for (int n = 0; n < N; ++n) {
        if (N > 1 && tile + n >= tiles) break;
        if (w.bias != nullptr) {
#pragma unroll
          for (int j = 0; j < 2; ++j) {
            const float2 bias = load2(w.bias + (tile + n) * kTile + 8 * j + lane % 4 * 2);
            acc[n][j][0] += bias.x, acc[n][j][1] += bias.y, acc[n][j][2] += bias.x, acc[n][j][3] += bias.y;
          }
        }
        store(m, tile + n, acc[n], fetched[n]);
      }
    }
  }
}

}  // namespace rohydr

// SPDX-License-Identifier: MIT
// What a block of threads has of its sample and step: operands and the stream in shared memory; in global memory the
// tape, which the forward leaves for the way back, and X and Y of weight gradients for weight_gradients.cuh.
#pragma once

#include "gradient_parameters.h"
#include "row_passes.cuh"
#include "tile_products.cuh"

namespace rohydr {

template <class E, int W, int kBlockWarps>
struct BlockMemory {
  static constexpr int N = W / 32;
  static constexpr int kPiece = 16 / static_cast<int>(sizeof(E));  // elements
  static constexpr int kWarps = kBlockWarps, kThreads = 32 * kWarps;

  const GradientParameters& p;
  const GradientShared& shared;
  const int warp;  // of the block, and the same for all lanes, as the compiler is to know
  int sample;      // in the group
  int step_place;  // among all steps of the chunk and samples of the group
  int rows = 0;    // that exist

  __device__ BlockMemory(const GradientParameters& p, int sample)
      : p(p),
        shared(p.shared),
        warp(__shfl_sync(kFullWarp, static_cast<int>(threadIdx.x) / 32, 0)),
        sample(sample),
        step_place(sample) {}
  __device__ void take_step(int slot) {  // of the chunk
    step_place = slot * static_cast<int>(p.samples) + sample;
  }

  template <class T>
  static __device__ T* at(int offset) {
    ROHYDR_SHARED(memory);
    return reinterpret_cast<T*>(memory + offset);
  }
  __device__ E* wide() const { return at<E>(0); }                        // (rows, wide_stride) operands
  __device__ E* narrow() const { return at<E>(shared.narrow); }          // (rows, W)
  __device__ float* stream() const { return at<float>(shared.stream); }  // (rows, W), or gradients of operands
  __device__ int* token() const { return at<int>(shared.tokens); }       // (rows) the token that a row is

  static __device__ int lane() { return ptx::thread_index() % 32; }
  static __device__ int column() { return lane() * N; }  // the first of this lane in row passes
  __device__ int whole_rows() const { return round_up_to(ptx::fresh(rows), kPairRows); }
  __device__ int head_shift() const { return __ffs(p.sizes.heads) - 1; }  // of a power of two
  __device__ std::int64_t number() const { return p.first_sample + ptx::fresh(sample); }

  template <class T>
  __device__ T* tape(int offset) const {
    return reinterpret_cast<T*>(p.tape + static_cast<std::int64_t>(step_place) * p.layout.all + offset);
  }
  // This sample's and step's rows of X or Y, at a place of StreamLayout.
  __device__ E* kept(std::int64_t place, int columns) const {
    const std::int64_t step = ptx::fresh(step_place);
    return static_cast<E*>(p.streams) + p.steps * p.samples * shared.rows * place + step * (shared.rows * columns);
  }
  __device__ E* kept_x(int layer, int matrix) const {
    return kept(StreamLayout{p.sizes}.x(layer, matrix), p.sizes.depth_of(matrix));
  }
  __device__ E* kept_y(int layer, int matrix) const {
    return kept(StreamLayout{p.sizes}.y(layer, matrix), p.sizes.columns_of(matrix));
  }
  __device__ PackedTiles matrix(int layer, int number) const {
    return {p.weights + p.sizes.piece_of_matrix(layer, number), p.biases + p.sizes.bias_of_matrix(layer, number),
            p.sizes.depth_of(number)};
  }
  __device__ PackedTiles transposed(int layer, int number) const {
    return {p.transposed + p.sizes.piece_of_matrix(layer, number), nullptr, p.sizes.columns_of(number)};
  }
  __device__ const uint4* condition(int layer, int part) const { return p.condition_at(number(), layer, part); }

  __device__ LeftRows<E> in_wide() const { return {wide(), shared.wide_stride}; }
  __device__ LeftRows<E> in_narrow() const { return {narrow(), shared.row_stride}; }

  // store(row, column, first, second) of A W' + b; begins with a barrier, behind which A is whole. kTiles: of columns
  // that a warp takes together.
  template <int kTiles = 1, class Store>
  __device__ __forceinline__ void products(const LeftRows<E>& a, const PackedTiles& w, int columns,
                                           const Store& store) const {
    products_with<kTiles>(
        a, w, columns,
        [&](int m, int n, const Tile& acc, Nothing) {
          for_pairs(acc, m, n, [&](int row, int c, int, int, float first, float second) {
            store(row, c, first, second);
          });
        },
        Nothing{});
  }
  // The same by tiles: store(m, n, acc, fetch(m, n)), where what is fetched is asked for before the product.
  template <int kTiles, class Store, class Fetch>
  __device__ __forceinline__ void products_with(const LeftRows<E>& a, const PackedTiles& w, int columns,
                                                const Store& store, const Fetch& fetch) const {
    products_of_tiles<kTiles, W, kWarps>(a, WarpTiles(warp, whole_rows()), w, columns, store, fetch);
  }
  // Where GELU's slopes of a tile lie: in the order in which they are made and read.
  __device__ PairsOfTile<E>& slopes(E* all, int m, int n) const {
    return reinterpret_cast<PairsOfTile<E>*>(all)[(m * (p.sizes.padded_hidden() / kTile) + n) * 32 + lane()];
  }

  // visit(number in the batch, row) of those rows of this warp from `first` on that are taken together, so that all
  // that they load and shuffle is under way at once. Whole pairs of tiles are whole batches of all warps.
  static constexpr int kBatch = kPairRows / kWarps;
  template <class Visit>
  __device__ void for_batch(int first, const Visit& visit) const {
#pragma unroll
    for (int r = 0; r < kBatch; ++r) visit(r, first + r * kWarps);
  }

  // visit(row, column) of every piece of 16 bytes of rows of kColumns columns.
  template <int kColumns, class Visit>
  __device__ void for_pieces(const Visit& visit) const {
    constexpr int kOfRow = kColumns / kPiece;
#pragma unroll 1
    for (int i = ptx::thread_index(); i < whole_rows() * kOfRow; i += kThreads) {
      visit(i / kOfRow, i % kOfRow * kPiece);
    }
  }
  // Rows of `columns` columns one after the other, those of this warp in row passes.
  __device__ void copy_rows(E* to, const E* from, int from_stride, int columns) const {
#pragma unroll 1
    for (int row = warp; row < whole_rows(); row += kWarps) {
      for (int c = lane() * kPiece; c < columns; c += 32 * kPiece) {
        *reinterpret_cast<uint4*>(to + row * columns + c) =
            *reinterpret_cast<const uint4*>(from + row * from_stride + c);
      }
    }
  }
  template <int kColumns>
  __device__ void copy(E* to, int to_stride, const E* from, int from_stride) const {
    for_pieces<kColumns>([&](int row, int c) {
      *reinterpret_cast<uint4*>(to + row * to_stride + c) =
          *reinterpret_cast<const uint4*>(from + row * from_stride + c);
    });
  }
};

}  // namespace rohydr

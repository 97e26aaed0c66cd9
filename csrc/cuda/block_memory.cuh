// SPDX-License-Identifier: MIT
// What a block of eight warps has of its sample: operands and the stream in shared memory; in global memory (the second
// cache) what the forward leaves for the way back, and X and Y of weight gradients for weight_gradients.cuh. And
// products: a group of warps takes a pair of tiles of rows, see tiles.cuh.
#pragma once

#include "gradient_parameters.h"
#include "row_passes.cuh"

namespace rohydr {

template <class E, int W>
struct BlockMemory {
  static constexpr int N = W / 32;
  static constexpr int kGroups = kGradientWarps / Columns<W>::kWarps;  // of warps, each with a pair of tiles

  const GradientParameters& p;
  GradientShared shared;
  std::int64_t sample;  // in the group
  int rows = 0;         // that exist
  int slot = 0;         // of the step in the chunk

  __device__ BlockMemory(const GradientParameters& p, std::int64_t sample) : p(p), shared(p.sizes), sample(sample) {}

  template <class T>
  static __device__ T* at(int offset) {
    ROHYDR_SHARED(memory);
    return reinterpret_cast<T*>(memory + offset);
  }
  __device__ E* wide() const { return at<E>(0); }                                // (rows, wide_stride) operands
  __device__ E* narrow() const { return at<E>(shared.narrow()); }                // (rows, W)
  __device__ float* stream() const { return at<float>(shared.stream()); }        // (rows, W), or gradients of operands
  __device__ E* of_result() const { return at<E>(shared.stream()); }             // (rows, W) gradient of attention
  __device__ float* gradient() const { return at<float>(shared.gradient()); }    // (rows, W) of the stream
  __device__ float* sums() const { return at<float>(shared.sums()); }            // (3, warps, W)
  __device__ int* token() const { return at<int>(shared.tokens()); }             // (rows) the token that a row is

  static __device__ int warp() { return ptx::thread_index() / 32; }
  static __device__ int lane() { return ptx::thread_index() % 32; }
  static __device__ int column() { return lane() * N; }  // the first of this lane in row passes
  __device__ int whole_rows() const { return round_up_to(rows, kPairRows); }
  __device__ std::int64_t number() const { return p.first_sample + sample; }

  template <class T>
  __device__ T* tape(std::int64_t offset) const {
    return reinterpret_cast<T*>(p.tape + sample * TapeLayout{p.sizes}.bytes() + offset);
  }
  // This sample's and step's rows of X or Y, at a place of StreamLayout.
  __device__ E* kept(std::int64_t place, int columns) const {
    const std::int64_t all = static_cast<std::int64_t>(p.steps) * p.samples * shared.rows;
    const std::int64_t row = (static_cast<std::int64_t>(slot) * p.samples + sample) * shared.rows;
    return static_cast<E*>(p.streams) + all * place + row * columns;
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
    return {p.transposed + p.sizes.piece_of_matrix(layer, number), p.zeros, p.sizes.columns_of(number)};
  }

  // store(place, tile, acc) of all tiles of A W' + b, for all pairs of tiles of rows.
  template <class Store>
  __device__ void products(const E* a, int lda, const PackedTiles& w, int columns, const Store& store) const {
    Place<W> place;
#pragma unroll 1
    for (; place.pair * kPairRows < rows; place.pair += kGroups) {
      product_of_tiles(place, a, lda, w, columns / kTile,
                       [&](int tile, const Fragment& acc) { store(place, tile, acc); });
    }
  }
  __device__ void products_to(E* to, int stride, const E* a, int lda, const PackedTiles& w, int columns) const {
    products(a, lda, w, columns, [&](const Place<W>& place, int tile, const Fragment& acc) {
      store_tile(to + place.row(0, 0) * stride + tile * kTile + place.column(0), stride, acc,
                 [](float x) { return x; });
    });
  }
  __device__ void products_to_stream(const E* a, int lda, const PackedTiles& w) const {
    products(a, lda, w, W, [&](const Place<W>& place, int tile, const Fragment& acc) {
      for_pairs(acc, [&](int m, int h, int j, float first, float second) {
        float* const to = stream() + place.row(m, h) * shared.stream_stride() + tile * kTile + place.column(j);
        *reinterpret_cast<float2*>(to) = make_float2(first, second);
      });
    });
  }

  // visit(row, column) of every piece of 16 bytes of the rows.
  template <class Visit>
  __device__ void for_pieces(int columns, const Visit& visit) const {
    const int of_row = columns / Piece<E>::kSize;
#pragma unroll 1
    for (int i = ptx::thread_index(); i < whole_rows() * of_row; i += kGradientThreads) {
      visit(i / of_row, i % of_row * Piece<E>::kSize);
    }
  }
  __device__ void copy(E* to, int to_stride, const E* from, int from_stride, int columns) const {
    for_pieces(columns, [&](int row, int c) {
      *reinterpret_cast<uint4*>(to + row * to_stride + c) =
          *reinterpret_cast<const uint4*>(from + row * from_stride + c);
    });
  }
};

}  // namespace rohydr

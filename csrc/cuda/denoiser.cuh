// SPDX-License-Identifier: MIT
// One pass of a sample through the denoiser (the network of Eq. 2), by its block. The residual stream and what the
// products read are in shared memory; each product leaves its results where the next part reads them.
#pragma once

#include "attention.cuh"
#include "gelu.cuh"

namespace rohydr {

// Gives packed matrices one after the other, in order of use.
class ArenaReader {
 public:
  __device__ ArenaReader(const uint4* pieces, const float* biases) : piece_(pieces), bias_(biases) {}

  template <class E>
  __device__ PackedTiles next(int columns, int depth) {
    const PackedTiles tiles{piece_, bias_, depth};
    piece_ += columns / kTile * depth * Operand<E>::kPiecesPerDepth;
    bias_ += columns;
    return tiles;
  }

 private:
  const uint4* piece_;
  const float* bias_;
};

// Shared memory of a block of `rows` rows (a multiple of 32).
template <class E, int W>
struct SharedLayout {
  static constexpr int kStreamStride = W + 16;  // floats: four float4 of a row and those of the next, other banks
  static constexpr int kRowStride = W + Operand<E>::kPad;

  int rows, wide_stride, channels;

  __host__ __device__ SharedLayout(int rows, int hidden, int channels)
      : rows(rows), wide_stride((hidden > 3 * W ? hidden : 3 * W) + Operand<E>::kPad), channels(channels) {}

  __host__ __device__ int wide() const { return 0; }  // bytes from the start, each a multiple of 128
  __host__ __device__ int narrow() const { return rows * wide_stride * static_cast<int>(sizeof(E)); }
  __host__ __device__ int stream() const { return narrow() + rows * kRowStride * static_cast<int>(sizeof(E)); }
  __host__ __device__ int state() const { return stream() + rows * kStreamStride * 4; }
  __host__ __device__ int tokens() const { return state() + rows * channels * 4; }
  __host__ __device__ int bytes() const { return tokens() + rows * 4; }
};

template <class E, int W>
struct Network {
  using Cols = Columns<W>;
  static constexpr int kLanesOfRow = Cols::kWarps;
  static constexpr int kFours = W / 4 / kLanesOfRow;

  SharedLayout<E, W> shared;
  int heads, rows;  // rows that exist

  // Addresses are computed where they are used: kept, they would take registers from the products.
  template <class T>
  static __device__ T* at(int offset) {
    ROHYDR_SHARED(memory);
    return reinterpret_cast<T*>(memory + offset);
  }
  // (rows, wide_stride): Q, K, V; Q; the MLP's hidden layer; x_t as an operand, or the step's noise.
  __device__ E* wide() const { return at<E>(shared.wide()); }
  // (rows, W): what LayerNorm or attention gave.
  __device__ E* narrow() const { return at<E>(shared.narrow()); }
  // (rows, W): the residual stream.
  __device__ float* stream() const { return at<float>(shared.stream()); }

  static constexpr int kRowStride = SharedLayout<E, W>::kRowStride;
  static constexpr int kStreamStride = SharedLayout<E, W>::kStreamStride;

  // The pair of tiles has any rows.
  __device__ bool has(const Place<W>& place) const { return place.pair * kPairRows < rows; }

  // The stream's two neighbours at tile i of this warp's columns.
  __device__ float2* stream_at(const Place<W>& place, int m, int half, int i, int j) const {
    const int column = place.tile(i) * kTile + place.column(j);
    return reinterpret_cast<float2*>(stream() + place.row(m, half) * kStreamStride + column);
  }

  // LayerNorm without affine, then (1 + scale) x + shift: stream to narrow. A row is kLanesOfRow lanes of its pair.
  __device__ void normalise(const float* shift, const float* scale) const {
    const int thread = ptx::thread_index(), row = thread / kLanesOfRow, part = thread % kLanesOfRow;
    if (row / kPairRows * kPairRows >= rows) return;
    const float* const from = stream() + row * kStreamStride;
    float4 x[kFours];
    float sum = 0.0f, squares = 0.0f;
#pragma unroll
    for (int i = 0; i < kFours; ++i) {
      x[i] = *reinterpret_cast<const float4*>(from + 4 * (part + i * kLanesOfRow));
      sum += (x[i].x + x[i].y) + (x[i].z + x[i].w);
    }
#pragma unroll
    for (int lanes = 1; lanes < kLanesOfRow; lanes *= 2) sum += __shfl_xor_sync(kFullWarp, sum, lanes);
    const float mean = sum * (1.0f / W);
#pragma unroll
    for (int i = 0; i < kFours; ++i) {
      x[i].x -= mean, x[i].y -= mean, x[i].z -= mean, x[i].w -= mean;
      squares = dot4(x[i], x[i], squares);
    }
#pragma unroll
    for (int lanes = 1; lanes < kLanesOfRow; lanes *= 2) squares += __shfl_xor_sync(kFullWarp, squares, lanes);
    const float inverse = rsqrtf(fmaf(squares, 1.0f / W, kLayerNormEps));
    E* const to = narrow() + row * kRowStride;
#pragma unroll
    for (int i = 0; i < kFours; ++i) {
      const int c = 4 * (part + i * kLanesOfRow);
      const float4 a = __ldg(reinterpret_cast<const float4*>(scale + c));
      const float4 b = __ldg(reinterpret_cast<const float4*>(shift + c));
      Operand<E>::store2(to + c, fmaf(x[i].x * inverse, 1.0f + a.x, b.x), fmaf(x[i].y * inverse, 1.0f + a.y, b.y));
      Operand<E>::store2(to + c + 2, fmaf(x[i].z * inverse, 1.0f + a.z, b.z),
                         fmaf(x[i].w * inverse, 1.0f + a.w, b.w));
    }
  }

  // f(narrow W' + b) to wide.
  template <class Function>
  __device__ void project(const PackedTiles& w, int columns, const Function& f) const {
    const Place<W> place;
    if (!has(place)) return;
    E* const first = wide() + place.row(0, 0) * shared.wide_stride + place.column(0);
    product_of_tiles(place, static_cast<const E*>(narrow()), kRowStride, w, columns / kTile,
                     [&](int tile, const Fragment& acc) {
                       store_tile(first + tile * kTile, shared.wide_stride, acc, f);
                     });
  }
  __device__ void project(const PackedTiles& w, int columns) const {
    project(w, columns, [](float x) { return x; });
  }

  // stream += gate (a W' + b).
  __device__ void add_gated(const E* a, int lda, const PackedTiles& w, const float* gate) const {
    const Place<W> place;
    if (!has(place)) return;
    Fragment acc[Cols::kTiles];
    product(acc, place, a, lda, w, 0);
#pragma unroll
    for (int i = 0; i < Cols::kTiles; ++i) {
#pragma unroll
      for (int j = 0; j < 2; ++j) {
        const float2 g = load2(gate + place.tile(i) * kTile + place.column(j));
#pragma unroll
        for (int m = 0; m < 2; ++m) {
#pragma unroll
          for (int half = 0; half < 2; ++half) {
            float2& to = *stream_at(place, m, half, i, j);
            to = make_float2(fmaf(g.x, acc[i][m][j][2 * half], to.x), fmaf(g.y, acc[i][m][j][2 * half + 1], to.y));
          }
        }
      }
    }
  }

  // Q in wide, the result to narrow.
  template <class Keys>
  __device__ void attention(const Keys& keys) const {
    const Place<W> place;
    const int size = W / heads;
#pragma unroll 1
    for (int unit = place.column_warp; unit < 2 * heads; unit += Cols::kWarps) {
      const int row = kPairRows * place.pair + kTile * (unit / heads);
      if (row >= rows) break;
      attend_any(wide() + row * shared.wide_stride, shared.wide_stride, keys, narrow() + row * kRowStride, kRowStride,
                 unit % heads, size, ptx::thread_index() % 32);
    }
  }

  // `modulation`: (9, W); `condition`: the keys and values of this block.
  __device__ void block(ArenaReader& weights, const float* modulation, const PackedKeys& condition,
                        int hidden) const {
    normalise(modulation, modulation + W);
    __syncthreads();
    project(weights.next<E>(3 * W, W), 3 * W);
    __syncthreads();
    attention(own_keys());
    __syncthreads();
    add_gated(narrow(), kRowStride, weights.next<E>(W, W), modulation + 2 * W);
    __syncthreads();

    normalise(modulation + 3 * W, modulation + 4 * W);
    __syncthreads();
    project(weights.next<E>(W, W), W);
    __syncthreads();
    attention(condition);
    __syncthreads();
    add_gated(narrow(), kRowStride, weights.next<E>(W, W), modulation + 5 * W);
    __syncthreads();

    normalise(modulation + 6 * W, modulation + 7 * W);
    __syncthreads();
    project(weights.next<E>(hidden, W), hidden, gelu<E>);
    __syncthreads();
    add_gated(wide(), shared.wide_stride, weights.next<E>(W, hidden), modulation + 8 * W);
    __syncthreads();
  }

  __device__ SharedKeys<E> own_keys() const { return {wide() + W, shared.wide_stride, W, rows}; }
};

}  // namespace rohydr

// SPDX-License-Identifier: MIT
// A block of the denoiser for one sample, which with kKeep leaves in global memory what its way back reads.
#pragma once

#include "block_memory.cuh"

namespace rohydr {

template <class E, int W>
struct BlockForward : BlockMemory<E, W> {
  using Base = BlockMemory<E, W>;
  using Base::Base;
  using Base::N;
  using Base::column;
  using Base::copy;
  using Base::for_pieces;
  using Base::kept_x;
  using Base::lane;
  using Base::matrix;
  using Base::narrow;
  using Base::number;
  using Base::p;
  using Base::products;
  using Base::products_to;
  using Base::rows;
  using Base::shared;
  using Base::stream;
  using Base::tape;
  using Base::warp;
  using Base::whole_rows;
  using Base::wide;

  // LayerNorm, then (1 + scale) x + shift: stream to narrow. The stream and the result are kept.
  template <bool kKeep>
  __device__ void normalise(const float* shift, const float* scale, float* keep_stream, E* keep_result) const {
    float a[N], b[N];
    load_row(a, scale + column());
    load_row(b, shift + column());
#pragma unroll 1
    for (int row = warp(); row < whole_rows(); row += kGradientWarps) {
      float x[N];
      load_row(x, stream() + row * shared.stream_stride() + column());
      if (kKeep) store_row(keep_stream + row * W + column(), x);
      normalise_row<W>(x);
#pragma unroll
      for (int i = 0; i < N; ++i) x[i] = fmaf(x[i], 1.0f + a[i], b[i]);
      store_row(narrow() + row * shared.row_stride + column(), x);
      if (kKeep) store_row(keep_result + row * W + column(), x);
    }
  }

  // stream += gate (a W' + b); what stands in brackets is kept.
  template <bool kKeep>
  __device__ void add_gated(const E* a, int lda, int layer, int number, const float* gate, int part) const {
    E* const keep = kKeep ? this->template tape<E>(TapeLayout{p.sizes}.part(layer, part)) : nullptr;
    products(a, lda, matrix(layer, number), W, [&](const Place<W>& place, int tile, const Fragment& acc) {
      for_pairs(acc, [&](int m, int h, int j, float first, float second) {
        const int row = place.row(m, h), c = tile * kTile + place.column(j);
        const float2 g = load2(gate + c);
        float2& to = *reinterpret_cast<float2*>(stream() + row * shared.stream_stride() + c);
        to = make_float2(fmaf(g.x, first, to.x), fmaf(g.y, second, to.y));
        if (kKeep) Operand<E>::store2(keep + row * W + c, first, second);
      });
    });
  }

  // Q in wide, the result to narrow.
  template <class Keys>
  __device__ void attention(const Keys& keys) const {
    const int heads = p.sizes.heads, tiles = whole_rows() / kTile;
#pragma unroll 1
    for (int unit = warp(); unit < heads * tiles; unit += kGradientWarps) {
      const int row = unit / heads * kTile;
      attend_any(wide() + row * shared.wide_stride, shared.wide_stride, keys, narrow() + row * shared.row_stride,
                 shared.row_stride, unit % heads, W / heads, lane());
    }
  }

  __device__ const uint4* condition(int layer, int part) const {
    return p.condition +
           ((number() * p.sizes.layers + layer) * p.sizes.condition_parts() + part) * p.sizes.condition_part();
  }

  // `modulation`: (9, W).
  template <bool kKeep>
  __device__ __forceinline__ void forward(int layer, const float* modulation) const {
    const TapeLayout layout{p.sizes};
    const auto stream_of = [&](int part) {
      return kKeep ? this->template tape<float>(layout.stream(layer, part)) : nullptr;
    };
    const auto x_of = [&](int number) { return kKeep ? kept_x(layer, number) : nullptr; };
    const int hidden = p.sizes.padded_hidden(), stride = shared.wide_stride;

    normalise<kKeep>(modulation, modulation + W, stream_of(0), x_of(0));
    __syncthreads();  // narrow is whole
    products_to(wide(), stride, narrow(), shared.row_stride, matrix(layer, 0), 3 * W);
    __syncthreads();  // Q, K and V are whole, narrow is free
    if (kKeep) copy(this->template tape<E>(layout.qkv(layer)), 3 * W, wide(), stride, 3 * W);
    attention(SharedKeys<E>{wide() + W, stride, W, rows});
    __syncthreads();  // narrow is whole
    if (kKeep) copy(x_of(1), W, narrow(), shared.row_stride, W);
    add_gated<kKeep>(narrow(), shared.row_stride, layer, 1, modulation + 2 * W, 0);
    __syncthreads();  // the stream is whole, narrow is free

    normalise<kKeep>(modulation + 3 * W, modulation + 4 * W, stream_of(1), x_of(2));
    __syncthreads();  // narrow is whole
    products_to(wide(), stride, narrow(), shared.row_stride, matrix(layer, 2), W);
    __syncthreads();  // Q is whole, narrow is free
    if (kKeep) copy(this->template tape<E>(layout.query(layer)), W, wide(), stride, W);
    attention(PackedKeys{condition(layer, 0), p.sizes.key_tiles(), W / kTile, p.key_counts[number()]});
    __syncthreads();  // narrow is whole
    if (kKeep) copy(x_of(3), W, narrow(), shared.row_stride, W);
    add_gated<kKeep>(narrow(), shared.row_stride, layer, 3, modulation + 5 * W, 1);
    __syncthreads();  // the stream is whole, narrow is free

    normalise<kKeep>(modulation + 6 * W, modulation + 7 * W, stream_of(2), x_of(4));
    __syncthreads();  // narrow is whole
    products_to(wide(), stride, narrow(), shared.row_stride, matrix(layer, 4), hidden);
    __syncthreads();  // the hidden layer is whole
    E* const before = kKeep ? this->template tape<E>(layout.before_gelu(layer)) : nullptr;
    E* const after = x_of(5);
    for_pieces(hidden, [&](int row, int c) {
      uint4& place = *reinterpret_cast<uint4*>(wide() + row * stride + c);
      if (kKeep) *reinterpret_cast<uint4*>(before + row * hidden + c) = place;
      float x[Piece<E>::kSize];
      Piece<E>::open(place, x);
#pragma unroll
      for (int i = 0; i < Piece<E>::kSize; ++i) x[i] = Network<E, W>::gelu(x[i]);
      place = Piece<E>::close(x);
      if (kKeep) *reinterpret_cast<uint4*>(after + row * hidden + c) = place;
    });
    __syncthreads();  // GELU is done
    add_gated<kKeep>(wide(), stride, layer, 5, modulation + 8 * W, 2);
    __syncthreads();  // the stream is whole, wide is free
  }
};

}  // namespace rohydr

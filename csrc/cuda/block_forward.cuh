// SPDX-License-Identifier: MIT
// A block of the denoiser for one sample, which with kKeep leaves in global memory what its way back reads.
#pragma once

#include "attention.cuh"
#include "block_memory.cuh"

namespace rohydr {

template <class E, int W, int kBlockWarps, HeadSizes kHeads = HeadSizes::kAny>
struct BlockForward : BlockMemory<E, W, kBlockWarps> {
  using Base = BlockMemory<E, W, kBlockWarps>;
  using Base::Base;
  using Base::N;
  using Base::column;
  using Base::condition;
  using Base::in_narrow;
  using Base::in_wide;
  using Base::kBatch;
  using Base::kept_x;
  using Base::kWarps;
  using Base::lane;
  using Base::matrix;
  using Base::narrow;
  using Base::number;
  using Base::p;
  using Base::products;
  using Base::rows;
  using Base::shared;
  using Base::stream;
  using Base::tape;
  using Base::warp;
  using Base::whole_rows;
  using Base::wide;

  // LayerNorm, then (1 + scale) x + shift: stream to narrow. LayerNorm's own result and the whole one are kept.
  template <bool kKeep>
  __device__ void normalise(const float* shift, const float* scale, int layer, int part, E* keep_result) const {
    const TapeLayout& layout = p.layout;
    float* const keep = kKeep ? this->template tape<float>(layout.normal(layer, part)) : nullptr;
    float* const keep_inverse = kKeep ? this->template tape<float>(layout.inverse(layer, part)) : nullptr;
    float a[N], b[N];
    load_row(a, scale + column());
    load_row(b, shift + column());
#pragma unroll 1
    for (int first = warp; first < whole_rows(); first += kBatch * kWarps) {
      float x[kBatch][N] = {}, inverse[kBatch];
      this->for_batch(first, [&](int r, int row) {
        load_row(x[r], stream() + row * shared.stream_stride + column());
      });
      normalise_rows<W>(x, inverse);
      this->for_batch(first, [&](int r, int row) {
        if (kKeep) store_row(keep + row * W + column(), x[r]);
        if (kKeep && lane() == 0) keep_inverse[row] = inverse[r];
#pragma unroll
        for (int i = 0; i < N; ++i) x[r][i] = fmaf(x[r][i], 1.0f + a[i], b[i]);
        store_row(narrow() + row * shared.row_stride + column(), x[r]);
        if (kKeep) store_row(keep_result + row * W + column(), x[r]);
      });
    }
  }

  // Where the results of a product go before the tape: to that of its operands that is free.
  struct Results {
    E* first;
    int stride;
  };
  __device__ Results results_in_wide() const { return {wide(), shared.wide_stride}; }
  __device__ Results results_in_narrow() const { return {narrow(), shared.row_stride}; }

  // stream += gate (a W' + b); what stands in brackets is left in `results` with kKeep.
  template <bool kKeep>
  __device__ void add_gated(const LeftRows<E>& a, int layer, int number, const float* gate,
                            const Results& results) const {
    products(a, matrix(layer, number), W, [&](int row, int c, float first, float second) {
      const float2 g = load2(gate + c);
      float2& to = *reinterpret_cast<float2*>(stream() + row * shared.stream_stride + c);
      to = make_float2(fmaf(g.x, first, to.x), fmaf(g.y, second, to.y));
      if (kKeep) Operand<E>::store2(results.first + row * results.stride + c, first, second);
    });
  }
  // After a barrier: the results of part `part` to the tape. A warp reads the rows that are its own in row passes,
  // which may write to them next.
  __device__ void keep_part(int layer, int part, const Results& results) const {
    constexpr int kOfRow = W / Base::kPiece;
    E* const to = this->template tape<E>(p.layout.part(layer, part));
#pragma unroll 1
    for (int i = lane(); i < whole_rows() / kWarps * kOfRow; i += 32) {
      const int row = warp + i / kOfRow * kWarps, c = i % kOfRow * Base::kPiece;
      *reinterpret_cast<uint4*>(to + row * W + c) =
          *reinterpret_cast<const uint4*>(results.first + row * results.stride + c);
    }
    __syncwarp();  // before they are written to
  }

  // Q in wide, the result to narrow.
  template <bool kKeep, class Keys>
  __device__ void attention(const Keys& keys, int layer, bool cross) const {
    const int heads = p.sizes.heads, shift = this->head_shift(), units = whole_rows() / kTile << shift;
    float* const sums = this->template tape<float>(p.layout.sums(layer, cross));
#pragma unroll 1
    for (int unit = warp; unit < units; unit += kWarps) {
      const int row = (unit >> shift) * kTile, head = unit & (heads - 1);
      const AttentionSums of_rows = AttentionSums{sums, shared.rows}.from(row);
      attend_any<kKeep, kHeads>(wide() + row * shared.wide_stride, shared.wide_stride, keys,
                                narrow() + row * shared.row_stride, shared.row_stride, head, W >> shift, lane(),
                                of_rows);
    }
  }

  __device__ void to_wide(int row, int c, float first, float second) const {
    Operand<E>::store2(wide() + row * shared.wide_stride + c, first, second);
  }

  // `modulation`: (9, W).
  template <bool kKeep>
  __device__ __forceinline__ void forward(int layer, const float* modulation) const {
    const TapeLayout& layout = p.layout;
    const auto x_of = [&](int number) { return kKeep ? kept_x(layer, number) : nullptr; };
    const int hidden = p.sizes.padded_hidden(), stride = shared.wide_stride;
    const auto store = [&](int row, int c, float first, float second) { to_wide(row, c, first, second); };

    normalise<kKeep>(modulation, modulation + W, layer, 0, x_of(0));
    this->template products<2>(in_narrow(), matrix(layer, 0), 3 * W, store);
    __syncthreads();  // Q, K and V are whole, narrow is free
    if (kKeep) this->template copy<3 * W>(this->template tape<E>(layout.qkv(layer)), 3 * W, wide(), stride);
    attention<kKeep>(SharedKeys<E>{wide() + W, stride, W, rows}, layer, false);
    add_gated<kKeep>(in_narrow(), layer, 1, modulation + 2 * W, results_in_wide());
    if (kKeep) this->template copy<W>(x_of(1), W, narrow(), shared.row_stride);
    __syncthreads();  // the stream and the results are whole, narrow is free
    if (kKeep) keep_part(layer, 0, results_in_wide());

    normalise<kKeep>(modulation + 3 * W, modulation + 4 * W, layer, 1, x_of(2));
    products(in_narrow(), matrix(layer, 2), W, store);
    __syncthreads();  // Q is whole, narrow is free
    if (kKeep) this->template copy<W>(this->template tape<E>(layout.query(layer)), W, wide(), stride);
    attention<kKeep>(PackedKeys{condition(layer, 0), p.sizes.key_tiles(), W / kTile, p.key_counts[number()]}, layer,
                     true);
    add_gated<kKeep>(in_narrow(), layer, 3, modulation + 5 * W, results_in_wide());
    if (kKeep) this->template copy<W>(x_of(3), W, narrow(), shared.row_stride);
    __syncthreads();  // the stream and the results are whole, narrow is free
    if (kKeep) keep_part(layer, 1, results_in_wide());

    normalise<kKeep>(modulation + 6 * W, modulation + 7 * W, layer, 2, x_of(4));
    E* const slope = this->template tape<E>(layout.gelu_slope(layer));
    this->template products_with<2>(in_narrow(), matrix(layer, 4), hidden, [&](int m, int n, const Tile& acc, Nothing) {
      PairsOfTile<E> slopes;
      for_pairs(acc, m, n, [&](int row, int c, int j, int h, float first, float second) {
        float of[2] = {};
        const float x = kKeep ? gelu_and_slope<E>(first, of[0]) : gelu<E>(first);
        const float y = kKeep ? gelu_and_slope<E>(second, of[1]) : gelu<E>(second);
        to_wide(row, c, x, y);
        Operand<E>::store2(reinterpret_cast<E*>(&slopes.pair[j][h]), of[0], of[1]);
      });
      if (kKeep) this->slopes(slope, m, n) = slopes;
    }, Nothing{});
    add_gated<kKeep>(in_wide(), layer, 5, modulation + 8 * W, results_in_narrow());
    if (kKeep) this->copy_rows(x_of(5), wide(), stride, hidden);
    __syncthreads();  // the stream and the results are whole, wide is free
    if (kKeep) keep_part(layer, 2, results_in_narrow());
  }
};

}  // namespace rohydr

// SPDX-License-Identifier: MIT
// The way back through a block of the denoiser for one sample. Rows that do not exist have no gradient, so they add
// nothing to any sum.
#pragma once

#include "attention_backward.cuh"
#include "block_forward.cuh"

namespace rohydr {

template <class E, int W>
struct BlockGradient : BlockForward<E, W> {
  using Base = BlockForward<E, W>;
  using Base::Base;
  using Base::N;
  using Base::at;
  using Base::column;
  using Base::condition;
  using Base::copy;
  using Base::for_pieces;
  using Base::gradient;
  using Base::kept_x;
  using Base::kept_y;
  using Base::narrow;
  using Base::number;
  using Base::of_result;
  using Base::p;
  using Base::products_to;
  using Base::products_to_stream;
  using Base::rows;
  using Base::shared;
  using Base::stream;
  using Base::sums;
  using Base::tape;
  using Base::transposed;
  using Base::warp;
  using Base::whole_rows;
  using Base::wide;

  // This warp's sums over its rows, to be added to the others'.
  __device__ void leave_sums(int which, const float (&sum)[N]) const {
    store_row(sums() + (which * kGradientWarps + warp()) * W + column(), sum);
  }
  // After a barrier: the sums over all rows, to (W).
  __device__ void add_sums(int which, float* to) const {
    for (int c = ptx::thread_index(); c < W; c += kGradientThreads) {
      float sum = 0.0f;
#pragma unroll
      for (int i = 0; i < kGradientWarps; ++i) sum += sums()[(which * kGradientWarps + i) * W + c];
      to[c] = sum;
    }
  }

  // gate x gradient to narrow, and to Y; the gate's own gradient to sums 2.
  __device__ void gate_backward(int layer, int part, const float* gate) const {
    const E* const results = this->template tape<const E>(TapeLayout{p.sizes}.part(layer, part));
    E* const keep = kept_y(layer, 2 * part + 1);
    float g[N], sum[N] = {};
    load_row(g, gate + column());
#pragma unroll 1
    for (int row = warp(); row < whole_rows(); row += kGradientWarps) {
      float x[N], result[N];
      load_row(x, gradient() + row * shared.stream_stride() + column());
      load_row(result, results + row * W + column());
#pragma unroll
      for (int i = 0; i < N; ++i) {
        sum[i] = fmaf(x[i], result[i], sum[i]);
        x[i] *= g[i];
      }
      store_row(narrow() + row * shared.row_stride + column(), x);
      store_row(keep + row * W + column(), x);
    }
    leave_sums(2, sum);
  }

  // From the gradient of LayerNorm's modulated result in stream to that of the stream, which is added, or with `kFirst`
  // is the first; the gradients of shift and scale to sums 0 and 1. `before`: what LayerNorm read.
  template <bool kFirst>
  __device__ void normalise_backward(const float* before, const float* scale) const {
    float a[N], of_shift[N] = {}, of_scale[N] = {};
    load_row(a, scale + column());
#pragma unroll 1
    for (int row = warp(); row < whole_rows(); row += kGradientWarps) {
      float x[N], g[N];
      load_row(x, before + row * W + column());
      load_row(g, stream() + row * shared.stream_stride() + column());
      const float inverse = normalise_row<W>(x);
#pragma unroll
      for (int i = 0; i < N; ++i) {
        of_shift[i] += g[i];
        of_scale[i] = fmaf(g[i], x[i], of_scale[i]);
        g[i] *= 1.0f + a[i];
      }
      normalise_row_backward<W>(g, x, inverse);
      float* const to = gradient() + row * shared.stream_stride() + column();
      if (!kFirst) {
        load_row(x, to);
#pragma unroll
        for (int i = 0; i < N; ++i) g[i] += x[i];
      }
      store_row(to, g);
    }
    leave_sums(0, of_shift);
    leave_sums(1, of_scale);
  }
  __device__ void normalise_backward(int layer, int part, const float* scale) const {
    normalise_backward<false>(this->template tape<const float>(TapeLayout{p.sizes}.stream(layer, part)), scale);
  }

  // Q in wide, the result's gradient in of_result, `result` in global memory.
  template <class Keys, class Store, class StoreKey, class StoreValue>
  __device__ __forceinline__ void attention_backward(const Keys& k, const Keys& v, int count, const E* result,
                                                     const Store& store, const StoreKey& store_key,
                                                     const StoreValue& store_value) const {
    const RowsInShared<E> q{wide(), shared.wide_stride}, of{of_result(), shared.row_stride};
    const AttentionSums of_rows{this->template at<float>(shared.attention()), shared.heads};
    attention_backward_any<E, W>(q, of, rows_in_global(result), whole_rows(), k, v, count, of_rows, store, store_key,
                                 store_value);
  }
  static __device__ RowsInGlobal rows_in_global(const Bf16* data) { return {data, W}; }
  static __device__ RowsInShared<float> rows_in_global(const float* data) { return {data, W}; }

  __device__ PackedCondition<Bf16> packed(Bf16, int layer, int by_rows, int by_columns) const {
    return {condition(layer, by_rows), condition(layer, by_columns), W / kTile};
  }
  __device__ PackedCondition<float> packed(float, int layer, int by_rows, int) const {
    return {{reinterpret_cast<const float*>(condition(layer, by_rows == 0 ? 0 : 1)), W}};
  }

  // Keys and queries are the same rows; the gradients of Q, K and V to Y.
  __device__ __forceinline__ void self_attention_backward(int layer) const {
    const RowsInShared<E> k{wide() + W, shared.wide_stride}, v{wide() + 2 * W, shared.wide_stride};
    E* const to = kept_y(layer, 0);
    const auto store = [&](int row, int c, float first, float second) {
      Operand<E>::store2(to + row * 3 * W + c, first, second);
    };
    const auto store_key = [&](int row, int c, float first, float second) {
      const bool exists = row < rows;
      store(row, W + c, exists ? first : 0.0f, exists ? second : 0.0f);
    };
    const auto store_value = [&](int row, int c, float first, float second) { store_key(row, W + c, first, second); };
    if (rows % kPairRows > 0 && rows % kPairRows <= kTile) {  // tiles of keys that nobody takes
      for (int i = ptx::thread_index(); i < kTile * W; i += kGradientThreads) {
        store(whole_rows() - kTile + i / W, W + i % W * 2, 0.0f, 0.0f);
      }
    }
    attention_backward(k, v, rows, kept_x(layer, 1), store, store_key, store_value);
  }

  // Keys and values of the condition: their gradients are added where the keys that exist lie.
  __device__ __forceinline__ void cross_attention_backward(int layer) const {
    const std::int64_t keys = p.sizes.keys;
    const int count = p.key_counts[number()];
    const int* const list = p.key_list + number() * keys;
    const std::int64_t place = static_cast<std::int64_t>(2 * layer) * p.all_samples + number();
    float* const of_keys = p.cond_gradient + place * keys * W;
    float* const of_values = of_keys + p.all_samples * keys * W;
    E* const to = kept_y(layer, 2);
    const auto add = [&](float* rows_of, int row, int c, float first, float second) {
      if (row >= count) return;
      float2& place = *reinterpret_cast<float2*>(rows_of + static_cast<std::int64_t>(list[row]) * W + c);
      place = make_float2(place.x + first, place.y + second);
    };
    attention_backward(
        packed(E{}, layer, 0, 3), packed(E{}, layer, 2, 1), count, kept_x(layer, 3),
        [&](int row, int c, float first, float second) { Operand<E>::store2(to + row * W + c, first, second); },
        [&](int row, int c, float first, float second) { add(of_keys, row, c, first, second); },
        [&](int row, int c, float first, float second) { add(of_values, row, c, first, second); });
  }

  // The gradient of the stream becomes that of the block's input; `of_modulation` (9, W) is written.
  __device__ __forceinline__ void backward(int layer, const float* modulation, float* of_modulation) const {
    const TapeLayout layout{p.sizes};
    const int hidden = p.sizes.padded_hidden(), stride = shared.wide_stride;

    gate_backward(layer, 2, modulation + 8 * W);
    __syncthreads();  // narrow is whole
    add_sums(2, of_modulation + 8 * W);
    products_to(wide(), stride, narrow(), shared.row_stride, transposed(layer, 5), hidden);
    __syncthreads();  // wide is whole
    const E* const before = this->template tape<const E>(layout.before_gelu(layer));
    E* const of_hidden = kept_y(layer, 4);
    for_pieces(hidden, [&](int row, int c) {
      uint4& place = *reinterpret_cast<uint4*>(wide() + row * stride + c);
      float g[Piece<E>::kSize], x[Piece<E>::kSize];
      Piece<E>::open(place, g);
      Piece<E>::open(*reinterpret_cast<const uint4*>(before + row * hidden + c), x);
#pragma unroll
      for (int i = 0; i < Piece<E>::kSize; ++i) g[i] *= gelu_slope(x[i]);
      place = Piece<E>::close(g);
      *reinterpret_cast<uint4*>(of_hidden + row * hidden + c) = place;
    });
    __syncthreads();  // wide is whole
    products_to_stream(wide(), stride, transposed(layer, 4));
    __syncthreads();  // stream is whole, wide and narrow are free
    normalise_backward(layer, 2, modulation + 7 * W);

    gate_backward(layer, 1, modulation + 5 * W);
    copy(wide(), stride, this->template tape<const E>(layout.query(layer)), W, W);
    __syncthreads();  // narrow and Q are whole, stream is free
    add_sums(0, of_modulation + 6 * W);
    add_sums(1, of_modulation + 7 * W);
    add_sums(2, of_modulation + 5 * W);
    products_to(of_result(), shared.row_stride, narrow(), shared.row_stride, transposed(layer, 3), W);
    __syncthreads();  // of_result is whole
    cross_attention_backward(layer);
    copy(wide(), stride, kept_y(layer, 2), W, W);
    __syncthreads();  // wide is whole
    products_to_stream(wide(), stride, transposed(layer, 2));
    __syncthreads();  // stream is whole, wide and narrow are free
    normalise_backward(layer, 1, modulation + 4 * W);

    gate_backward(layer, 0, modulation + 2 * W);
    copy(wide(), stride, this->template tape<const E>(layout.qkv(layer)), 3 * W, 3 * W);
    __syncthreads();  // narrow, Q, K and V are whole, stream is free
    add_sums(0, of_modulation + 3 * W);
    add_sums(1, of_modulation + 4 * W);
    add_sums(2, of_modulation + 2 * W);
    products_to(of_result(), shared.row_stride, narrow(), shared.row_stride, transposed(layer, 1), W);
    __syncthreads();  // of_result is whole
    self_attention_backward(layer);
    copy(wide(), stride, kept_y(layer, 0), 3 * W, 3 * W);
    __syncthreads();  // wide is whole
    products_to_stream(wide(), stride, transposed(layer, 0));
    __syncthreads();  // stream is whole, wide and narrow are free
    normalise_backward(layer, 0, modulation + W);
    __syncthreads();  // the sums are there
    add_sums(0, of_modulation);
    add_sums(1, of_modulation + W);
  }
};

}  // namespace rohydr

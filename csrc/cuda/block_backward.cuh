// SPDX-License-Identifier: MIT
// The way back through a block of the denoiser for one sample, from what BlockForward has kept. Rows that do not exist
// have no gradient, so they add nothing to any sum. Keys and values of the condition have theirs from
// condition_gradients.cuh: nothing of the way back waits for them.
#pragma once

#include "attention_backward.cuh"
#include "block_memory.cuh"

namespace rohydr {

template <class E, int W, bool kLargeHeads>
struct BlockBackward : BlockMemory<E, W, kLargeHeads ? kBackwardWarps / 2 : kBackwardWarps> {
  using Base = BlockMemory<E, W, kLargeHeads ? kBackwardWarps / 2 : kBackwardWarps>;
  using Base::Base;
  using Base::N;
  using Base::column;
  using Base::in_narrow;
  using Base::in_wide;
  using Base::kBatch;
  using Base::kept_x;
  using Base::kept_y;
  using Base::kThreads;
  using Base::kWarps;
  using Base::narrow;
  using Base::number;
  using Base::p;
  using Base::products;
  using Base::rows;
  using Base::shared;
  using Base::stream;
  using Base::tape;
  using Base::transposed;
  using Base::warp;
  using Base::wide;

  __device__ E* of_result() const { return this->template at<E>(shared.stream); }  // (rows, W) gradient of attention
  __device__ float* gradient() const { return this->template at<float>(shared.gradient); }  // (rows, W) of the stream
  __device__ float* sums() const { return this->template at<float>(shared.sums); }          // (3, warps, W)
  __device__ AttentionSums attention_sums() const { return {this->template at<float>(shared.attention), shared.rows}; }

  // (W) the gradient of a row of a layer's modulation at this step.
  __device__ float* of_modulation(int layer, int row) const {
    const std::int64_t step = ptx::fresh(this->step_place);
    return p.modulation + step * p.sizes.modulation_size() + (9 * layer + row) * W;
  }

  // This warp's sums over its rows, to be added to the others'.
  __device__ void leave_sums(int which, const float (&sum)[N]) const {
    store_row(sums() + (which * kWarps + warp) * W + column(), sum);
  }
  // After a barrier: the sums over all rows, 0 and 1 to `normal` (2, W), 2 to `gate` (W), where these are given.
  __device__ void add_sums(float* normal, float* gate) const {
#pragma unroll 1
    for (int i = ptx::thread_index(); i < 3 * W; i += kThreads) {
      float* const to = i < 2 * W ? normal : gate;
      if (to == nullptr) continue;
      const float* const from = sums() + i / W * kWarps * W + i % W;
      float sum = 0.0f;
#pragma unroll
      for (int other = 0; other < kWarps; ++other) sum += from[other * W];
      to[i < 2 * W ? i : i - 2 * W] = sum;
    }
  }

  // What a row pass does, with the layer and part that it does it for.
  struct Normalise {
    int layer, part;
    const float* scale;
    bool first = false;  // its result is the first gradient of the stream, and is not added to one
  };
  struct Gate {
    int layer, part;
    const float* gate;
  };

  // From the gradient of LayerNorm's modulated result, in stream, to that of the stream; the gradients of shift and
  // scale to sums 0 and 1. Then what a gate lets through of the latter, to narrow and to Y; the gate's own gradient to
  // sums 2. Either may be left out.
  template <bool kNormalise, bool kGate>
  __device__ __forceinline__ void rows_backward(const Normalise& of, const Gate& to) const {
    const TapeLayout& layout = p.layout;
    const float* const normal =
        kNormalise ? this->template tape<const float>(layout.normal(of.layer, of.part)) : nullptr;
    const float* const inverses =
        kNormalise ? this->template tape<const float>(layout.inverse(of.layer, of.part)) : nullptr;
    const E* const results = kGate ? this->template tape<const E>(layout.part(to.layer, to.part)) : nullptr;
    E* const keep = kGate ? kept_y(to.layer, 2 * to.part + 1) : nullptr;
    float a[N], gate[N], of_shift[N] = {}, of_scale[N] = {}, of_gate[N] = {};
    if (kNormalise) load_row(a, of.scale + column());
    if (kGate) load_row(gate, to.gate + column());
#pragma unroll 1
    for (int first = warp; first < this->whole_rows(); first += kBatch * kWarps) {
      float g[kBatch][N] = {}, x[kBatch][N] = {}, result[kBatch][N] = {}, inverse[kBatch] = {};
      this->for_batch(first, [&](int r, int row) {
        if (kNormalise) load_row(x[r], normal + row * W + column());
        if (kNormalise) inverse[r] = inverses[row];
        if (kGate) load_row(result[r], results + row * W + column());
      });
      if (kNormalise) {
        this->for_batch(first, [&](int r, int row) {
          load_row(g[r], stream() + row * shared.stream_stride + column());
        });
#pragma unroll
        for (int r = 0; r < kBatch; ++r) {
#pragma unroll
          for (int i = 0; i < N; ++i) {
            of_shift[i] += g[r][i];
            of_scale[i] = fmaf(g[r][i], x[r][i], of_scale[i]);
            g[r][i] *= 1.0f + a[i];
          }
        }
        normalise_rows_backward<W>(g, x, inverse);
      }
      this->for_batch(first, [&](int r, int row) {
        float* const place = gradient() + row * shared.stream_stride + column();
        float before[N] = {};
        if (!kNormalise || !of.first) load_row(before, place);
#pragma unroll
        for (int i = 0; i < N; ++i) g[r][i] += before[i];
        if (kNormalise) store_row(place, g[r]);
        if constexpr (kGate) {
#pragma unroll
          for (int i = 0; i < N; ++i) {
            of_gate[i] = fmaf(g[r][i], result[r][i], of_gate[i]);
            g[r][i] *= gate[i];
          }
          store_row(narrow() + row * shared.row_stride + column(), g[r]);
          store_row(keep + row * W + column(), g[r]);
        }
      });
    }
    if (kNormalise) leave_sums(0, of_shift);
    if (kNormalise) leave_sums(1, of_scale);
    if (kGate) leave_sums(2, of_gate);
  }

  __device__ void to_stream(const LeftRows<E>& a, const PackedTiles& w) const {
    products(a, w, W, [&](int row, int c, float first, float second) {
      *reinterpret_cast<float2*>(stream() + row * shared.stream_stride + c) = make_float2(first, second);
    });
  }

  __device__ void to_result(const PackedTiles& w) const {
    products(in_narrow(), w, W, [&](int row, int c, float first, float second) {
      Operand<E>::store2(of_result() + row * shared.row_stride + c, first, second);
    });
  }

  static __device__ RowsInGlobal rows_in_global(const Bf16* data) { return {data, W}; }
  static __device__ RowsInShared<float> rows_in_global(const float* data) { return {data, W}; }
  __device__ PackedCondition<E> of_condition(int layer, bool values) const {
    return packed_condition<E, W>(p, number(), layer, values);
  }

  // The gradient of Q to narrow. Begins with a barrier; what the forward has kept comes meanwhile.
  template <bool kMasked, class Queries, class Keys>
  __device__ __forceinline__ void queries_backward(const Queries& q, const Keys& k, const Keys& v, int count,
                                                   const E* result, const AttentionSums& kept,
                                                   const AttentionSums& after) const {
    const RowsInShared<E> of{of_result(), shared.row_stride};
    const int heads = p.sizes.heads, shift = this->head_shift(), size = W >> shift;
    const int units = this->whole_rows() / kTile << shift;
    const auto store = [&](int row, int c, float first, float second) {
      Operand<E>::store2(narrow() + row * shared.row_stride + c, first, second);
    };
    for_head_size<kLargeHeads>(size, [&](auto tiles) {
      QueryGradient<E, decltype(tiles)::value> of_unit;
      const int some = warp < units ? warp : 0;  // without a condition, which would keep what was there before
      of_unit.load(some & (heads - 1), size, some >> shift, rows_in_global(result), kept);
      __syncthreads();  // what the queries and keys read in shared memory is whole, narrow is free
#pragma unroll 1
      for (int unit = warp; unit < units; unit += kWarps) {
        const int head = unit & (heads - 1), n = unit >> shift;
        if (unit >= kWarps) of_unit.load(head, size, n, rows_in_global(result), kept);
        of_unit.template run<kMasked>(head, size, n, q, of, k, v, count, after, store);
      }
    });
  }

  // Of self-attention, whose Q, K and V are in wide: the gradients of K and V take their places. A warp takes 16
  // keys of all heads whose channels share a tile, since it reads whole tiles.
  __device__ __forceinline__ void keys_backward() const {
    const RowsInShared<E> q{wide(), shared.wide_stride}, k{wide() + W, shared.wide_stride},
        v{wide() + 2 * W, shared.wide_stride}, of{of_result(), shared.row_stride};
    const int size = W >> this->head_shift(), together = size < kTile ? kTile / size : 1;
    const int shift = this->head_shift() - (__ffs(together) - 1), units = this->whole_rows() / kTile << shift;
    const auto store = [&](int row, int c, float first, float second) {
      const bool exists = row < rows;
      Operand<E>::store2(wide() + row * shared.wide_stride + c, exists ? first : 0.0f, exists ? second : 0.0f);
    };
    const auto to_keys = [&](int row, int c, float first, float second) { store(row, W + c, first, second); };
    const auto to_values = [&](int row, int c, float first, float second) { store(row, 2 * W + c, first, second); };
    for_head_size<kLargeHeads>(size, [&](auto tiles) {
#pragma unroll 1
      for (int unit = warp; unit < units; unit += kWarps) {
        const int first = (unit & ((1 << shift) - 1)) * together;
#pragma unroll 1
        for (int head = first; head < first + together; ++head) {
          KeyGradient<E, decltype(tiles)::value> of_unit(head, size, unit >> shift, k, v);
          of_unit.add(head, q, of, this->whole_rows(), attention_sums());
          __syncwarp();  // in float32 the lanes read keys and values until here
          of_unit.give_key(to_keys);
          of_unit.give_value(to_values);
        }
      }
    });
  }

  // Asks for what the way back through a layer reads, which is on its way to the second cache meanwhile.
  __device__ void expect(int layer) const {
    constexpr int kLine = 128;
    const TapeLayout& layout = p.layout;
    const auto ask = [&](int begin, int size) {
      const char* const from = this->template tape<const char>(begin);
      for (int i = ptx::thread_index() * kLine; i < size; i += kThreads * kLine) ptx::prefetch(from + i);
    };
    ask(layout.normal(layer, 0), 3 * layout.of_normal);
    ask(layout.operands(layer), layout.of_layer);
  }

  // Q, K and V on their way to wide.
  __device__ void fetch_qkv(int layer) const {
    const E* const from = this->template tape<const E>(p.layout.qkv(layer));
    this->template for_pieces<3 * W>([&](int row, int c) {
      ptx::cp_async_16(wide() + row * shared.wide_stride + c, from + row * 3 * W + c);
    });
    ptx::cp_async_commit();
  }

  // From behind the gate of its MLP to before its first LayerNorm: rows_backward comes before it and after it, since
  // blocks share that, and add_sums after all. The sums of the LayerNorm behind this block are there, but for a block
  // alone; their places are behind its own rows.
  __device__ __forceinline__ void backward(int layer, const float* modulation) const {
    const TapeLayout& layout = p.layout;
    const int hidden = p.sizes.padded_hidden();

    if (layer > 0) expect(layer - 1);
    E* const slope = this->template tape<E>(layout.gelu_slope(layer));
    this->template products_with<2>(
        in_narrow(), transposed(layer, 5), hidden,
        [&](int m, int n, const Tile& acc, const PairsOfTile<E>& slopes) {
          for_pairs(acc, m, n, [&](int row, int c, int j, int h, float first, float second) {
            const float2 s = open_pair<E>(slopes.pair[j][h]);
            Operand<E>::store2(wide() + row * shared.wide_stride + c, s.x * first, s.y * second);
          });
        },
        [&](int m, int n) { return this->slopes(slope, m, n); });
    add_sums(p.sizes.channels > 0 ? of_modulation(layer, 9) : nullptr, of_modulation(layer, 8));
    to_stream(in_wide(), transposed(layer, 4));
    this->copy_rows(kept_y(layer, 4), wide(), shared.wide_stride, hidden);
    __syncthreads();  // stream is whole, wide and narrow are free
    fetch_qkv(layer);
    rows_backward<true, true>({layer, 2, modulation + 7 * W}, {layer, 1, modulation + 5 * W});

    to_result(transposed(layer, 3));
    add_sums(of_modulation(layer, 6), of_modulation(layer, 5));
    const AttentionSums cross{this->template tape<float>(layout.sums(layer, true)), shared.rows};
    const auto queries = rows_in_global(this->template tape<const E>(layout.query(layer)));
    queries_backward<false>(queries, of_condition(layer, false), of_condition(layer, true), p.key_counts[number()],
                            kept_x(layer, 3), cross, cross);
    this->template copy<W>(this->template tape<E>(layout.of_cross(layer)), W, of_result(), shared.row_stride);
    to_stream(in_narrow(), transposed(layer, 2));
    this->template copy<W>(kept_y(layer, 2), W, narrow(), shared.row_stride);
    __syncthreads();  // stream is whole, narrow is free
    rows_backward<true, true>({layer, 1, modulation + 4 * W}, {layer, 0, modulation + 2 * W});

    to_result(transposed(layer, 1));
    add_sums(of_modulation(layer, 3), of_modulation(layer, 2));
    ptx::cp_async_wait<0>();  // Q, K and V
    const RowsInShared<E> q{wide(), shared.wide_stride}, k{wide() + W, shared.wide_stride};
    const RowsInShared<E> v{wide() + 2 * W, shared.wide_stride};
    const AttentionSums self{this->template tape<float>(layout.sums(layer, false)), shared.rows};
    queries_backward<true>(q, k, v, rows, kept_x(layer, 1), self, attention_sums());
    __syncthreads();  // the sums of all rows are there, and nobody reads the others' keys any more
    keys_backward();
    to_stream({narrow(), shared.row_stride, wide() + W, shared.wide_stride, W}, transposed(layer, 0));
    this->template copy<W>(kept_y(layer, 0), 3 * W, narrow(), shared.row_stride);
    this->template copy<2 * W>(kept_y(layer, 0) + W, 3 * W, wide() + W, shared.wide_stride);
    __syncthreads();  // stream is whole, wide and narrow are free
  }
};

}  // namespace rohydr

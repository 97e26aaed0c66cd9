// SPDX-License-Identifier: MIT
// Gradients of the condition's keys and values from what the way back through some steps has left: nothing in those
// steps waits for them, so they are summed afterwards, over all steps in registers.
#pragma once

#include "attention_backward.cuh"
#include "gradient_parameters.h"

namespace rohydr {

constexpr int kConditionWarps = 8;

// Shared memory: Q, the gradient of attention's result and AttentionSums of a step, twice.
struct ConditionShared {
  int stride, matrix, sums;  // of rows; bytes

  RH_HOST_DEVICE explicit ConditionShared(const GradientSizes& s)
      : stride(s.width + (s.element_size == 2 ? 8 : 4)),
        matrix(s.rows() * stride * s.element_size),
        sums(s.rows() * s.heads * 8) {}
  RH_HOST_DEVICE int step() const { return 2 * matrix + sums; }
  RH_HOST_DEVICE int bytes() const { return 2 * step(); }
};

template <class E, int W>
struct ConditionGradient {
  const GradientParameters& p;
  ConditionShared shared;
  std::int64_t sample;
  int layer, rows, count;  // rows: whole pairs of tiles; count: keys

  __device__ ConditionGradient(const GradientParameters& p)
      : p(p), shared(p.sizes), sample(blockIdx.x), layer(static_cast<int>(blockIdx.y)),
        rows(round_up_to(p.row_counts[blockIdx.x], kRowsOfPair)), count(p.key_counts[p.first_sample + blockIdx.x]) {}

  __device__ E* matrix(int slot, int which) const {
    ROHYDR_SHARED(memory);
    return reinterpret_cast<E*>(memory + slot % 2 * shared.step() + which * shared.matrix);
  }

  // The numbers of a step on their way to one half of shared memory.
  __device__ void fetch(int slot) const {
    constexpr int kPiece = 16 / sizeof(E), kOfRow = W / kPiece;
    const TapeLayout& layout = p.layout;
    const char* const tape = p.tape + (slot * p.samples + sample) * layout.all;
    const int threads = 32 * kConditionWarps, thread = static_cast<int>(threadIdx.x);
#pragma unroll 1
    for (int which = 0; which < 2; ++which) {
      const int place = which == 0 ? layout.query(layer) : layout.of_cross(layer);
      const E* const from = reinterpret_cast<const E*>(tape + place);
      for (int i = thread; i < rows * kOfRow; i += threads) {
        const int row = i / kOfRow, c = i % kOfRow * kPiece;
        ptx::cp_async_16(matrix(slot, which) + row * shared.stride + c, from + row * W + c);
      }
    }
    const float* const sums = reinterpret_cast<const float*>(tape + layout.sums(layer, true));
    float* const to = reinterpret_cast<float*>(matrix(slot, 2));
    for (int i = 4 * thread; i < p.layout.of_sums / 4; i += 4 * threads) ptx::cp_async_16(to + i, sums + i);
    ptx::cp_async_commit();
  }

  // Added where the keys that exist lie; `which`: 0 keys, 1 values.
  __device__ void add(int which, int row, int c, float first, float second) const {
    if (row >= count) return;
    const std::int64_t keys = p.sizes.keys, number = p.first_sample + sample;
    const std::int64_t key = p.key_list[number * keys + row];
    float* const to = p.cond_gradient + (((2 * layer + which) * p.all_samples + number) * keys + key) * W + c;
    float2& place = *reinterpret_cast<float2*>(to);
    place = make_float2(place.x + first, place.y + second);
  }

  template <int KC>
  __device__ __forceinline__ void sum(int unit) const {
    const int heads = p.sizes.heads, head = unit & (heads - 1), n = unit / heads;
    const bool exists = n * kTile < count;
    const std::int64_t number = p.first_sample + sample;
    const auto keys = packed_condition<E, W>(p, number, layer, false);
    KeyGradient<E, KC> gradient(head, W / heads, exists ? n : 0, keys, packed_condition<E, W>(p, number, layer, true));
    fetch(0);
#pragma unroll 1
    for (int slot = 0; slot < p.steps; ++slot) {
      if (slot + 1 < p.steps) {
        fetch(slot + 1);
        ptx::cp_async_wait<1>();
      } else {
        ptx::cp_async_wait<0>();
      }
      __syncthreads();  // the step's numbers are there
      const RowsInShared<E> q{matrix(slot, 0), shared.stride}, of{matrix(slot, 1), shared.stride};
      const AttentionSums sums{reinterpret_cast<float*>(matrix(slot, 2)), p.shared.rows};
      if (exists) gradient.add(head, q, of, rows, sums);
      __syncthreads();  // nobody reads them any more
    }
    if (!exists) return;
    gradient.give_key([&](int row, int c, float first, float second) { add(0, row, c, first, second); });
    gradient.give_value([&](int row, int c, float first, float second) { add(1, row, c, first, second); });
  }
};

// Block (sample, layer, z): 16 keys of a head for each warp.
template <class E, int W, bool kLargeHeads>
__global__ void __launch_bounds__(32 * kConditionWarps, kLargeHeads ? 1 : 2)
    condition_gradient_kernel(const __grid_constant__ GradientParameters p) {
  const ConditionGradient<E, W> all(p);
  const int first = static_cast<int>(blockIdx.z) * kConditionWarps;
  if (first / p.sizes.heads * kTile >= all.count || all.rows == 0) return;
  for_head_size<kLargeHeads>(W / p.sizes.heads, [&](auto tiles) {
    all.template sum<decltype(tiles)::value>(first + static_cast<int>(threadIdx.x) / 32);
  });
}

// Adds the gradients of `p.steps` steps of a group of samples.
template <class E, int W, bool kLargeHeads>
int add_condition_gradients(const GradientParameters& p, void* stream) {
  const GradientSizes& s = p.sizes;
  const int units = s.heads * s.key_tiles();
  if (units == 0 || s.layers == 0) return 0;
  const dim3 grid(static_cast<unsigned>(p.samples), static_cast<unsigned>(s.layers),
                  static_cast<unsigned>((units + kConditionWarps - 1) / kConditionWarps));
  return ROHYDR_LAUNCH((condition_gradient_kernel<E, W, kLargeHeads>), grid, dim3(32 * kConditionWarps),
                       ConditionShared(s).bytes(), stream, p);
}

}  // namespace rohydr

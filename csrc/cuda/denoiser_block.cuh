// SPDX-License-Identifier: MIT
// The kernels of one block of the denoiser: a block of threads takes a sample.
#pragma once

#include "block_backward.cuh"
#include "block_forward.cuh"
#include "condition_gradients.cuh"
#include "denoiser_block_launch.h"
#include "gradient_launch.cuh"
#include "sample_rows.cuh"

namespace rohydr {

struct BlockParameters {
  GradientParameters gradient;
  const float *x, *modulation, *out_gradient;
  int modulation_rows;
  float* out;  // the result, or the gradient of x
};

// Rows of a sample's (T, W) that exist to shared memory, the others as zeros.
template <int W, class Block>
__device__ void take_rows(const Block& block, const float* from, float* to) {
  from += block.number() * block.p.sizes.tokens * W;
  for (int i = static_cast<int>(threadIdx.x); i < block.whole_rows() * W; i += Block::kThreads) {
    const int row = i / W, c = i % W;
    to[row * block.shared.stream_stride + c] =
        row < block.rows ? from[static_cast<std::int64_t>(block.token()[row]) * W + c] : 0.0f;
  }
}

// The other way; zeros at tokens that do not exist.
template <int W, class Block>
__device__ void give_rows(const Block& block, const float* from, float* to) {
  const int tokens = block.p.sizes.tokens;
  to += block.number() * tokens * W;
  for (int i = static_cast<int>(threadIdx.x); i < tokens * W; i += Block::kThreads) to[i] = 0.0f;
  __syncthreads();  // zeros come first
  for (int i = static_cast<int>(threadIdx.x); i < block.rows * W; i += Block::kThreads) {
    const int row = i / W, c = i % W;
    to[static_cast<std::int64_t>(block.token()[row]) * W + c] = from[row * block.shared.stream_stride + c];
  }
}

// With kKeep what the way back reads, without it the result.
template <class E, int W, bool kKeep>
__global__ void __launch_bounds__(32 * kForwardWarps, 1)
    denoiser_block_kernel(const __grid_constant__ BlockParameters all) {
  const GradientParameters& p = all.gradient;
  BlockForward<E, W, kForwardWarps> block(p, static_cast<int>(blockIdx.x));
  find_tokens(block);
  if (kKeep && threadIdx.x == 0) p.row_counts[block.sample] = block.rows;
  take_rows<W>(block, all.x, block.stream());
  __syncthreads();  // the stream is whole
  block.template forward<kKeep>(0, all.modulation + (all.modulation_rows == 1 ? 0 : block.number() * 9 * W));
  if (!kKeep) give_rows<W>(block, block.stream(), all.out);
}

template <class E, int W, bool kLargeHeads>
__global__ void __launch_bounds__(BlockBackward<E, W, kLargeHeads>::kThreads, 1)
    denoiser_block_backward_kernel(const __grid_constant__ BlockParameters all) {
  const GradientParameters& p = all.gradient;
  BlockBackward<E, W, kLargeHeads> block(p, static_cast<int>(blockIdx.x));
  const float* const modulation = all.modulation + (all.modulation_rows == 1 ? 0 : block.number() * 9 * W);
  find_tokens(block);
  take_rows<W>(block, all.out_gradient, block.gradient());
  __syncthreads();  // the gradient is whole
  block.template rows_backward<false, true>({}, {0, 2, modulation + 8 * W});
  block.backward(0, modulation);
  block.template rows_backward<true, false>({0, 0, modulation + W}, {});
  __syncthreads();  // the gradient and the sums are whole
  block.add_sums(block.of_modulation(0, 0), nullptr);
  give_rows<W>(block, block.gradient(), all.out);
}

template <class E, int W>
int launch_block(const CudaBlockRequest& r) {
  const GradientSizes sizes = sizes_of(r);
  BlockParameters all{};
  const GradientInputs inputs{r.samples, r.cond_kv, r.token_mask, r.key_mask, r.weights, nullptr, r.scratch};
  const int error = prepare_gradient<E>(sizes, inputs, scratch_of(r, false), false, all.gradient, r.stream);
  if (error != 0) return error;
  all.gradient.samples = r.samples;
  all.gradient.steps = 1;
  all.x = r.x, all.modulation = r.modulation, all.modulation_rows = r.modulation_rows, all.out = r.out;
  return ROHYDR_LAUNCH((denoiser_block_kernel<E, W, false>), dim3(static_cast<unsigned>(r.samples)),
                       dim3(32 * kForwardWarps), GradientShared(sizes).forward_bytes, r.stream, all);
}

template <class E, int W, bool kLargeHeads>
int launch_block_backward_of(const CudaBlockRequest& r) {
  const GradientSizes sizes = sizes_of(r);
  const GradientPlan plan(sizes, r.samples, 1);
  const GradientScratch scratch = scratch_of(r, true);
  BlockParameters all{};
  GradientParameters& p = all.gradient;
  const GradientInputs inputs{r.samples, r.cond_kv, r.token_mask, r.key_mask, r.weights, r.cond_gradient, r.scratch};
  int error = prepare_gradient<E>(sizes, inputs, scratch, true, p, r.stream);
  float* const parts = reinterpret_cast<float*>(static_cast<char*>(r.scratch) + scratch.weight_parts);
  float* const rows = p.modulation;
  all.x = r.x, all.modulation = r.modulation, all.modulation_rows = r.modulation_rows;
  all.out_gradient = r.out_gradient, all.out = r.x_gradient;
  p.steps = 1;
  for (std::int64_t first = 0; first < r.samples && error == 0; first += plan.group) {
    p.first_sample = first;
    p.samples = std::min(plan.group, r.samples - first);
    p.modulation = r.modulation_rows == 1 ? rows : r.modulation_gradient + first * 9 * W;
    const dim3 grid(static_cast<unsigned>(p.samples));
    const GradientShared shared(sizes);
    error = ROHYDR_LAUNCH((denoiser_block_kernel<E, W, true>), grid, dim3(32 * kForwardWarps), shared.forward_bytes,
                          r.stream, all);
    if (error == 0) {
      error = ROHYDR_LAUNCH((denoiser_block_backward_kernel<E, W, kLargeHeads>), grid,
                            dim3(BlockBackward<E, W, kLargeHeads>::kThreads), shared.bytes, r.stream, all);
    }
    if (error == 0) error = add_condition_gradients<E, W, kLargeHeads>(p, r.stream);
    if (error == 0) error = sum_weight_gradients<E>(p, plan.parts, parts, first == 0, r.weight_gradients, r.stream);
    if (error == 0 && r.modulation_rows == 1) {
      error = sum_modulation({rows, p.samples, 9 * W, 0, r.modulation_gradient, nullptr, first == 0}, 1, r.stream);
    }
  }
  return error;
}

template <class E, int W>
int launch_block_backward(const CudaBlockRequest& r) {
  if constexpr (W > kSmallHeadMax) {
    if (W / r.heads > kSmallHeadMax) return launch_block_backward_of<E, W, true>(r);
  }
  return launch_block_backward_of<E, W, false>(r);
}

}  // namespace rohydr

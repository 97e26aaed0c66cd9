// SPDX-License-Identifier: MIT
// The way back through steps of Eq. 2 for one sample, from the tape of loop_tape.cuh.
#pragma once

#include "block_backward.cuh"
#include "condition_gradients.cuh"
#include "gradient_launch.cuh"
#include "loop_tape.cuh"
#include "reverse_loop_backward_launch.h"

namespace rohydr {

template <class E, int W, bool kLargeHeads>
struct StepBackward : BlockBackward<E, W, kLargeHeads> {
  using Base = BlockBackward<E, W, kLargeHeads>;
  using Base::gradient;
  using Base::in_narrow;
  using Base::in_wide;
  using Base::kThreads;
  using Base::narrow;
  using Base::p;
  using Base::rows;
  using Base::shared;
  using Base::wide;

  const LoopGradientParameters& all;

  __device__ StepBackward(const LoopGradientParameters& all, int sample)
      : Base(all.gradient, sample), all(all) {}

  __device__ float* state() const { return this->template at<float>(shared.state); }  // (rows, C) gradient of x_t
  __device__ int channels() const { return p.sizes.channels; }
  __device__ std::int64_t element(int row, int channel) const {  // of (B, T, C)
    return (this->number() * p.sizes.tokens + this->token()[row]) * channels() + channel;
  }

  __device__ void take_gradient() const {
    for (int i = ptx::thread_index(); i < rows * channels(); i += kThreads) {
      state()[i] = all.of_state[element(i / channels(), i % channels())];
    }
  }
  // Zeros at tokens that do not exist.
  __device__ void give_gradient() const {
    const int size = p.sizes.tokens * channels();
    for (int i = ptx::thread_index(); i < size; i += kThreads) all.of_state[this->number() * size + i] = 0.0f;
    __syncthreads();  // zeros come first
    for (int i = ptx::thread_index(); i < rows * channels(); i += kThreads) {
      all.of_state[element(i / channels(), i % channels())] = state()[i];
    }
  }

  // From the gradient of x_{t-1} to that of what the last layer gives, in wide and Y, and to c_x times it.
  __device__ void update_backward(int step) const {
    const float4 c = __ldg(reinterpret_cast<const float4*>(all.coefficients) + step - 1);
    const float* const noise = this->template tape<const float>(p.layout.noise());
    const int columns = p.sizes.out_columns(), of_row = columns / 4;  // pairs of channels
    E* const keep = this->kept(StreamLayout{p.sizes}.y_out(), columns);
    for (int i = ptx::thread_index(); i < this->whole_rows() * of_row; i += kThreads) {
      const int row = i / of_row, first = i % of_row * 2;
      float of_prediction[2] = {}, of_v[2] = {};
#pragma unroll
      for (int e = 0; e < 2; ++e) {
        const int place = row * channels() + first + e;
        if (row >= rows || first + e >= channels()) continue;
        float& g = state()[place];
        of_prediction[e] = c.y * g;
        if (step > 1) of_v[e] = g * noise[place];
        g *= c.x;
      }
      const int column = first / 8 * kTile + first % 8;
      E* const to = wide() + row * shared.wide_stride + column;
      Operand<E>::store2(to, of_prediction[0], of_prediction[1]);
      Operand<E>::store2(to + 8, of_v[0], of_v[1]);
      Operand<E>::store2(keep + row * columns + column, of_prediction[0], of_prediction[1]);
      Operand<E>::store2(keep + row * columns + column + 8, of_v[0], of_v[1]);
    }
  }

  // The gradient of the embedding to Y, and what it adds to that of x_t. `normal`: where the sums of the LayerNorm
  // behind it go.
  __device__ void embed_backward(float* normal) const {
    E* const keep = this->kept(StreamLayout{p.sizes}.y_in(), W);
#pragma unroll 1
    for (int row = this->warp; row < this->whole_rows(); row += Base::kWarps) {
      float x[Base::N];
      load_row(x, gradient() + row * shared.stream_stride + this->column());
      store_row(narrow() + row * shared.row_stride + this->column(), x);
      store_row(keep + row * W + this->column(), x);
    }
    this->products(in_narrow(), PackedTiles{p.transposed, nullptr, W}, p.sizes.state_depth(),
                   [&](int row, int channel, float first, float second) {
      if (row >= rows) return;
      float* const to = state() + row * channels() + channel;
      if (channel < channels()) to[0] += first;
      if (channel + 1 < channels()) to[1] += second;
    });
    this->add_sums(normal, nullptr);
  }

  __device__ __forceinline__ void step_backward(int step) const {
    const int layers = p.sizes.layers;
    const std::int64_t row = step - 1;
    const float* const modulation = all.block_modulation + row * layers * 9 * W;

    if (layers > 0) this->expect(layers - 1);
    update_backward(step);
    this->to_stream(in_wide(), PackedTiles{p.transposed + p.sizes.out_piece(), nullptr, p.sizes.out_columns()});
    __syncthreads();  // the gradient of the last layer's input is whole, wide is free
    const float* const last = all.final_modulation + row * 2 * W + W;  // its scale
    if (layers == 0) this->template rows_backward<true, false>({0, 0, last, true}, {});
#pragma unroll 1
    for (int layer = layers - 1; layer >= 0; --layer) {
      const bool first = layer == layers - 1;
      this->template rows_backward<true, true>(
          {layer + 1, 0, first ? last : modulation + (9 * layer + 10) * W, first},
          {layer, 2, modulation + (9 * layer + 8) * W});
      this->backward(layer, modulation + layer * 9 * W);
    }
    if (layers > 0) this->template rows_backward<true, false>({0, 0, modulation + W}, {});
    embed_backward(this->of_modulation(0, 0));
    __syncthreads();  // the gradient of x_t is whole
  }
};

// Two chunks of steps: for the first, whose tape is there, blocks go all its way back, one for each sample; others make
// the tape of the second meanwhile, which it will need next.
struct LoopGradientChunks {
  LoopGradientParameters back, tape;
  int blocks_back;
};

template <class E, int W, bool kLargeHeads>
__global__ void __launch_bounds__(BlockBackward<E, W, kLargeHeads>::kThreads, 1)
    reverse_loop_backward_kernel(const __grid_constant__ LoopGradientChunks chunks) {
  const int index = static_cast<int>(blockIdx.x) - chunks.blocks_back;
  if (index >= 0) {
    constexpr HeadSizes kHeads = kLargeHeads ? HeadSizes::kLarge : HeadSizes::kSmall;
    make_tape<E, W, BlockBackward<E, W, kLargeHeads>::kWarps, kHeads>(chunks.tape, index);
    return;
  }
  const LoopGradientParameters& all = chunks.back;
  StepBackward<E, W, kLargeHeads> block(all, static_cast<int>(blockIdx.x));
  find_tokens(block);
  block.take_gradient();
  __syncthreads();  // the gradient is there
#pragma unroll 1
  for (int slot = 0; slot < all.gradient.steps; ++slot) {
    block.take_step(slot);
    block.step_backward(all.first_step + slot);
  }
  block.give_gradient();
}

// Groups of samples one after the other, and chunks of steps from the last step of the loop on.
template <class E, int W, bool kLargeHeads>
int launch_loop_backward_of(const CudaLoopGradient& r) {
  const CudaLoopModality& m = r.loop;
  const GradientSizes sizes = sizes_of(r);
  const GradientPlan plan = plan_of(r);
  const GradientScratch scratch = scratch_of(r);
  LoopGradientParameters all{};
  const GradientInputs inputs{m.samples, m.cond_kv, m.token_mask, m.key_mask, m.weights, r.cond_kv, m.scratch};
  int error = prepare_gradient<E>(sizes, inputs, scratch, true, all.gradient, r.stream);
  float* const parts = reinterpret_cast<float*>(static_cast<char*>(m.scratch) + scratch.weight_parts);
  all.states = m.x, all.of_state = m.out, all.position = m.position, all.coefficients = m.coefficients;
  all.block_modulation = m.block_modulation, all.final_modulation = m.final_modulation;
  all.noise = {m.seed, m.sample_ids, m.samples, 0, m.modality, 0, kPhiloxStepStream};
  const int blocks = 9 * m.layers * W, last = 2 * W;

  for (std::int64_t first = 0; first < m.samples && error == 0; first += plan.group) {
    all.gradient.first_sample = first;
    all.gradient.samples = std::min(plan.group, m.samples - first);
    const auto chunk = [&](int done) {  // of the steps from `done` on; none where they are over
      LoopGradientParameters of = all;
      of.first_step = done + 1;
      of.gradient.steps = std::max(0, std::min(plan.steps, m.steps - done));
      const bool second = done / plan.steps % 2 == 1;
      if (second) {
        of.gradient.tape += scratch.second_tape - scratch.tape;
        of.gradient.streams = static_cast<char*>(of.gradient.streams) + (scratch.second_streams - scratch.streams);
      }
      return of;
    };
    const auto launch = [&](const LoopGradientChunks& chunks) {
      const std::int64_t tapes = chunks.tape.gradient.samples * chunks.tape.gradient.steps;
      return ROHYDR_LAUNCH((reverse_loop_backward_kernel<E, W, kLargeHeads>),
                           dim3(static_cast<unsigned>(chunks.blocks_back + tapes)),
                           dim3(BlockBackward<E, W, kLargeHeads>::kThreads), GradientShared(sizes).bytes, r.stream,
                           chunks);
    };
    error = launch({all, chunk(0), 0});
    for (int done = 0; done < m.steps && error == 0; done += plan.steps) {
      const LoopGradientChunks chunks{chunk(done), chunk(done + plan.steps), static_cast<int>(all.gradient.samples)};
      const GradientParameters& p = chunks.back.gradient;
      error = launch(chunks);
      if (error == 0) error = add_condition_gradients<E, W, kLargeHeads>(p, r.stream);
      const bool start = first == 0 && done == 0;
      if (error == 0) error = sum_weight_gradients<E>(p, plan.parts, parts, start, r.weights, r.stream);
      const ModulationSum sum{p.modulation, p.samples, blocks, last,
                              r.block_modulation + static_cast<std::int64_t>(done) * blocks,
                              r.final_modulation + static_cast<std::int64_t>(done) * last, first == 0};
      if (error == 0) error = sum_modulation(sum, p.steps, r.stream);
    }
  }
  return error;
}

template <class E, int W>
int launch_loop_backward(const CudaLoopGradient& r) {
  if constexpr (W > kSmallHeadMax) {
    if (W / r.heads > kSmallHeadMax) return launch_loop_backward_of<E, W, true>(r);
  }
  return launch_loop_backward_of<E, W, false>(r);
}

}  // namespace rohydr

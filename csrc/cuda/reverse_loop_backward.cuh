// SPDX-License-Identifier: MIT
// The way back through steps of Eq. 2 for one sample, from x_t of each step: what the step computes is computed again.
#pragma once

#include "gradient_launch.cuh"
#include "noise_rows.cuh"
#include "reverse_loop_backward_launch.h"
#include "sample_rows.cuh"

namespace rohydr {

struct LoopGradientParameters {
  GradientParameters gradient;
  const float* states;  // (steps, B, T, C)
  float* of_state;      // (B, T, C) the gradient of the last step's result, then of the first step's x_t
  const float *position, *block_modulation, *final_modulation, *coefficients;
  PhiloxRequest noise;
  int first_step;  // of the chunk, from 1
};

template <class E, int W>
struct StepGradient : BlockGradient<E, W> {
  using Base = BlockGradient<E, W>;
  using Base::gradient;
  using Base::narrow;
  using Base::p;
  using Base::rows;
  using Base::shared;
  using Base::wide;

  const LoopGradientParameters& all;

  __device__ StepGradient(const LoopGradientParameters& all, std::int64_t sample)
      : Base(all.gradient, sample), all(all) {}

  __device__ float* state() const { return this->template at<float>(shared.state()); }  // (rows, C) gradient of x_t
  __device__ int channels() const { return p.sizes.channels; }
  __device__ std::int64_t element(int row, int channel) const {  // of (B, T, C)
    return (this->number() * p.sizes.tokens + this->token()[row]) * channels() + channel;
  }

  // x_t as an operand, to wide and X.
  __device__ void show_state(int step) const {
    const int depth = p.sizes.state_depth(), stride = depth + Operand<E>::kPad;
    const float* const x = all.states + (step - 1) * p.all_samples * p.sizes.tokens * channels();
    E* const keep = this->kept(StreamLayout{p.sizes}.x_in(), depth);
    for (int i = ptx::thread_index(); i < this->whole_rows() * depth / 2; i += kGradientThreads) {
      const int row = 2 * i / depth, c = 2 * i % depth;
      const auto at = [&](int channel) {
        return row < rows && channel < channels() ? x[element(row, channel)] : 0.0f;
      };
      const float first = at(c), second = at(c + 1);
      Operand<E>::store2(wide() + row * stride + c, first, second);
      Operand<E>::store2(keep + row * depth + c, first, second);
    }
  }

  __device__ void embed() const {
    const int depth = p.sizes.state_depth();
    this->products(wide(), depth + Operand<E>::kPad, PackedTiles{p.weights, p.biases, depth}, W,
                   [&](const Place<W>& place, int tile, const Fragment& acc) {
      for_pairs(acc, [&](int m, int h, int j, float first, float second) {
        const int row = place.row(m, h), c = tile * kTile + place.column(j);
        float2 at = make_float2(0.0f, 0.0f);
        if (row < rows) at = load2(all.position + static_cast<std::int64_t>(this->token()[row]) * W + c);
        *reinterpret_cast<float2*>(this->stream() + row * shared.stream_stride() + c) =
            make_float2(first + at.x, second + at.y);
      });
    });
  }

  // From the gradient of x_{t-1} to that of what the last layer gives, in Y, and to c_x times it. z is in wide.
  __device__ void update_backward(int step) const {
    const float4 c = __ldg(reinterpret_cast<const float4*>(all.coefficients) + step - 1);
    const float* const z = reinterpret_cast<const float*>(wide());
    const int columns = p.sizes.out_columns();
    E* const keep = this->kept(StreamLayout{p.sizes}.y_out(), columns);
    const PackedTiles last{p.weights + p.sizes.out_piece(), p.biases + p.sizes.out_bias(), W};
    this->products(narrow(), shared.row_stride, last, columns,
                   [&](const Place<W>& place, int tile, const Fragment& acc) {
#pragma unroll
      for (int r = 0; r < 4; ++r) {
        const int m = r / 2, h = r % 2, row = place.row(m, h);
        float of_prediction[2] = {}, of_v[2] = {};
#pragma unroll
        for (int e = 0; e < 2; ++e) {
          const int channel = 8 * tile + place.column(0) + e;
          if (row >= rows || channel >= channels()) continue;
          float& g = state()[row * channels() + channel];
          of_prediction[e] = c.y * g;
          if (step > 1) {  // d sigma / dv = sigma (log beta - log btilde) / 4
            const float u = 0.5f * (acc[m][1][2 * h + e] + 1.0f);
            const float sigma = expf(0.5f * (u * c.z + (1.0f - u) * c.w));
            of_v[e] = g * z[row * channels() + channel] * (sigma * 0.25f * (c.z - c.w));
          }
          g *= c.x;
        }
        E* const to = keep + row * columns + tile * kTile + place.column(0);
        Operand<E>::store2(to, of_prediction[0], of_prediction[1]);
        Operand<E>::store2(to + 8, of_v[0], of_v[1]);
      }
    });
  }

  // The gradient of the embedding to Y, and what it adds to that of x_t.
  __device__ void embed_backward() const {
    E* const keep = this->kept(StreamLayout{p.sizes}.y_in(), W);
#pragma unroll 1
    for (int row = this->warp(); row < this->whole_rows(); row += kGradientWarps) {
      float x[Base::N];
      load_row(x, gradient() + row * shared.stream_stride() + this->column());
      store_row(narrow() + row * shared.row_stride + this->column(), x);
      store_row(keep + row * W + this->column(), x);
    }
    __syncthreads();  // narrow is whole
    this->products(narrow(), shared.row_stride, PackedTiles{p.transposed, p.zeros, W}, p.sizes.state_depth(),
                   [&](const Place<W>& place, int tile, const Fragment& acc) {
      for_pairs(acc, [&](int m, int h, int j, float first, float second) {
        const int row = place.row(m, h), channel = tile * kTile + place.column(j);
        if (row >= rows) return;
        float* const to = state() + row * channels() + channel;
        if (channel < channels()) to[0] += first;
        if (channel + 1 < channels()) to[1] += second;
      });
    });
  }

  __device__ __forceinline__ void step_backward(int step) const {
    const int layers = p.sizes.layers;
    const std::int64_t row = step - 1;
    const float* const modulation = all.block_modulation + row * layers * 9 * W;
    const float* const last = all.final_modulation + row * 2 * W;
    float* const of_modulation =
        p.modulation + (static_cast<std::int64_t>(this->slot) * p.samples + this->sample) * p.sizes.modulation_size();

    show_state(step);
    __syncthreads();  // wide is whole
    embed();
    __syncthreads();  // the stream is whole, wide is free
#pragma unroll 1
    for (int layer = 0; layer < layers; ++layer) this->template forward<true>(layer, modulation + layer * 9 * W);
    float* const before = this->template tape<float>(TapeLayout{p.sizes}.stream(layers, 0));
    this->template normalise<true>(last, last + W, before, this->kept(StreamLayout{p.sizes}.x_out(), W));
    PhiloxRequest noise = all.noise;
    noise.step = static_cast<std::uint32_t>(step);
    if (step > 1) {
      draw_rows(noise, noise.sample_ids[this->number()], this->token(), 0, rows, channels(),
                reinterpret_cast<float*>(wide()), channels(), ptx::thread_index(), static_cast<int>(blockDim.x));
    }
    __syncthreads();  // narrow and z are whole
    update_backward(step);
    __syncthreads();  // Y is whole, wide is free

    const int columns = p.sizes.out_columns();
    this->copy(wide(), shared.wide_stride, this->kept(StreamLayout{p.sizes}.y_out(), columns), columns, columns);
    __syncthreads();  // wide is whole
    this->products_to_stream(wide(), shared.wide_stride,
                             PackedTiles{p.transposed + p.sizes.out_piece(), p.zeros, columns});
    __syncthreads();  // the gradient of the last layer's input is whole
    Base::template normalise_backward<true>(before, last + W);
    __syncthreads();  // the sums are there
    this->add_sums(0, of_modulation + layers * 9 * W);
    this->add_sums(1, of_modulation + layers * 9 * W + W);
#pragma unroll 1
    for (int layer = layers - 1; layer >= 0; --layer) {
      this->backward(layer, modulation + layer * 9 * W, of_modulation + layer * 9 * W);
    }
    embed_backward();
    __syncthreads();  // the gradient of x_t is whole
  }
};

template <class E, int W>
__global__ void __launch_bounds__(kGradientThreads, 1)
    reverse_loop_backward_kernel(const __grid_constant__ LoopGradientParameters all) {
  const GradientParameters& p = all.gradient;
  StepGradient<E, W> block(all, blockIdx.x);
  find_tokens(block);
  const int thread = static_cast<int>(threadIdx.x), channels = p.sizes.channels;
  if (thread == 0) p.row_counts[block.sample] = block.rows;
  for (int i = thread; i < block.rows * channels; i += kGradientThreads) {
    block.state()[i] = all.of_state[block.element(i / channels, i % channels)];
  }
  __syncthreads();  // the gradient is there
#pragma unroll 1
  for (block.slot = 0; block.slot < p.steps; ++block.slot) block.step_backward(all.first_step + block.slot);

  const int size = p.sizes.tokens * channels;
  for (int i = thread; i < size; i += kGradientThreads) all.of_state[block.number() * size + i] = 0.0f;
  __syncthreads();  // zeros come first
  for (int i = thread; i < block.rows * channels; i += kGradientThreads) {
    all.of_state[block.element(i / channels, i % channels)] = block.state()[i];
  }
}

// Groups of samples one after the other, and chunks of steps from the last step of the loop on.
template <class E, int W>
int launch_loop_backward(const CudaLoopGradient& r) {
  const CudaLoopModality& m = r.loop;
  const GradientSizes sizes = sizes_of(r);
  const GradientPlan plan = plan_of(r);
  const GradientScratch scratch = scratch_of(r);
  LoopGradientParameters all{};
  GradientParameters& p = all.gradient;
  const GradientInputs inputs{m.samples, m.cond_kv, m.token_mask, m.key_mask, m.weights, r.cond_kv, m.scratch};
  int error = prepare_gradient<E>(sizes, inputs, scratch, true, p, r.stream);
  float* const parts = reinterpret_cast<float*>(static_cast<char*>(m.scratch) + scratch.weight_parts);
  all.states = m.x, all.of_state = m.out, all.position = m.position, all.coefficients = m.coefficients;
  all.block_modulation = m.block_modulation, all.final_modulation = m.final_modulation;
  all.noise = {m.seed, m.sample_ids, m.samples, 0, m.modality, 0, kPhiloxStepStream};
  const int blocks = 9 * m.layers * W, last = 2 * W;
  for (std::int64_t first = 0; first < m.samples && error == 0; first += plan.group) {
    p.first_sample = first;
    p.samples = std::min(plan.group, m.samples - first);
    for (int done = 0; done < m.steps && error == 0; done += plan.steps) {
      p.steps = std::min(plan.steps, m.steps - done);
      all.first_step = done + 1;
      error = ROHYDR_LAUNCH((reverse_loop_backward_kernel<E, W>), dim3(static_cast<unsigned>(p.samples)),
                            dim3(kGradientThreads), GradientShared(sizes).bytes(), r.stream, all);
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

}  // namespace rohydr

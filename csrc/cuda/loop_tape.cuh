// SPDX-License-Identifier: MIT
// What the way back through steps of Eq. 2 reads, computed again from x_t of each: a block takes a step of a sample.
// Since x_t is known, all steps can be taken at once.
#pragma once

#include "block_forward.cuh"
#include "loop_gradient_parameters.h"
#include "noise_rows.cuh"
#include "sample_rows.cuh"

namespace rohydr {

template <class E, int W, int kBlockWarps, HeadSizes kHeads>
struct StepForward : BlockForward<E, W, kBlockWarps, kHeads> {
  using Base = BlockForward<E, W, kBlockWarps, kHeads>;
  using Base::p;
  using Base::rows;
  using Base::shared;
  using Base::wide;

  const LoopGradientParameters& all;

  __device__ StepForward(const LoopGradientParameters& all, int sample, int slot)
      : Base(all.gradient, sample), all(all) {
    this->take_step(slot);
  }

  __device__ int channels() const { return p.sizes.channels; }
  // Computed again each time, as a register less costs nothing here.
  __device__ int slot() const { return ptx::fresh(this->step_place) / static_cast<int>(p.samples); }
  __device__ int step() const { return all.first_step + slot(); }

  // x_t as an operand, to wide and X.
  __device__ void show_state(int step) const {
    const int depth = p.sizes.state_depth();
    const float* const x = all.states + (step - 1) * p.all_samples * p.sizes.tokens * channels();
    E* const keep = this->kept(StreamLayout{p.sizes}.x_in(), depth);
    for (int i = ptx::thread_index(); i < this->whole_rows() * depth / 2; i += Base::kThreads) {
      const int row = 2 * i / depth, c = 2 * i % depth;
      const auto at = [&](int channel) {
        const std::int64_t token = this->number() * p.sizes.tokens + this->token()[row];
        return row < rows && channel < channels() ? x[token * channels() + channel] : 0.0f;
      };
      const float first = at(c), second = at(c + 1);
      this->to_wide(row, c, first, second);
      Operand<E>::store2(keep + row * depth + c, first, second);
    }
  }

  __device__ void embed() const {
    this->products(this->in_wide(), PackedTiles{p.weights, p.biases, p.sizes.state_depth()}, W,
                   [&](int row, int c, float first, float second) {
      float2 at = make_float2(0.0f, 0.0f);
      if (row < rows) at = load2(all.position + static_cast<std::int64_t>(this->token()[row]) * W + c);
      *reinterpret_cast<float2*>(this->stream() + row * shared.stream_stride + c) =
          make_float2(first + at.x, second + at.y);
    });
  }

  // How x_{t-1} depends on the last layer's v, with the step's noise in wide, to the tape: z d sigma / dv,
  // which is z sigma (log beta - log btilde) / 4.
  __device__ void keep_noise(int step) const {
    float* const keep = this->template tape<float>(p.layout.noise());
    const float4 c = __ldg(reinterpret_cast<const float4*>(all.coefficients) + step - 1);
    const float* const z = reinterpret_cast<const float*>(wide());
    const PackedTiles last{p.weights + p.sizes.out_piece(), p.biases + p.sizes.out_bias(), W};
    this->products(this->in_narrow(), last, p.sizes.out_columns(), [&](int row, int column, float first, float second) {
      if (column % kTile < 8) return;  // predictions: the other half of a tile is v of the same channels
#pragma unroll
      for (int e = 0; e < 2; ++e) {
        const int channel = column / kTile * 8 + column % 8 + e;
        if (row >= rows || channel >= channels()) continue;
        const float u = 0.5f * ((e == 0 ? first : second) + 1.0f);
        const float sigma = expf(0.5f * (u * c.z + (1.0f - u) * c.w));
        keep[row * channels() + channel] = z[row * channels() + channel] * (sigma * 0.25f * (c.z - c.w));
      }
    });
  }

  __device__ __forceinline__ void step_forward() const {
    const int layers = p.sizes.layers;
    show_state(step());
    embed();
    __syncthreads();  // the stream is whole, wide is free
#pragma unroll 1
    for (int layer = 0; layer < layers; ++layer) {
      const std::int64_t row = static_cast<std::int64_t>(step() - 1) * layers + layer;
      this->template forward<true>(layer, all.block_modulation + row * 9 * W);
    }
    const float* const last = all.final_modulation + static_cast<std::int64_t>(step() - 1) * 2 * W;
    this->template normalise<true>(last, last + W, layers, 0, this->kept(StreamLayout{p.sizes}.x_out(), W));
    if (step() == 1) return;
    PhiloxRequest noise = all.noise;
    noise.step = static_cast<std::uint32_t>(step());
    draw_rows(noise, noise.sample_ids[this->number()], this->token(), 0, rows, channels(),
              reinterpret_cast<float*>(wide()), channels(), ptx::thread_index(), Base::kThreads);
    keep_noise(step());
  }
};

// Block `index` of steps x samples.
template <class E, int W, int kBlockWarps, HeadSizes kHeads>
__device__ __forceinline__ void make_tape(const LoopGradientParameters& all, int index) {
  const int samples = static_cast<int>(all.gradient.samples);
  StepForward<E, W, kBlockWarps, kHeads> block(all, index % samples, index / samples);
  find_tokens(block);
  if (threadIdx.x == 0 && block.slot() == 0) all.gradient.row_counts[block.sample] = block.rows;
  block.step_forward();
}

}  // namespace rohydr

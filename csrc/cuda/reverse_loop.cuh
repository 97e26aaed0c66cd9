// SPDX-License-Identifier: MIT
// All K steps of Eq. 2 in one launch: a block takes one sample from x_K to x_0. x_t is kept in float32; weights come
// from the second cache in the order of use, and nothing else is read from global memory but the step's modulation.
#pragma once

#include "arena.h"
#include "denoiser.cuh"
#include "loop_parameters.cuh"
#include "loop_states.cuh"
#include "noise_rows.cuh"
#include "pack.cuh"

namespace rohydr {

template <class E, int W>
struct Loop {
  const LoopModality& m;
  const ArenaLayout& arena;
  const Network<E, W>& net;
  std::int64_t sample;

  // (rows, C) x_t.
  __device__ float* state() const { return net.template at<float>(net.shared.state()); }
  // (rows) the token that a row is.
  __device__ int* token() const { return net.template at<int>(net.shared.tokens()); }

  __device__ int state_stride() const { return arena.state_depth() + Operand<E>::kPad; }

  // x_t as an operand, to net.wide.
  __device__ void show_state() const {
    const int depth = arena.state_depth(), stride = state_stride();
    for (int i = static_cast<int>(threadIdx.x); i < net.shared.rows * depth / 2; i += static_cast<int>(blockDim.x)) {
      const int row = 2 * i / depth, c = 2 * i % depth;
      const auto at = [&](int channel) { return channel < m.channels ? state()[row * m.channels + channel] : 0.0f; };
      Operand<E>::store2(net.wide() + row * stride + c, at(c), at(c + 1));
    }
  }

  __device__ void embed(const PackedTiles& w) const {
    const Place<W> place;
    if (!net.has(place)) return;
    Fragment acc[Columns<W>::kTiles];
    product(acc, place, static_cast<const E*>(net.wide()), state_stride(), w, 0);
#pragma unroll
    for (int i = 0; i < Columns<W>::kTiles; ++i) {
      for_pairs(acc[i], [&](int tile, int half, int j, float first, float second) {
        const int row = place.row(tile, half);
        const float* const position = m.position + place.tile(i) * kTile + place.column(j);
        float2 at = make_float2(0.0f, 0.0f);
        if (row < net.rows) at = load2(position + static_cast<std::int64_t>(token()[row]) * W);
        *net.stream_at(place, tile, half, i, j) = make_float2(first + at.x, second + at.y);
      });
    }
  }

  // The step's normal numbers of every row (rows, C), to net.wide, which is free then.
  __device__ void draw(int step) const {
    PhiloxRequest noise = m.noise;
    noise.step = static_cast<std::uint32_t>(step);
    draw_rows(noise, m.noise.sample_ids[sample], token(), 0, net.rows, m.channels, reinterpret_cast<float*>(net.wide()),
              m.channels, ptx::thread_index(), static_cast<int>(blockDim.x));
  }

  // x_{t-1} = c_x x_t + c_p prediction + sigma z.
  __device__ void update(const PackedTiles& w, int step) const {
    const Place<W> place;
    if (!net.has(place)) return;
    const float4 c = __ldg(reinterpret_cast<const float4*>(m.coefficients) + step - 1);
    const float* const z = reinterpret_cast<const float*>(net.wide());
#pragma unroll 1
    for (int i = 0; place.tile(i) < arena.out_columns() / kTile; ++i) {
      Fragment acc[1];
      product(acc, place, static_cast<const E*>(net.narrow()), Network<E, W>::kRowStride, w, i);
      const int channel = 8 * place.tile(i) + place.column(0);
#pragma unroll
      for (int k = 0; k < 8; ++k) {
        const int tile = k / 4, half = k / 2 % 2, e = k % 2, row = place.row(tile, half);
        if (row >= net.rows || channel + e >= m.channels) continue;
        const int at = row * m.channels + channel + e;
        const float prediction = acc[0][tile][0][2 * half + e], v = acc[0][tile][1][2 * half + e];
        state()[at] = previous(c, state()[at], prediction, v, step > 1 ? z[at] : 0.0f, step);
      }
    }
  }
};

template <class E, int W>
__global__ void __launch_bounds__(kMaxPairs<E, W> * 32 * Columns<W>::kWarps, 1)
    reverse_loop_kernel(const __grid_constant__ LoopParameters p) {
  const auto [number, sample] = place_of(p, blockIdx.x);
  const LoopModality& m = p.modalities[number];
  const ArenaLayout arena(W, m.hidden, m.channels, m.layers, sizeof(E));
  const int threads = static_cast<int>(blockDim.x), thread = static_cast<int>(threadIdx.x);
  const SharedLayout<E, W> shared(threads / (32 * Columns<W>::kWarps) * kPairRows, arena.hidden, m.channels);
  Network<E, W> net{shared, p.heads, 0};
  const Loop<E, W> loop{m, arena, net, sample};
  int* const found = net.template at<int>(shared.stream());  // which is not in use yet

  if (thread < 32) {
    const int count =
        list_true(m.token_mask == nullptr ? nullptr : m.token_mask + sample * m.tokens, m.tokens, loop.token());
    if (thread == 0) *found = count;
  }
  __syncthreads();
  net.rows = *found;
  const std::int64_t first = sample * m.tokens * m.channels;
  for (int i = thread; i < shared.rows * m.channels; i += threads) {
    const int row = i / m.channels;
    loop.state()[i] = row < net.rows
                          ? m.x[first + static_cast<std::int64_t>(loop.token()[row]) * m.channels + i % m.channels]
                          : 0.0f;
  }
  for (int i = thread; i < m.tokens * m.channels; i += threads) m.out[first + i] = 0.0f;
  __syncthreads();
  const std::int64_t pieces = arena.condition_pieces(m.keys);
  PackedKeys condition{nullptr, arena.key_tiles(m.keys), W / kTile, m.key_counts[sample]};

#pragma unroll 1
  for (int step = m.steps; step >= 1; --step) {
    ArenaReader weights(m.weights, m.biases);
    if (step <= m.kept_steps) {
      keep_state(m.states, step, m.samples, sample, m.tokens, m.channels, loop.state(), m.channels, loop.token(),
                 net.rows);
    }
    loop.show_state();
    __syncthreads();
    loop.embed(weights.next<E>(W, arena.state_depth()));
    __syncthreads();
#pragma unroll 1
    for (int layer = 0; layer < m.layers; ++layer) {
      const std::int64_t row = static_cast<std::int64_t>(step - 1) * m.layers + layer;
      condition.data = m.condition + (sample * m.layers + layer) * pieces;
      net.block(weights, m.block_modulation + row * 9 * W, condition, arena.hidden);
    }
    const float* const last = m.final_modulation + static_cast<std::int64_t>(step - 1) * 2 * W;
    net.normalise(last, last + W);
    if (step > 1) loop.draw(step);
    __syncthreads();
    loop.update(weights.next<E>(arena.out_columns(), W), step);
    __syncthreads();
  }
  for (int i = thread; i < net.rows * m.channels; i += threads) {
    const std::int64_t element = static_cast<std::int64_t>(loop.token()[i / m.channels]) * m.channels + i % m.channels;
    m.out[first + element] = loop.state()[i];
  }
}

}  // namespace rohydr

// SPDX-License-Identifier: MIT
// All K steps of Eq. 2 in bfloat16 in one launch: a block takes one sample from x_K to x_0, a warp 16 of its rows. x_t
// is kept in float32 in shared memory; what the block reads from global memory is the weights' stream, and keys and
// values of the condition.
#pragma once

#include "loop_parameters.cuh"
#include "loop_states.cuh"
#include "noise_rows.cuh"
#include "pack.cuh"
#include "row_network.cuh"

namespace rohydr {

constexpr int kRowThreadsMin = kCopyThreads;
// Tiles of rows that a block may have: of more, a thread would have too few registers.
template <int W, int kSplit>
constexpr int kRowTilesMax = kSplit == 1 ? 8 : 4;

// A block's shared memory in bytes from its start: the weights' stream, what the network takes, x_t.
template <int W, int kSplit>
struct RowLoopShared {
  RowShared<W, kSplit> net;
  int channels;

  RH_HOST_DEVICE RowLoopShared(int rows, const StreamLayout<W>& layout)
      : net{rows, StreamMemory<W>::bytes(layout)}, channels(layout.channels) {}

  RH_HOST_DEVICE int state_bytes() const { return round_up_to(net.rows * channels * 4, 16); }
  RH_HOST_DEVICE int state() const { return net.end(); }
  RH_HOST_DEVICE int noise() const { return state() + state_bytes(); }
  RH_HOST_DEVICE int tokens() const { return noise() + state_bytes(); }
  RH_HOST_DEVICE int modality() const { return tokens() + round_up_to(net.rows * 4, 16); }
  RH_HOST_DEVICE int bytes() const { return modality() + static_cast<int>(sizeof(LoopModality)); }
};

template <int W, int KC, int kSplit>
struct RowLoop {
  using Net = RowNetwork<W, KC, kSplit>;
  using Place = RowPlace<kSplit>;

  const LoopModality& m;
  const StreamLayout<W>& layout;
  Net& net;
  std::int64_t sample;
  float* state;  // (rows, C) x_t
  float* noise;  // (rows, C) z of the step
  int* token;    // (rows) the token that a row is

  // x_t as an operand, tile k of 16 channels.
  __device__ void show_state(std::uint32_t (&a)[4], int k) const {
    const Place place;
    const auto pair = [&](int half, int before) {
      const float* const x = state + place.row(half) * m.channels;
      const int channel = kTile * k + before + place.column();
      return ptx::pack_bf16(channel < m.channels ? x[channel] : 0.0f,
                            channel + 1 < m.channels ? x[channel + 1] : 0.0f);
    };
    a[0] = pair(0, 0), a[1] = pair(1, 0), a[2] = pair(0, 8), a[3] = pair(1, 8);
  }

  __device__ void embed(typename Net::Stream& x, WeightStream<W>& stream) const {
    constexpr int kDepth = Slot<W>::kColumns / kTile;  // tiles of channels of a slot
    if (net.active()) {
      const Place place;
      const int column = Net::first_column() + place.column();
#pragma unroll
      for (int h = 0; h < 2; ++h) {
        const int row = place.row(h);
        const float* const position = m.position + (row < net.rows ? static_cast<std::int64_t>(token[row]) * W : 0);
#pragma unroll
        for (int j = 0; j < 2 * Net::kOwn; ++j) {
          const float2 bias = load2(m.biases + column + 8 * j), at = load2(position + column + 8 * j);
          x[j][2 * h] = bias.x + at.x;
          x[j][2 * h + 1] = bias.y + at.y;
        }
      }
    }
    const int tiles = (m.channels + kTile - 1) / kTile;
    const uint4* slot = nullptr;
#pragma unroll 1
    for (int k = 0; k < tiles; ++k) {
      if (k % (kSlotsOfGroup * kDepth) == 0) slot = stream.next();
      if (!net.active()) continue;
      std::uint32_t a[1][4];
      show_state(a[0], k);
      const int first = k % (kSlotsOfGroup * kDepth) * Net::kTiles + Place().part * Net::kOwn;
      multiply<Net::kOwn, Net::kTiles>(x, a, slot + first * 32);
    }
  }

  // The step's normal numbers of these rows.
  __device__ void draw(int step) const {
    const Place place;
    PhiloxRequest request = m.noise;
    request.step = static_cast<std::uint32_t>(step);
    const int begin = kTile * place.tile, end = begin + kTile < net.rows ? begin + kTile : net.rows;
    draw_rows(request, m.noise.sample_ids[sample], token, begin, end, m.channels, noise,
              32 * place.part + place.lane, 32 * kSplit);
  }

  // The output layer of what was put, and x_{t-1} = c_x x_t + c_p prediction + sigma z. Columns: of 8 channels the
  // prediction, then v, so that one thread has both.
  __device__ void update(WeightStream<W>& stream, const uint4* slot, int step) const {
    constexpr int kTiles = Slot<W>::kColumns / kTile, kOfGroup = kSlotsOfGroup * kTiles;
    const float4 c = __ldg(reinterpret_cast<const float4*>(m.coefficients) + step - 1);
    const int tiles = (m.channels + 7) / 8;
#pragma unroll 1
    for (int i = 0; i < tiles; ++i) {
      if (i > 0 && i % kOfGroup == 0) slot = stream.next();
      const Place place;
      if (!net.active() || i % kSplit != place.part) continue;
      typename Net::Whole a;
      net.take(a);
      float acc[2][4];
      start(acc, m.biases + layout.out_biases() + place.column() + kTile * i);
      multiply<1, kTiles>(acc, a, slot + i % kOfGroup / kTiles * Slot<W>::kPieces + i % kTiles * 32);
#pragma unroll
      for (int k = 0; k < 4; ++k) {
        const int row = place.row(k / 2), channel = 8 * i + place.column() + k % 2;
        if (row >= net.rows || channel >= m.channels) continue;
        const int at = row * m.channels + channel;
        state[at] = previous(c, state[at], acc[0][k], acc[1][k], step > 1 ? noise[at] : 0.0f, step);
      }
    }
  }
};

template <int W, int KC, int kSplit>
__global__ void __launch_bounds__(kRowTilesMax<W, kSplit> * kSplit * 32, 1)
    row_loop_kernel(const __grid_constant__ LoopParameters p) {
  ROHYDR_SHARED(memory);
  const auto [number, sample] = place_of(p, blockIdx.x);
  const LoopModality& given = p.modalities[number];
  const StreamLayout<W> layout(given.hidden, given.channels, given.layers);
  const int threads = static_cast<int>(blockDim.x), thread = static_cast<int>(threadIdx.x);
  const RowLoopShared<W, kSplit> shared(round_up_to(given.tokens, kTile), layout);
  // Read from shared memory, what was given need not stay in registers: barriers end the life of what was read.
  LoopModality& m = *reinterpret_cast<LoopModality*>(memory + shared.modality());
  if (thread == 0) m = given;
  __syncthreads();
  float* const state = reinterpret_cast<float*>(memory + shared.state());
  int* const token = reinterpret_cast<int*>(memory + shared.tokens());
  int* const found = reinterpret_cast<int*>(memory + shared.noise());  // which is not in use yet

  WeightStream<W> stream(m);
  if (thread < 32) {
    const int count = list_true(m.token_mask == nullptr ? nullptr : m.token_mask + sample * m.tokens, m.tokens, token);
    if (thread == 0) *found = count;
  }
  __syncthreads();
  const int rows = *found;
  RowNetwork<W, KC, kSplit> net{shared.net, rows, W / p.heads};
  const RowLoop<W, KC, kSplit> loop{
      m, layout, net, sample, state, reinterpret_cast<float*>(memory + shared.noise()), token};
  const std::int64_t first = sample * m.tokens * m.channels;
  for (int i = thread; i < shared.net.rows * m.channels; i += threads) {
    const int row = i / m.channels;
    state[i] = row < rows ? m.x[first + static_cast<std::int64_t>(token[row]) * m.channels + i % m.channels] : 0.0f;
  }
  for (int i = thread; i < m.tokens * m.channels; i += threads) m.out[first + i] = 0.0f;
  __syncthreads();
  PackedKeys condition{nullptr, (m.keys + kTile - 1) / kTile, W / kTile, m.key_counts[sample]};
  const std::int64_t pieces = static_cast<std::int64_t>(2 * condition.key_tiles) * condition.channel_tiles * 32;

#pragma unroll 1
  for (int step = m.steps; step >= 1; --step) {
    typename RowNetwork<W, KC, kSplit>::Stream x;
    loop.embed(x, stream);
    // After a barrier: x_t is complete, and nobody reads the numbers of the step before.
    if (step <= m.kept_steps) {
      keep_state(m.states, step, m.samples, sample, m.tokens, m.channels, state, token, rows);
    }
    if (step > 1 && net.active()) loop.draw(step);
#pragma unroll 1
    for (int layer = 0; layer < m.layers; ++layer) {
      condition.data = m.condition + (sample * m.layers + layer) * pieces;
      net.block(x, stream, condition, layout.hidden, layout.block_biases());
    }
    const uint4* const slot = stream.next();
    const float* const last = stream.final_constants(step) + net.first_column() + RowPlace<kSplit>().column();
    typename RowNetwork<W, KC, kSplit>::Mine mine;
    net.normalise(mine, x, last, last + W);
    net.put(mine);
    __syncthreads();
    loop.update(stream, slot, step);
  }
  __syncthreads();
  for (int i = thread; i < rows * m.channels; i += threads) {
    const std::int64_t element = static_cast<std::int64_t>(token[i / m.channels]) * m.channels + i % m.channels;
    m.out[first + element] = state[i];
  }
}

}  // namespace rohydr

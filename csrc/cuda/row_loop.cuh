// SPDX-License-Identifier: MIT
// All K steps of Eq. 2 in bfloat16 in one launch: a block takes one sample from x_K to x_0, one warp or two take 16 of
// its rows. x_t is kept in float32 in shared memory; what the block reads from global memory is the weights' stream, and
// keys and values of the condition.
#pragma once

#include "loop_parameters.cuh"
#include "loop_states.cuh"
#include "noise_rows.cuh"
#include "pack.cuh"
#include "row_network.cuh"

namespace rohydr {

// Tiles of rows that a block may have: of more, a thread would have too few registers.
template <int W, int kSplit>
constexpr int kRowTilesMax = kSplit == 1 ? 8 : 4;

// A block's shared memory in bytes from its start: the weights' stream, what the network takes, x_t.
template <int W, int kSplit>
struct RowLoopShared {
  RowShared<W, kSplit> net;

  RH_HOST_DEVICE RowLoopShared(int rows, const StreamLayout<W>& layout)
      : net{rows, layout.channels, StreamMemory<W>::bytes(layout)} {}

  RH_HOST_DEVICE int state() const { return net.end(); }
  RH_HOST_DEVICE int tokens() const { return state() + net.rows * net.state_stride() * 4; }
  RH_HOST_DEVICE int bytes() const { return tokens() + round_up_to(net.rows * 4, 16); }
};

// Pieces of a sample's condition, of a layer.
template <int W>
__device__ std::int64_t condition_pieces(const LoopModality& m) {
  return static_cast<std::int64_t>(2 * ((m.keys + kTile - 1) / kTile)) * (W / kTile) * 32;
}

// The same with all that a sample has its own of from its beginning on.
template <int W>
__device__ LoopModality of_sample(LoopModality m, std::int64_t sample) {
  const std::int64_t numbers = static_cast<std::int64_t>(m.tokens) * m.channels;
  m.x += sample * numbers;
  m.out += sample * numbers;
  if (m.states != nullptr) m.states += sample * numbers;
  if (m.token_mask != nullptr) m.token_mask += sample * m.tokens;
  m.condition += sample * m.layers * condition_pieces<W>(m);
  m.key_counts += sample;
  m.noise.sample_ids += sample;
  return m;
}

template <int W, int KC, int kSplit>
struct RowLoop {
  using Net = RowNetwork<W, KC, kSplit>;

  const LoopModality& m;  // as of_sample() gives it
  const Net& net;
  RowLoopShared<W, kSplit> shared;

  __device__ float* state() const { return Net::template at<float>(shared.state()); }      // (rows, stride()) x_t
  __device__ float* noise() const { return Net::template at<float>(shared.net.noise()); }  // the step's, likewise
  __device__ int* token() const { return Net::template at<int>(shared.tokens()); }  // (rows) the token that a row is
  __device__ int stride() const { return shared.net.state_stride(); }

  // x_t as an operand, tile k of 16 channels.
  __device__ void show_state(std::uint32_t (&a)[4], int k) const {
    const auto pair = [&](int half, int before) {
      const float* const x = state() + net.place.row(half) * stride();
      const int channel = kTile * k + before + net.place.column();
      return ptx::pack_bf16(channel < m.channels ? x[channel] : 0.0f, channel + 1 < m.channels ? x[channel + 1] : 0.0f);
    };
    a[0] = pair(0, 0), a[1] = pair(1, 0), a[2] = pair(0, 8), a[3] = pair(1, 8);
  }

  // x = x_t W' + b + position.
  __device__ void embed(typename Net::Stream& x, WeightStream<W, kSplit>& stream) const {
    constexpr int kDepth = Slot<W>::kColumns / kTile;  // tiles of channels of a slot
    const int first = net.place.part * Net::kOwn;      // this warp's columns
    float acc[2 * Net::kOwn][4];
    if (net.active()) {
      const int column = kTile * first + net.place.column();
#pragma unroll
      for (int h = 0; h < 2; ++h) {
        const int row = net.place.row(h);
        const float* const position = m.position + (row < net.rows ? static_cast<std::int64_t>(token()[row]) * W : 0);
#pragma unroll
        for (int j = 0; j < 2 * Net::kOwn; ++j) {
          const float2 bias = load2(m.biases + column + 8 * j), at = load2(position + column + 8 * j);
          acc[j][2 * h] = bias.x + at.x;
          acc[j][2 * h + 1] = bias.y + at.y;
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
      multiply<Net::kOwn, Net::kTiles>(acc, a, slot + (k % (kSlotsOfGroup * kDepth) * Net::kTiles + first) * 32);
    }
    if constexpr (kSplit == 1) {
#pragma unroll
      for (int i = 0; i < 8 * Net::kTiles; ++i) x[i / 4][i % 4] = acc[i / 4][i % 4];
    } else {
      if (net.active()) net.show(net.part_of(0) + 64 * first, acc);
      __syncthreads();
      if (net.active()) net.take(x);
    }
  }

  // x_K of the tokens that exist, and zeros for those that do not.
  __device__ void begin(int thread, int threads) const {
    for (int i = thread; i < shared.net.rows * m.channels; i += threads) {
      const int row = i / m.channels, channel = i % m.channels;
      const float* const x = m.x + channel;
      state()[row * stride() + channel] =
          row < net.rows ? x[static_cast<std::int64_t>(token()[row]) * m.channels] : 0.0f;
    }
    for (int i = thread; i < m.tokens * m.channels; i += threads) m.out[i] = 0.0f;
  }
  __device__ void end(int thread, int threads) const {
    for (int i = thread; i < net.rows * m.channels; i += threads) {
      const int row = i / m.channels, channel = i % m.channels;
      m.out[static_cast<std::int64_t>(token()[row]) * m.channels + channel] = state()[row * stride() + channel];
    }
  }

  // The step's normal numbers of these rows.
  __device__ void draw(int step) const {
    PhiloxRequest request = m.noise;
    request.step = static_cast<std::uint32_t>(step);
    const int begin = kTile * net.place.tile, end = begin + kTile < net.rows ? begin + kTile : net.rows;
    draw_rows(request, *m.noise.sample_ids, token(), begin, end, m.channels, noise(), stride(),
              32 * net.place.part + net.place.lane(), 32 * kSplit);
  }

  // The output layer of what is shown, and x_{t-1} = c_x x_t + c_p prediction + sigma z. Columns: of 8 channels the
  // prediction, then v, so that one thread has both. The warps of a tile of rows take turns.
  __device__ void update(WeightStream<W, kSplit>& stream, const uint4* slot, int step) const {
    constexpr int kTiles = Slot<W>::kColumns / kTile, kOfGroup = kSlotsOfGroup * kTiles;
    const float4 c = __ldg(reinterpret_cast<const float4*>(m.coefficients) + step - 1);
    const int tiles = (m.channels + 7) / 8;
#pragma unroll 1
    for (int i = 0; i < tiles; ++i) {
      if (i > 0 && i % kOfGroup == 0) slot = stream.next();
      if (!net.active() || i % kSplit != net.place.part) continue;
      typename Net::Whole a;
      net.take_operand(a);
      float acc[2][4];
      start(acc, m.biases + stream.layout().out_biases() + net.place.column() + kTile * i);
      multiply<1, kTiles>(acc, a, slot + i % kOfGroup / kTiles * Slot<W>::kPieces + i % kTiles * 32);
#pragma unroll
      for (int k = 0; k < 4; ++k) {
        const int row = net.place.row(k / 2), channel = 8 * i + net.place.column() + k % 2;
        if (row >= net.rows || channel >= m.channels) continue;
        const int at = row * stride() + channel;
        float& x = state()[at];
        x = previous(c, x, acc[0][k], acc[1][k], step > 1 ? noise()[at] : 0.0f, step);
      }
    }
  }
};

template <int W, int KC, int kSplit>
__global__ void __launch_bounds__(kRowTilesMax<W, kSplit> * kSplit * 32, 1)
    row_loop_kernel(const __grid_constant__ LoopParameters p) {
  ROHYDR_SHARED(memory);
  using Net = RowNetwork<W, KC, kSplit>;
  const auto [number, sample] = place_of(p, blockIdx.x);
  const LoopModality& given = p.modalities[number];
  const int threads = static_cast<int>(blockDim.x), thread = static_cast<int>(threadIdx.x);
  const RowLoopShared<W, kSplit> shared(round_up_to(given.tokens, kTile),
                                        StreamLayout<W>(given.hidden, given.channels, given.layers));
  // Read from shared memory, what was given need not stay in registers: barriers end the life of what was read.
  LoopModality& m = *reinterpret_cast<LoopModality*>(memory);
  RowCounts& counts = *reinterpret_cast<RowCounts*>(memory + StreamMemory<W>::kCounts);
  int* const token = reinterpret_cast<int*>(memory + shared.tokens());
  if (thread == 0) m = of_sample<W>(given, sample);
  __syncthreads();
  WeightStream<W, kSplit> stream;
  if (thread < 32) {
    const int count = list_true(m.token_mask, m.tokens, token);
    if (thread == 0) counts = {count, *m.key_counts, W / p.heads};
  }
  __syncthreads();
  const Net net{shared.net, RowPlace<W, kSplit>(), counts.rows};
  const RowLoop<W, KC, kSplit> loop{m, net, shared};
  loop.begin(thread, threads);
  __syncthreads();
#pragma unroll 1
  for (int step = m.steps; step >= 1; --step) {
    typename Net::Stream x;
    loop.embed(x, stream);
    // After a barrier: x_t is complete.
    if (step <= m.kept_steps) {
      keep_state(m.states, step, m.samples, 0, m.tokens, m.channels, loop.state(), loop.stride(), loop.token(),
                 net.rows);
    }
#pragma unroll 1
    for (int layer = 0; layer < m.layers; ++layer) {
      const int key_tiles = (m.keys + kTile - 1) / kTile;
      const PackedKeys condition{m.condition + layer * condition_pieces<W>(m), key_tiles, W / kTile, counts.keys};
      net.block(x, stream, condition, step, layer);
    }
    const uint4* const slot = stream.next_with_constants(step - 1, 0);
    const float* const last = stream.final_constants(step) + net.place.column();
    net.show_normalised(x, last, last + W);
    if (step > 1 && net.active()) loop.draw(step);  // where keys and parts were
    __syncthreads();
    loop.update(stream, slot, step);
  }
  stream.finish();
  __syncthreads();
  loop.end(thread, threads);
}

}  // namespace rohydr

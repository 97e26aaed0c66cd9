// SPDX-License-Identifier: MIT
// The launches of one width in bfloat16: weights and condition packed, then the loop. Included by the files that
// compile them, each for one width.
#pragma once

#include <algorithm>
#include <cmath>

#include "loop_prepare.cuh"
#include "pack_stream.cuh"
#include "reverse_loop_launch.cuh"
#include "row_loop.cuh"

namespace rohydr {
namespace {

constexpr int kStreamPackThreads = 256, kStreamPackBlocks = 8;

template <int W>
StreamLayout<W> stream_of(const CudaLoopModality& m) {
  return {m.hidden, m.channels, m.layers};
}

template <int W>
ScratchLayout row_scratch(const CudaLoopModality& m) {
  const StreamLayout<W> layout = stream_of<W>(m);
  constexpr int kTilePieces = W / kTile * 32;  // of keys
  ScratchLayout scratch{layout.pieces(), layout.biases(),
                        ArenaLayout(W, 16, 16, 0, 2).condition_pieces(m.keys) * m.layers, m.samples};
  scratch.bytes += kReadAhead * 16 * kTilePieces;
  return scratch;
}

template <int W>
int pack_stream(const CudaLoopModality& m, int heads, uint4* pieces, float* biases, void* stream) {
  using S = Slot<W>;
  const StreamLayout<W> layout = stream_of<W>(m);
  const float scale = static_cast<float>(1.4426950408889634 / std::sqrt(static_cast<double>(W / heads)));
  StreamJobs jobs{};
  jobs.pieces = pieces;
  jobs.biases = biases;
  const auto flush = [&] {
    if (jobs.count == 0) return 0;
    const dim3 grid(kStreamPackBlocks, static_cast<unsigned>(jobs.count));
    const int error = ROHYDR_LAUNCH(pack_stream_kernel<W>, grid, dim3(kStreamPackThreads), 0, stream, jobs);
    jobs.count = 0;
    return error;
  };
  int error = 0;
  const auto add = [&](const StreamJob& job) {
    if (error != 0) return;
    jobs.jobs[jobs.count++] = job;
    if (jobs.count == StreamJobs::kMax) error = flush();
  };
  const auto slot = [](std::int64_t number) { return number * S::kPieces; };
  const void* const* weight = m.weights;
  add({weight[0], weight[1], W, m.channels, 0, 0, true, kSlotsOfGroup * layout.in_groups(), 1, 0, W, 1.0f, 1.0f, 0});
  std::int64_t at = kSlotsOfGroup * layout.in_groups();
  int bias = W;
  for (int layer = 0; layer < m.layers; ++layer) {
    weight = m.weights + 2 + 12 * layer;
    const auto matrix = [&](int source, int first_row, float by) {
      add({weight[source], weight[source + 1], W, W, first_row, 0, false, S::kOfMatrix, 1, bias, W, by, by, slot(at)});
      at += S::kOfMatrix;
      bias += W;
    };
    matrix(0, W, 1.0f);
    matrix(0, 2 * W, 1.0f);
    matrix(0, 0, scale);
    matrix(2, 0, 1.0f);
    matrix(4, 0, scale);
    matrix(6, 0, 1.0f);
    const int slots = layout.hidden / S::kColumns;  // of fc1 and of fc2, in turns
    add({weight[8], weight[9], m.hidden, W, 0, 0, false, slots, 2, bias + W, layout.hidden, 1.0f, 1.0f, slot(at)});
    add({weight[10], weight[11], W, m.hidden, 0, 0, true, slots, 2, bias, W, 0.5f, 1.0f, slot(at + 1)});
    at += 2 * slots;
    bias += W + layout.hidden;
  }
  weight = m.weights + 2 + 12 * m.layers;
  const int slots = kSlotsOfGroup * layout.out_groups();
  add({weight[0], weight[1], 2 * m.channels, W, 0, m.channels, false, slots, 1, bias, layout.biases() - bias, 1.0f,
       1.0f, slot(at)});
  return error != 0 ? error : flush();
}

// Packs what a modality's loop reads into its scratch memory.
template <int W>
int prepare_rows(const CudaLoopModality& m, const CudaLoopRequest& r, LoopModality& loop) {
  const ScratchLayout scratch = row_scratch<W>(m);
  loop = loop_modality(m, scratch);
  if (m.samples == 0) return 0;
  const int error =
      pack_stream<W>(m, r.heads, const_cast<uint4*>(loop.weights), const_cast<float*>(loop.biases), r.stream);
  return error != 0 ? error : pack_condition<Bf16>(m, r, loop);
}

int tokens_of(const CudaLoopRequest& r) {
  int tokens = 1;
  for (int i = 0; i < r.count; ++i) {
    if (r.modalities[i].samples > 0) tokens = std::max(tokens, r.modalities[i].tokens);
  }
  return tokens;
}

// Of the device; 0 where there is none.
int attribute_of(int device, cudaDeviceAttr attribute) {
  int value = 0;
  return cudaDeviceGetAttribute(&value, attribute, device) == cudaSuccess ? value : 0;
}

template <int W, int kSplit>
int row_shared_bytes(const CudaLoopRequest& r) {
  int most = 0;
  for (int i = 0; i < r.count; ++i) {
    const CudaLoopModality& m = r.modalities[i];
    if (m.samples == 0) continue;
    most = std::max(most, RowLoopShared<W, kSplit>(round_up_to(m.tokens, kTile), stream_of<W>(m)).bytes());
  }
  return most;
}

// Warps of a tile of rows. Two halve the time of a sample; where there are more samples than multiprocessors, two
// blocks on each, with one warp a tile, are faster, and those fit on devices with less shared memory. No bit depends on
// it. 0: no kernel here takes it.
template <int W>
int split_of(const CudaLoopRequest& r) {
  static_assert(kRowTokens == kTile * kRowTilesMax<W, 2>, "as the host knows it");
  const bool many = tokens_of(r) > kRowTokens, halves = W / r.heads <= W / 2;
  if (W == 128) return many ? 0 : 2;
  if (many || !halves) return 1;
  std::int64_t samples = 0;
  for (int i = 0; i < r.count; ++i) samples += r.modalities[i].samples;
  if (W == 64 && samples > attribute_of(r.device, cudaDevAttrMultiProcessorCount)) return 1;
  return row_shared_bytes<W, 2>(r) <= attribute_of(r.device, cudaDevAttrMaxSharedMemoryPerBlockOptin) ? 2 : 1;
}

// use.run<kSplit>(), and what an instance of W can't be is not compiled.
template <int W, class Use>
int for_split(const CudaLoopRequest& r, const Use& use) {
  if (split_of<W>(r) == 2) return use.template run<2>();
  if constexpr (W == 128) {
    return use.many();
  } else {
    return use.template run<1>();
  }
}

template <int W, int kSplit>
int launch_split(const CudaLoopRequest& r, const LoopParameters& parameters, std::int64_t samples, int tokens) {
  const dim3 grid(static_cast<unsigned>(samples));
  const int threads = (tokens + kTile - 1) / kTile * kSplit * 32;
  const dim3 block(static_cast<unsigned>(std::max(threads, WeightStream<W, kSplit>::kThreads)));
  const std::size_t bytes = row_shared_bytes<W, kSplit>(r);
  const int size = W / r.heads;
  if constexpr (W / kSplit >= 64) {
    if (size == 64) return ROHYDR_LAUNCH((row_loop_kernel<W, 4, kSplit>), grid, block, bytes, r.stream, parameters);
  }
  if constexpr (W / kSplit >= 32) {
    if (size == 32) return ROHYDR_LAUNCH((row_loop_kernel<W, 2, kSplit>), grid, block, bytes, r.stream, parameters);
  }
  if constexpr (W / kSplit >= 16) {
    if (size == 16) return ROHYDR_LAUNCH((row_loop_kernel<W, 1, kSplit>), grid, block, bytes, r.stream, parameters);
  }
  return ROHYDR_LAUNCH((row_loop_kernel<W, 0, kSplit>), grid, block, bytes, r.stream, parameters);
}

// More rows than these kernels take: the tiles' kernel.
template <int W>
struct RowBytes {
  const CudaLoopRequest& r;
  template <int kSplit>
  int run() const {
    return row_shared_bytes<W, kSplit>(r);
  }
  int many() const { return tile_shared_bytes<Bf16, W>(r); }
};

template <int W>
struct RowLaunch {
  const CudaLoopRequest& r;
  template <int kSplit>
  int run() const {
    LoopParameters parameters{};
    parameters.count = r.count;
    parameters.heads = r.heads;
    std::int64_t samples = 0;
    for (int i = 0; i < r.count; ++i) {
      const int error = prepare_rows<W>(r.modalities[i], r, parameters.modalities[i]);
      if (error != 0) return error;
      samples += r.modalities[i].samples;
    }
    return samples == 0 ? 0 : launch_split<W, kSplit>(r, parameters, samples, tokens_of(r));
  }
  int many() const { return launch_tiles<Bf16, W>(r); }
};

// Enough for either kernel.
template <int W>
ScratchLayout row_or_tile_scratch(const CudaLoopModality& m) {
  ScratchLayout scratch = row_scratch<W>(m);
  if (W == 128) scratch.bytes = std::max(scratch.bytes, tile_scratch<Bf16, W>(m).bytes);
  return scratch;
}

}  // namespace
}  // namespace rohydr

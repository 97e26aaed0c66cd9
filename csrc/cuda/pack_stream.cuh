// SPDX-License-Identifier: MIT
// Packs the matrices of a denoiser into the slots of a WeightStream, and its biases in their order.
#pragma once

#include "pack.cuh"
#include "weight_stream.cuh"

namespace rohydr {

// A matrix, or some of its rows.
struct StreamJob {
  const void* weight;  // (rows of the source, depth), bfloat16
  const void* bias;
  int columns, depth, first_row;  // columns of the product are rows first_row, first_row + 1, ... of the source
  int channels;                   // of the output layer, whose columns are shuffled, see source_column; else 0
  bool along;                     // the form of the slots
  int slots, slot_stride;         // how many, and how far from one to the next
  int bias_place, biases;         // how many with the padding
  float weight_scale, bias_scale;
  std::int64_t piece;  // of the first slot
};

struct StreamJobs {
  static constexpr int kMax = 48;
  StreamJob jobs[kMax];
  int count;
  uint4* pieces;
  float* biases;
};
static_assert(sizeof(StreamJobs) <= 4096, "all that a kernel may be given");

// The row of the source that a column is; -1 where there is none. A tile of the output layer has the prediction of 8
// channels, then v of the same, so that one thread has both.
__device__ inline int source_column(const StreamJob& job, int column) {
  if (job.channels == 0) return column < job.columns ? job.first_row + column : -1;
  const int channel = column / 16 * 8 + column % 8;
  return channel < job.channels ? column % 16 / 8 * job.channels + channel : -1;
}

// Block (x, y): pieces x, x + gridDim.x, ... of job y, by groups of blockDim.x.
template <int W>
__global__ void pack_stream_kernel(const __grid_constant__ StreamJobs all) {
  using S = Slot<W>;
  const StreamJob& job = all.jobs[blockIdx.y];
  const Bf16* const weight = static_cast<const Bf16*>(job.weight);
  const Bf16* const bias = static_cast<const Bf16*>(job.bias);
  const int first = static_cast<int>(blockIdx.x * blockDim.x + threadIdx.x);
  const int stride = static_cast<int>(gridDim.x * blockDim.x);
  const int column_tiles = (job.along ? W : S::kColumns) / kTile;
  for (int i = first; i < job.slots * S::kPieces; i += stride) {
    const int slot = i / S::kPieces, tile = i % S::kPieces / 32;
    const int column = (job.along ? 0 : slot * S::kColumns) + tile % column_tiles * kTile;
    const int depth = (job.along ? slot * S::kColumns : 0) + tile / column_tiles * kTile;
    const auto value = [&](int c, int d) {
      const int source = source_column(job, column + c);
      if (source < 0 || depth + d >= job.depth) return 0.0f;
      return as_float(weight[static_cast<std::int64_t>(source) * job.depth + depth + d]) * job.weight_scale;
    };
    const std::int64_t place = static_cast<std::int64_t>(slot) * job.slot_stride * S::kPieces + i % S::kPieces;
    all.pieces[job.piece + place] = piece_of(Bf16{}, i % 32, value);
  }
  for (int i = first; i < job.biases; i += stride) {
    const int source = source_column(job, i);
    all.biases[job.bias_place + i] = source < 0 ? 0.0f : as_float(bias[source]) * job.bias_scale;
  }
}

}  // namespace rohydr

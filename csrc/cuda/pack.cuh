// SPDX-License-Identifier: MIT
// What the loop reads in the order in which its products read it: weights once a call, and keys and values of the
// condition, of which only the existing ones are taken.
#pragma once

#include "arena.h"
#include "tiles.cuh"

namespace rohydr {

struct PackJob {
  const void* weight;  // (columns, depth)
  const void* bias;    // (columns), or null: zeros
  int columns, depth;
  int padded_columns, padded_depth;
  int scaled_columns;  // the first so many are multiplied by PackJobs::scale
  int channels;        // of the last layer, whose columns are shuffled, see ArenaLayout; else 0
  std::int64_t piece;  // where its pieces start
  int bias_place;
  bool transposed = false;  // packed is W': its columns are the depth of `weight`, its depth those columns
};

struct PackJobs {
  static constexpr int kMax = 56;
  PackJob jobs[kMax];
  int count;
  float scale;
  uint4* pieces;
  float* biases;  // or null
};

__device__ inline float as_float(float value) { return value; }
__device__ inline float as_float(Bf16 value) { return __bfloat162float(value); }

// The row of the source that a packed column is; -1 where there is none.
__device__ inline int source_of(const PackJob& job, int column) {
  if (job.channels == 0) return column < job.columns ? column : -1;
  const int channel = column / 16 * 8 + column % 8;
  return channel < job.channels ? column % 16 / 8 * job.channels + channel : -1;
}

template <class E>
__device__ float weight_at(const PackJob& job, float scale, int column, int depth) {
  if (job.transposed) {  // of a matrix (depth, columns)
    const int row = source_of(job, depth);
    if (row < 0 || column >= job.depth) return 0.0f;
    return as_float(static_cast<const E*>(job.weight)[static_cast<std::int64_t>(row) * job.depth + column]);
  }
  const int source = source_of(job, column);
  if (source < 0 || depth >= job.depth) return 0.0f;
  const std::int64_t place = static_cast<std::int64_t>(source) * job.depth + depth;
  const float value = as_float(static_cast<const E*>(job.weight)[place]);
  return column < job.scaled_columns ? value * scale : value;
}

// Piece `place` of a tile of 16 columns: value(column in the tile, depth).
template <class Value>
__device__ uint4 piece_of(Bf16, int place, const Value& value) {
  const int lane = place % 32, depth = place / 32 * kTile + lane % 4 * 2;
  const auto pair = [&](int column, int k) { return ptx::pack_bf16(value(column, k), value(column, k + 1)); };
  const int column = lane / 4;
  return make_uint4(pair(column, depth), pair(column, depth + 8), pair(column + 8, depth), pair(column + 8, depth + 8));
}
template <class Value>
__device__ uint4 piece_of(float, int place, const Value& value) {
  const int depth = place / 4, column = place % 4 * 2;
  return make_uint4(__float_as_uint(value(column, depth)), __float_as_uint(value(column + 1, depth)),
                    __float_as_uint(value(column + 8, depth)), __float_as_uint(value(column + 9, depth)));
}

// Block (x, y): pieces x, x + gridDim.x, ... of job y, by groups of blockDim.x.
template <class E>
__global__ void pack_weights_kernel(const __grid_constant__ PackJobs all) {
  const PackJob& job = all.jobs[blockIdx.y];
  const int tile_size = job.padded_depth * Operand<E>::kPiecesPerDepth;
  const int pieces = job.padded_columns / kTile * tile_size;
  const int first = static_cast<int>(blockIdx.x * blockDim.x + threadIdx.x);
  const int stride = static_cast<int>(gridDim.x * blockDim.x);
  for (int i = first; i < pieces; i += stride) {
    const int tile = i / tile_size;
    all.pieces[job.piece + i] = piece_of(E{}, i - tile * tile_size, [&](int column, int depth) {
      return weight_at<E>(job, all.scale, tile * kTile + column, depth);
    });
  }
  for (int i = first; all.biases != nullptr && i < job.padded_columns; i += stride) {
    const int source = job.bias == nullptr ? -1 : source_of(job, i);
    const float value = source < 0 ? 0.0f : as_float(static_cast<const E*>(job.bias)[source]);
    all.biases[job.bias_place + i] = i < job.scaled_columns ? value * all.scale : value;
  }
}

// The numbers of the true entries of mask (count), or 0, 1, ... without one; by the first warp. Returns how many,
// to every thread of that warp.
__device__ inline int list_true(const std::uint8_t* mask, int count, int* list) {
  const int lane = static_cast<int>(threadIdx.x) % 32;
  int found = 0;
  for (int base = 0; base < count; base += 32) {
    const bool here = base + lane < count && (mask == nullptr || mask[base + lane] != 0);
    const unsigned all = __ballot_sync(0xffffffffu, here);
    if (here) list[found + __popc(all & ((1u << lane) - 1))] = base + lane;
    found += __popc(all);
  }
  return found;
}

struct ConditionJob {
  const void* cond_kv;           // (L, 2, B, S, W)
  const std::uint8_t* key_mask;  // (B, S), or null
  uint4* out;                    // (B, L, pieces)
  int* counts;                   // (B)
  std::int64_t samples;
  int keys, width, layers;
};

// Block (b, layer), with room for `keys` numbers and one more.
template <class E>
__global__ void pack_condition_kernel(const __grid_constant__ ConditionJob job) {
  ROHYDR_SHARED(memory);
  int* const list = reinterpret_cast<int*>(memory);
  const std::int64_t b = blockIdx.x;
  const int layer = static_cast<int>(blockIdx.y);
  if (threadIdx.x < 32) {
    const std::uint8_t* const mask = job.key_mask == nullptr ? nullptr : job.key_mask + b * job.keys;
    const int found = list_true(mask, job.keys, list);
    if (threadIdx.x == 0) {
      list[job.keys] = found;
      if (layer == 0) job.counts[b] = found;
    }
  }
  if (layer >= job.layers) return;  // of a network without blocks
  __syncthreads();
  const int count = list[job.keys];
  const ArenaLayout arena(job.width, 16, 16, job.layers, sizeof(E));
  const std::int64_t pieces = arena.condition_pieces(job.keys), half = pieces / 2;
  uint4* const out = job.out + (b * job.layers + layer) * pieces;
  for (int part = 0; part < 2; ++part) {
    const E* const from = static_cast<const E*>(job.cond_kv) +
                          ((static_cast<std::int64_t>(layer) * 2 + part) * job.samples + b) * job.keys * job.width;
    const auto at = [&](int key, int channel) {
      return key < count ? as_float(from[static_cast<std::int64_t>(list[key]) * job.width + channel]) : 0.0f;
    };
    for (int i = static_cast<int>(threadIdx.x); i < half; i += static_cast<int>(blockDim.x)) {
      uint4& to = out[part * half + i];
      if (sizeof(E) == 4) {
        const int key = i / (job.width / 4), channel = i % (job.width / 4) * 4;
        to = make_uint4(__float_as_uint(at(key, channel)), __float_as_uint(at(key, channel + 1)),
                        __float_as_uint(at(key, channel + 2)), __float_as_uint(at(key, channel + 3)));
        continue;
      }
      const int channel_tiles = job.width / kTile, tile = i / 32, key = tile / channel_tiles * kTile;
      const int channel = tile % channel_tiles * kTile;
      // Keys are the columns of B of Q K', and the depth of B of P V.
      to = piece_of(Bf16{}, i % 32, [&](int column, int depth) {
        return part == 0 ? at(key + column, channel + depth) : at(key + depth, channel + column);
      });
    }
  }
}

}  // namespace rohydr

// SPDX-License-Identifier: MIT
// dW = Y' X and db = the column sums of Y over all rows that exist, of all matrices at once: a block takes 64 x 64 of a
// matrix and a part of the rows, 32 at a time; then the parts are added in order. So are samples' modulation gradients.
#pragma once

#include "gradient_layout.h"
#include "pack.cuh"

namespace rohydr {

struct WeightJob {
  std::int64_t x, y;               // places of StreamLayout
  std::int64_t to_weight, to_bias;  // places in the row of all gradients
  int columns, depth;              // of the weight
  int padded_columns, padded_depth;
  int channels;  // of the last layer, see PackJob
};

struct WeightJobs {
  static constexpr int kMax = 48;
  WeightJob jobs[kMax];
  int count;
  const void* streams;
  const int* row_counts;  // (samples)
  std::int64_t samples;
  int steps, rows, parts;
  std::int64_t weight_count;
  float* to;  // (parts, weight_count)
};

constexpr int kGradientTile = 64;
constexpr int kWeightThreads = 128;

template <class E>
struct WeightTile {
  static constexpr int kStride = kGradientTile + Operand<E>::kPad;
  static constexpr int kMatrix = kRowsOfPair * kStride;  // elements of 32 rows
  static constexpr int kBytes = 4 * kMatrix * static_cast<int>(sizeof(E));  // Y and X, twice
};

// acc[m][n][j][i] += Y' X of 32 rows; m, n: tiles of 16 of the warp's 32 x 32.
__device__ inline void multiply_rows(float (&acc)[2][2][2][4], const Bf16* y, const Bf16* x, int lane) {
  constexpr int kStride = WeightTile<Bf16>::kStride;
#pragma unroll
  for (int k = 0; k < kRowsOfPair; k += kTile) {
    std::uint32_t left[2][4], right[2][4];
#pragma unroll
    for (int m = 0; m < 2; ++m) {
      const int row = k + (lane >> 4) * 8 + (lane & 7);
      ptx::ldmatrix_x4_trans(left[m], y + row * kStride + m * kTile + ((lane >> 3) & 1) * 8);
      ptx::ldmatrix_x4_trans(right[m], x + (k + (lane & 15)) * kStride + m * kTile + (lane >> 4) * 8);
    }
#pragma unroll
    for (int m = 0; m < 2; ++m) {
#pragma unroll
      for (int n = 0; n < 2; ++n) {
        ptx::mma_bf16(acc[m][n][0], left[m], right[n][0], right[n][1]);
        ptx::mma_bf16(acc[m][n][1], left[m], right[n][2], right[n][3]);
      }
    }
  }
}

__device__ inline void multiply_rows(float (&acc)[2][2][2][4], const float* y, const float* x, int lane) {
  constexpr int kStride = WeightTile<float>::kStride;
#pragma unroll 2
  for (int k = 0; k < kRowsOfPair; ++k) {
    float left[2][2];
    float2 right[2][2];
#pragma unroll
    for (int m = 0; m < 2; ++m) {
#pragma unroll
      for (int h = 0; h < 2; ++h) {
        left[m][h] = y[k * kStride + m * kTile + 8 * h + lane / 4];
        right[m][h] = *reinterpret_cast<const float2*>(x + k * kStride + m * kTile + 8 * h + lane % 4 * 2);
      }
    }
#pragma unroll
    for (int i = 0; i < 16; ++i) {
      const int m = i / 8, h = i / 4 % 2, n = i / 2 % 2, j = i % 2;
      acc[m][n][j][2 * h] = fmaf(left[m][h], right[n][j].x, acc[m][n][j][2 * h]);
      acc[m][n][j][2 * h + 1] = fmaf(left[m][h], right[n][j].y, acc[m][n][j][2 * h + 1]);
    }
  }
}

// Block (tile, job, part).
template <class E>
__global__ void __launch_bounds__(kWeightThreads) weight_gradient_kernel(const __grid_constant__ WeightJobs all) {
  ROHYDR_SHARED(memory);
  using Tile = WeightTile<E>;
  E* const shared = reinterpret_cast<E*>(memory);
  const WeightJob& job = all.jobs[blockIdx.y];
  const int across = (job.padded_depth + kGradientTile - 1) / kGradientTile;
  const int down = (job.padded_columns + kGradientTile - 1) / kGradientTile;
  const int tile = static_cast<int>(blockIdx.x), part = static_cast<int>(blockIdx.z);
  if (tile >= across * down) return;
  const int row = tile / across * kGradientTile, column = tile % across * kGradientTile;  // of the weight
  const int thread = static_cast<int>(threadIdx.x), lane = thread % 32, warp = thread / 32;
  const int pairs_of_sample = all.rows / kRowsOfPair;
  const std::int64_t pairs = all.steps * all.samples * pairs_of_sample, rows = pairs * kRowsOfPair;
  const std::int64_t end = pairs * (part + 1) / all.parts;
  const E* const streams = static_cast<const E*>(all.streams);

  // The first pair of tiles from `pair` on that has any rows.
  const auto existing = [&](std::int64_t pair) {
    while (pair < end) {
      const std::int64_t sample = pair / pairs_of_sample % all.samples;
      if (pair % pairs_of_sample * kRowsOfPair < all.row_counts[sample]) break;
      ++pair;
    }
    return pair;
  };
  const auto fetch = [&](int buffer, std::int64_t pair) {
    constexpr int kOfPiece = 16 / static_cast<int>(sizeof(E)), kOfRow = kGradientTile / kOfPiece;
#pragma unroll
    for (int matrix = 0; matrix < 2; ++matrix) {
      const int columns = matrix == 0 ? job.padded_columns : job.padded_depth, first = matrix == 0 ? row : column;
      const E* const from = streams + rows * (matrix == 0 ? job.y : job.x) + pair * kRowsOfPair * columns;
      E* const to = shared + (2 * buffer + matrix) * Tile::kMatrix;
      for (int i = thread; i < kRowsOfPair * kOfRow; i += kWeightThreads) {
        const int r = i / kOfRow, c = i % kOfRow * kOfPiece;
        const bool valid = first + c < columns;
        ptx::cp_async_16_or_zero(to + r * Tile::kStride + c, from + r * columns + (valid ? first + c : 0), valid);
      }
    }
    ptx::cp_async_commit();
  };

  float acc[2][2][2][4] = {}, bias = 0.0f;
  std::int64_t pair = existing(pairs * part / all.parts);
  if (pair < end) fetch(0, pair);
  int buffer = 0;
  while (pair < end) {
    const std::int64_t next = existing(pair + 1);
    if (next < end) {
      fetch(1 - buffer, next);
      ptx::cp_async_wait<1>();
    } else {
      ptx::cp_async_wait<0>();
    }
    __syncthreads();  // all threads' copies are there
    const E* const y = shared + 2 * buffer * Tile::kMatrix;
    multiply_rows(acc, y + warp / 2 * 32, y + Tile::kMatrix + warp % 2 * 32, lane);
    if (column == 0) {  // half of the rows of one column
#pragma unroll 4
      for (int r = 0; r < kRowsOfPair / 2; ++r) {
        bias += as_float(y[(thread / kGradientTile * kRowsOfPair / 2 + r) * Tile::kStride + thread % kGradientTile]);
      }
    }
    __syncthreads();  // nobody reads this buffer any more
    pair = next;
    buffer = 1 - buffer;
  }

  const PackJob order{nullptr, nullptr, job.columns, job.depth, 0, 0, 0, job.channels, 0, 0};
  float* const to = all.to + part * all.weight_count;
#pragma unroll
  for (int i = 0; i < 32; ++i) {
    const int m = i / 16, n = i / 8 % 2, j = i / 4 % 2, e = i % 4;
    const int source = source_of(order, row + warp / 2 * 32 + m * kTile + lane / 4 + e / 2 * 8);
    const int c = column + warp % 2 * 32 + n * kTile + 8 * j + lane % 4 * 2 + e % 2;
    if (source < 0 || c >= job.depth) continue;
    to[job.to_weight + static_cast<std::int64_t>(source) * job.depth + c] = acc[m][n][j][e];
  }
  if (column == 0) {
    float* const halves = reinterpret_cast<float*>(memory);
    halves[thread] = bias;
    __syncthreads();  // both halves are there
    const int source = thread < kGradientTile ? source_of(order, row + thread) : -1;
    if (source >= 0) to[job.to_bias + source] = halves[thread] + halves[thread + kGradientTile];
  }
}

namespace {  // each file that launches these has its own

// to (+)= the sum of the parts.
__global__ void __launch_bounds__(256)
    add_parts_kernel(const float* parts, int count, std::int64_t size, int first, float* to) {
  const std::int64_t i = static_cast<std::int64_t>(blockIdx.x) * blockDim.x + threadIdx.x;
  if (i >= size) return;
  float sum = first != 0 ? 0.0f : to[i];
  for (int part = 0; part < count; ++part) sum += parts[part * size + i];
  to[i] = sum;
}

struct ModulationSum {
  const float* from;  // (steps, samples, blocks + last)
  std::int64_t samples;
  int blocks, last;         // numbers of a row
  float *to_blocks, *to_last;  // (steps, blocks), (steps, last)
  int first;                // group of samples: others are added
};

// Block (x, step): 256 numbers of a step's row.
__global__ void __launch_bounds__(256) modulation_sum_kernel(const __grid_constant__ ModulationSum all) {
  const int size = all.blocks + all.last;
  const int i = static_cast<int>(blockIdx.x * blockDim.x + threadIdx.x);
  const std::int64_t step = blockIdx.y;
  if (i >= size) return;
  float* const to =
      i < all.blocks ? all.to_blocks + step * all.blocks + i : all.to_last + step * all.last + i - all.blocks;
  const float* const from = all.from + step * all.samples * size + i;
  float sum = all.first != 0 ? 0.0f : *to;
#pragma unroll 4
  for (std::int64_t s = 0; s < all.samples; ++s) sum += from[s * size];
  *to = sum;
}

}  // namespace
}  // namespace rohydr

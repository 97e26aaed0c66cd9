// SPDX-License-Identifier: MIT
// Where the warps of the loop in bfloat16 have their numbers: rows and columns of a thread, and the block's shared
// memory.
#pragma once

#include "tiles.cuh"

namespace rohydr {

// threadIdx.x, asked for again by each part of the loop where a warp has many columns: addresses that the compiler kept
// would take too many registers.
template <int W, int kSplit>
__device__ int thread_of() {
  return W / kSplit >= 64 ? ptx::thread_index() : static_cast<int>(threadIdx.x);
}

// The sums over heads and over the hidden layer have so many parts, each of which is added up on its own.
constexpr int kParts = 2;

// Where this thread's numbers lie.
template <int W, int kSplit>
struct RowPlace {
  int tile, part;  // of rows, of their columns: the same in the whole warp, which the compiler knows of a shuffle

  __device__ RowPlace() {
    const int warp = __shfl_sync(kFullWarp, static_cast<int>(threadIdx.x) / 32, 0);
    tile = warp / kSplit;
    part = warp % kSplit;
  }

  __device__ static int lane() { return thread_of<W, kSplit>() % 32; }
  __device__ int row(int half) const { return kTile * tile + 8 * half + lane() / 4; }
  __device__ static int column() { return lane() % 4 * 2; }
  // Which of its two rows a thread has of the residual stream, where two warps share a tile: not the same in all
  // lanes, so that those of a warp read both halves of a part from different banks.
  __device__ int half() const { return part ^ (lane() / 8 % 2); }
};

// A block's shared memory for `rows` rows, a multiple of 16, in bytes from `start`: keys and values of self-attention,
// and where two warps have a tile of rows, their parts of a sum and their operands. Of 128 columns keys and parts have
// one place: there each matrix is a group of the stream, with a barrier before it.
template <int W, int kSplit>
struct RowShared {
  static constexpr int kKeyStride = 2 * W + 8, kStride = W + 8;  // bfloat16 numbers: the next row in other banks
  static constexpr bool kOnePlace = W == 128;

  int rows, channels, start;

  RH_HOST_DEVICE int key_bytes() const { return rows * kKeyStride * 2; }
  RH_HOST_DEVICE int part_bytes() const { return kSplit == 1 ? 0 : kSplit * rows * W * 4; }
  RH_HOST_DEVICE int keys() const { return start; }  // (rows, kKeyStride): keys, then values
  RH_HOST_DEVICE int parts() const { return kOnePlace ? start : start + key_bytes(); }
  RH_HOST_DEVICE int noise() const { return start; }  // when there are no keys and no parts
  // Numbers from a row of x_t or of its noise to the next: an odd multiple of 8, so that rows lie in other banks.
  RH_HOST_DEVICE int state_stride() const { return ((channels + 7) / 8 | 1) * 8; }
  // (rows, kStride)
  RH_HOST_DEVICE int operand() const { return start + most(parts() - start + part_bytes(), noise_bytes()); }
  RH_HOST_DEVICE int end() const { return operand() + rows * kStride * 2; }

 private:
  RH_HOST_DEVICE int noise_bytes() const { return most(key_bytes(), rows * state_stride() * 4); }
  RH_HOST_DEVICE static int most(int a, int b) { return a < b ? b : a; }
};

// Of a sample: its rows and keys that exist, and channels of a head.
struct RowCounts {
  int rows, keys, head_size;
};

}  // namespace rohydr

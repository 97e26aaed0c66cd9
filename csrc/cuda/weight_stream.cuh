// SPDX-License-Identifier: MIT
// Packed weights on their way from the second cache to the warps: a ring in shared memory that cp.async fills, two
// groups ahead of who reads. A slot is a matrix of bfloat16 in fragments of mma.m16n8k16, in one of two forms: kColumns
// columns of all W channels ("across"), or W columns of kColumns channels ("along"). Two slots are a group.
#pragma once

#include "arena.h"
#include "loop_parameters.cuh"
#include "tiles.cuh"

namespace rohydr {

template <int W>
struct Slot {
  static constexpr int kColumns = W < 64 ? W : 64;
  static constexpr int kPieces = kColumns * W / 8;  // 16 bytes each
  static constexpr int kOfMatrix = W / kColumns;    // slots of a (W, W) matrix
};

constexpr int kSlotsOfGroup = 2, kGroups = 3;
constexpr int kCopyThreads = 128;  // a block has at least so many

// Slots of a network, and its biases, in order of use. A step has parts: the input layer, the blocks, the output layer;
// each is a whole number of groups.
template <int W>
struct StreamLayout {
  int hidden, channels, layers;  // hidden rounded up to whole slots

  RH_HOST_DEVICE StreamLayout(int hidden, int channels, int layers)
      : hidden(round_up_to(hidden, Slot<W>::kColumns)), channels(channels), layers(layers) {}

  RH_HOST_DEVICE int out_columns() const { return 16 * ((channels + 7) / 8); }
  RH_HOST_DEVICE static int groups(int elements) {
    return (elements + kSlotsOfGroup * Slot<W>::kColumns - 1) / (kSlotsOfGroup * Slot<W>::kColumns);
  }
  RH_HOST_DEVICE int in_groups() const { return groups(channels); }
  RH_HOST_DEVICE int block_groups() const { return 3 * Slot<W>::kOfMatrix + hidden / Slot<W>::kColumns; }
  RH_HOST_DEVICE int out_groups() const { return groups(out_columns()); }
  RH_HOST_DEVICE std::int64_t step_groups() const {
    return in_groups() + static_cast<std::int64_t>(layers) * block_groups() + out_groups();
  }
  RH_HOST_DEVICE std::int64_t pieces() const { return step_groups() * kSlotsOfGroup * Slot<W>::kPieces; }

  // Of a block: keys, values, queries, self_out, the other queries, cross_out, fc2, then fc1.
  RH_HOST_DEVICE int block_biases() const { return 7 * W + hidden; }
  RH_HOST_DEVICE int out_biases() const { return W + layers * block_biases(); }
  RH_HOST_DEVICE int biases() const { return out_biases() + round_up_to(out_columns(), Slot<W>::kColumns); }

  // What a block reads beside its matrices: its biases, then its modulation (9, W).
  RH_HOST_DEVICE int block_constants() const { return block_biases() + 9 * W; }
};

// Where the stream lies in shared memory, in bytes from its start: the ring, two of (2, W) of the output layer's
// modulation, two of StreamLayout::block_constants() of a block. Known to the compiler, it takes no registers.
template <int W>
struct StreamMemory {
  static constexpr int kGroupPieces = kSlotsOfGroup * Slot<W>::kPieces;
  static constexpr int kFinal = 16 * kGroups * kGroupPieces, kBlock = kFinal + 2 * 2 * W * 4;

  RH_HOST_DEVICE static int bytes(const StreamLayout<W>& layout) { return kBlock + 2 * layout.block_constants() * 4; }
};

// Reads groups in order, for all steps. All threads of the block make the same calls.
template <int W>
class WeightStream {
 public:
  static constexpr int kGroupPieces = StreamMemory<W>::kGroupPieces;

  __device__ explicit WeightStream(const LoopModality& m) : m_(m), step_(m.steps) {
    start_part();
#pragma unroll 1
    for (int i = 0; i < kGroups - 1; ++i) issue();
  }

  // The next group, this lane's first piece: valid until the next call. A barrier.
  __device__ const uint4* next() {
    ptx::cp_async_wait<kGroups - 2>();
    __syncthreads();
    issue();  // into the group that everybody has left
    const uint4* const group = ring() + reading_ * kGroupPieces + ptx::thread_index() % 32;
    reading_ = reading_ + 1 < kGroups ? reading_ + 1 : 0;
    return group;
  }
  // After the first next() of a block: its biases, then its modulation. Of the output layer: shift, then scale.
  __device__ const float* block_constants() { return block(block_read_++); }
  __device__ const float* final_constants(int step) const { return final(step); }

 private:
  static __device__ unsigned char* shared() {
    ROHYDR_SHARED(memory);
    return memory;
  }
  static __device__ uint4* ring() { return reinterpret_cast<uint4*>(shared()); }
  __device__ float* block(int number) const {
    return reinterpret_cast<float*>(shared() + StreamMemory<W>::kBlock) + number % 2 * layout().block_constants();
  }
  static __device__ float* final(int step) {
    return reinterpret_cast<float*>(shared() + StreamMemory<W>::kFinal) + step % 2 * 2 * W;
  }
  __device__ StreamLayout<W> layout() const { return {m_.hidden, m_.channels, m_.layers}; }

  // Two groups ahead of next().
  __device__ void issue() {
    const int thread = ptx::thread_index();
    if (step_ > 0) {
      if (thread < kCopyThreads) {
        const uint4* const from = source_ + thread;
        uint4* const to = ring() + writing_ * kGroupPieces + thread;
#pragma unroll
        for (int i = 0; i < kGroupPieces / kCopyThreads; ++i) {
          ptx::cp_async_16(to + i * kCopyThreads, from + i * kCopyThreads);
        }
      }
      if (fresh_) issue_constants(thread);
      fresh_ = false;
      source_ += kGroupPieces;
      writing_ = writing_ + 1 < kGroups ? writing_ + 1 : 0;
      if (--left_ == 0) {
        if (++part_ > m_.layers + 1) {
          part_ = 0;
          --step_;
        }
        start_part();
      }
    }
    ptx::cp_async_commit();
  }

  __device__ void issue_constants(int thread) {
    const int layer = part_ - 1;
    if (layer == m_.layers) {
      const float* const from = m_.final_modulation + static_cast<std::int64_t>(step_ - 1) * 2 * W;
      copy(final(step_), from, 2 * W, thread);
    } else if (layer >= 0) {
      const int biases = layout().block_biases();
      float* const to = block(block_written_++);
      copy(to, m_.biases + W + layer * biases, biases, thread);
      const std::int64_t row = static_cast<std::int64_t>(step_ - 1) * m_.layers + layer;
      copy(to + biases, m_.block_modulation + row * 9 * W, 9 * W, thread);
    }
  }

  static __device__ void copy(float* to, const float* from, int count, int thread) {
#pragma unroll 1
    for (int i = 4 * thread; i < count; i += 4 * kCopyThreads) {
      if (thread < kCopyThreads) ptx::cp_async_16(to + i, from + i);
    }
  }

  __device__ void start_part() {
    fresh_ = true;
    if (part_ == 0) source_ = m_.weights;
    left_ = part_ == 0 ? layout().in_groups() : part_ <= m_.layers ? layout().block_groups() : layout().out_groups();
  }

  const LoopModality& m_;
  const uint4* source_ = nullptr;
  int step_, part_ = 0, left_ = 0;  // of the next group to issue: its step, its part, and how many the part still has
  bool fresh_ = true;
  int writing_ = 0, reading_ = 0;  // groups in the ring
  int block_written_ = 0, block_read_ = 0;
};

}  // namespace rohydr

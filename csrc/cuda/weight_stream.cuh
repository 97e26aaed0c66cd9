// SPDX-License-Identifier: MIT
// Packed weights on their way from the second cache to the warps: a ring in shared memory that cp.async fills, two
// groups ahead of who reads. A slot is a matrix of bfloat16 in fragments of mma.m16n8k16, in one of two forms: kColumns
// columns of all W channels ("across"), or W columns of kColumns channels ("along"). Two slots are a group.
#pragma once

#include <utility>

#include "arena.h"
#include "loop_parameters.cuh"
#include "row_place.cuh"
#include "tiles.cuh"

namespace rohydr {

template <int W>
struct Slot {
  static constexpr int kColumns = W < 64 ? W : 64;
  static constexpr int kPieces = kColumns * W / 8;  // 16 bytes each
  static constexpr int kOfMatrix = W / kColumns;    // slots of a (W, W) matrix
};

constexpr int kSlotsOfGroup = 2, kGroups = 3;

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

// Where things lie in shared memory, in bytes from its start: what the block was given, RowCounts, the ring, two of
// (2, W) of the output layer's modulation, two of StreamLayout::block_constants() of a block. Known to the compiler, it
// takes no registers.
template <int W>
struct StreamMemory {
  static constexpr int kGroupPieces = kSlotsOfGroup * Slot<W>::kPieces;
  static constexpr int kCounts = round_up_to(sizeof(LoopModality), 16);
  static constexpr int kRing = round_up_to(kCounts + sizeof(RowCounts), 128);
  static constexpr int kFinal = kRing + 16 * kGroups * kGroupPieces, kBlock = kFinal + 2 * 2 * W * 4;

  RH_HOST_DEVICE static int bytes(const StreamLayout<W>& layout) { return kBlock + 2 * layout.block_constants() * 4; }
};

// Reads groups in order, step after step. All threads of the block make the same calls; the first 128 kSplit copy,
// which are all where kSplit, the warps of a tile of rows, is 2.
template <int W, int kSplit>
class WeightStream {
 public:
  static constexpr int kGroupPieces = StreamMemory<W>::kGroupPieces, kThreads = 128 * kSplit;

  __device__ WeightStream() {
    if (modality().steps == 0) return;
    start_step();
    issue_constants(modality().steps, 0);
#pragma unroll 1
    for (int i = 0; i < kGroups - 1; ++i) issue();
  }

  // The next group, this lane's first piece: valid until the next call. A barrier.
  __device__ const uint4* next() {
    wait();
    issue();  // into the group that everybody has left
    return read();
  }
  // The same, and the constants of a block, or of the output layer for a layer that does not exist, are on their way:
  // there after two more calls. Those of the same place must not be in use.
  __device__ const uint4* next_with_constants(int step, int layer) {
    wait();
    issue_constants(step, layer);
    issue();
    return read();
  }
  static __device__ StreamLayout<W> layout() {
    const LoopModality& m = modality();
    return {m.hidden, m.channels, m.layers};
  }
  // A block's biases, then its modulation.
  static __device__ const float* block_constants(int layer) {
    return reinterpret_cast<float*>(shared() + StreamMemory<W>::kBlock) + layer % 2 * layout().block_constants();
  }
  // The output layer's shift, then its scale.
  __device__ static const float* final_constants(int step) {
    return reinterpret_cast<float*>(shared() + StreamMemory<W>::kFinal) + step % 2 * 2 * W;
  }
  // What is still on its way must not outlive the block.
  __device__ static void finish() { ptx::cp_async_wait<0>(); }

 private:
  static __device__ unsigned char* shared() {
    ROHYDR_SHARED(memory);
    return memory;
  }
  static __device__ uint4* ring() { return reinterpret_cast<uint4*>(shared() + StreamMemory<W>::kRing); }
  static __device__ const LoopModality& modality() { return *reinterpret_cast<LoopModality*>(shared()); }
  static __device__ bool copies() { return kSplit == 2 || thread_of<W, kSplit>() < kThreads; }

  static __device__ void wait() {
    ptx::cp_async_wait<kGroups - 2>();
    __syncthreads();
  }
  __device__ const uint4* read() {
    const uint4* const group = ring() + reading_ + thread_of<W, kSplit>() % 32;
    reading_ = following(reading_);
    return group;
  }
  static __device__ int following(int place) {
    return place + kGroupPieces < kGroups * kGroupPieces ? place + kGroupPieces : 0;
  }

  // Two groups ahead of who reads; after the last step it goes on with the first groups, which nobody reads.
  __device__ void issue() {
    if (copies()) {
      copy_group(ring() + writing_ + thread_of<W, kSplit>(), source_,
                 std::make_integer_sequence<int, kGroupPieces / kThreads>{});
    }
    ptx::cp_async_commit();
    writing_ = following(writing_);
    source_ += kGroupPieces;
    if (--left_ == 0) start_step();
  }
  __device__ void start_step() {
    source_ = modality().weights + thread_of<W, kSplit>();
    left_ = static_cast<int>(layout().step_groups());
  }
  template <int... kNumbers>
  static __device__ void copy_group(uint4* to, const uint4* from, std::integer_sequence<int, kNumbers...>) {
    (ptx::cp_async_16_at<16 * kThreads * kNumbers>(to, from), ...);
  }

  static __device__ void issue_constants(int step, int layer) {
    if (step == 0) return;  // all are done
    const LoopModality& m = modality();
    if (layer < m.layers) {
      const int biases = layout().block_biases();
      float* const to = const_cast<float*>(block_constants(layer));
      copy(to, m.biases + W + layer * biases, biases);
      copy(to + biases, m.block_modulation + (static_cast<std::int64_t>(step - 1) * m.layers + layer) * 9 * W, 9 * W);
    } else {
      copy(const_cast<float*>(final_constants(step)), m.final_modulation + static_cast<std::int64_t>(step - 1) * 2 * W,
           2 * W);
    }
  }
  static __device__ void copy(float* to, const float* from, int count) {
    if (!copies()) return;
#pragma unroll 1
    for (int i = 4 * thread_of<W, kSplit>(); i < count; i += 4 * kThreads) ptx::cp_async_16(to + i, from + i);
  }

  const uint4* source_;            // of what this thread copies of the next group
  int left_;                       // groups of the step that are not issued yet
  int writing_ = 0, reading_ = 0;  // in the ring
};

}  // namespace rohydr

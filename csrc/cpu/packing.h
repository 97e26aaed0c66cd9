// SPDX-License-Identifier: MIT
// The weights of a denoiser in one aligned arena, in order of use and in the kernels' layout. The arrays that they came
// from are compared with a kept copy before each use: a changed weight cannot be missed, however it was changed.
#pragma once

#include <atomic>
#include <cstdint>
#include <memory>
#include <mutex>
#include <vector>

#include "kernels.h"

namespace rohydr {

constexpr std::int64_t round_up(std::int64_t value, std::int64_t multiple) {
  return (value + multiple - 1) / multiple * multiple;
}

enum class WeightType { kFloat32, kFloat64, kBfloat16 };

// A contiguous array that the caller owns and keeps alive.
struct WeightArray {
  const void* data;
  WeightType type;
  std::int64_t count;
  std::int64_t bytes() const;
};

// 64-byte aligned memory that only grows.
class Arena {
 public:
  void* reserve(std::size_t bytes);  // content is lost when it grows
  std::size_t bytes() const { return size_; }

 private:
  struct Free {
    void operator()(void* memory) const;
  };
  std::unique_ptr<void, Free> memory_;
  std::size_t size_ = 0;
};

struct DenoiserShape {
  std::int64_t layers, channels, width, heads, hidden;  // channels is 0 for a single block without in and out
};

// The arena of one packing, and the view that the kernels take.
template <class T>
struct PackedArena {
  Arena memory;
  std::vector<BlockView<T>> blocks;
  DenoiserView<T> view{};
  // For the way back; packed at its first use.
  Arena transposed_memory;
  std::vector<BlockView<T>> transposed_blocks;
  TransposedView<T> transposed{};
};

// One that nobody reads any more, to be filled again: fresh memory costs a fault a page.
template <class T>
struct SpareArena {
  std::mutex mutex;
  std::unique_ptr<PackedArena<T>> arena;
};

template <class T>
class PackedWeights {
 public:
  // `arrays` in order of use: in, in bias, for each layer the 12 of BlockWeights, out, out bias; without the first and
  // last two when shape.channels is 0. Counts must be those of `shape`. With `condition`, four more for each layer: W
  // and bias of K, and of V.
  PackedWeights(const DenoiserShape& shape, std::vector<WeightArray> arrays, bool condition = false);

  // The weights as they are now: packed again if an array's bytes changed since, or if `kernels` lays out panels in
  // another way. Several threads may ask at once; whoever holds an older result keeps it whole.
  // `transposed` is filled where asked for.
  std::shared_ptr<const PackedArena<T>> current(const Kernels<T>& kernels, bool transposed = false);

  const DenoiserShape& shape() const { return shape_; }
  bool condition() const { return condition_; }
  std::size_t bytes() const;
  std::int64_t packs() const { return packs_.load(); }

 private:
  bool unchanged() const;
  std::shared_ptr<PackedArena<T>> unread_arena();  // comes back to `spare_` when its last reader lets it go

  const DenoiserShape shape_;
  const std::vector<WeightArray> arrays_;
  const bool condition_;
  const std::shared_ptr<SpareArena<T>> spare_;
  mutable std::mutex mutex_;  // of what follows
  std::vector<char> copy_;
  std::shared_ptr<PackedArena<T>> packed_;
  int lanes_ = 0, tile_vectors_ = 0;
  std::atomic<std::int64_t> packs_{0};
};

}  // namespace rohydr

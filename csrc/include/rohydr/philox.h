// SPDX-License-Identifier: MIT
// Philox4x32-10 (Salmon et al., "Parallel random numbers: as easy as 1, 2, 3", SC 2011) and the counter of this project.
// The same source serves the CPU and CUDA, so that every backend draws the same integers.
#pragma once

#include <cstdint>

#if defined(__CUDACC__)
#define RH_HOST_DEVICE __host__ __device__ __forceinline__
#else
#define RH_HOST_DEVICE inline
#endif

namespace rohydr {

constexpr std::int64_t kSampleIdEnd = std::int64_t{1} << 48;

struct PhiloxBlock {
  std::uint32_t word[4];
};

// One request: (samples, count) numbers, row-major. Element e of a row is word e % 4 of the block with counter
//   c0 = e / 4, c1 = step, c2 = low half of the sample id, c3 = id bits 32..47 | modality << 16 | stream << 24.
struct PhiloxRequest {
  std::uint64_t seed;              // key: low word, high word
  const std::int64_t* sample_ids;  // (samples) in [0, kSampleIdEnd); host or device memory, as the launch function says
  std::int64_t samples;
  std::int64_t count;  // at most 2^34: c0 has 32 bits
  std::uint32_t modality;
  std::uint32_t step;
  std::uint32_t stream;
};

RH_HOST_DEVICE PhiloxBlock philox4x32(PhiloxBlock counter, std::uint32_t key0, std::uint32_t key1) {
  constexpr int kRounds = 10;
  constexpr std::uint64_t kMultiplier0 = 0xD2511F53u;
  constexpr std::uint64_t kMultiplier1 = 0xCD9E8D57u;
  constexpr std::uint32_t kWeyl0 = 0x9E3779B9u;  // golden ratio
  constexpr std::uint32_t kWeyl1 = 0xBB67AE85u;  // sqrt(3) - 1
  for (int round = 0; round < kRounds; ++round) {
    const std::uint64_t product0 = kMultiplier0 * counter.word[0];
    const std::uint64_t product1 = kMultiplier1 * counter.word[2];
    counter = {{static_cast<std::uint32_t>(product1 >> 32) ^ counter.word[1] ^ key0,
                static_cast<std::uint32_t>(product1),
                static_cast<std::uint32_t>(product0 >> 32) ^ counter.word[3] ^ key1,
                static_cast<std::uint32_t>(product0)}};
    key0 += kWeyl0;
    key1 += kWeyl1;
  }
  return counter;
}

// Block number `block` of the row that belongs to `sample_id`.
RH_HOST_DEVICE PhiloxBlock philox_block(const PhiloxRequest& request, std::int64_t sample_id, std::int64_t block) {
  const std::uint64_t id = static_cast<std::uint64_t>(sample_id);
  const std::uint32_t high = static_cast<std::uint32_t>(id >> 32) & 0xFFFFu;
  const PhiloxBlock counter = {{static_cast<std::uint32_t>(block), request.step, static_cast<std::uint32_t>(id),
                                high | request.modality << 16 | request.stream << 24}};
  return philox4x32(counter, static_cast<std::uint32_t>(request.seed),
                    static_cast<std::uint32_t>(request.seed >> 32));
}

RH_HOST_DEVICE std::int64_t philox_blocks_per_row(std::int64_t count) { return (count + 3) / 4; }

// Uniform in [0, 1), exact in float32.
RH_HOST_DEVICE float philox_uniform(std::uint32_t word) { return static_cast<float>(word >> 8) * 0x1p-24f; }

}  // namespace rohydr

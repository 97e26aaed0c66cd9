// SPDX-License-Identifier: MIT
// C entries of csrc/cuda/philox.cu.
#include "rohydr/launch.h"

namespace {

rohydr::PhiloxRequest request(const std::int64_t* sample_ids, std::int64_t samples, std::int64_t count,
                              std::int64_t seed, std::int64_t modality, std::int64_t step, std::int64_t stream) {
  return {static_cast<std::uint64_t>(seed),       sample_ids,
          samples,                                count,
          static_cast<std::uint32_t>(modality), static_cast<std::uint32_t>(step),
          static_cast<std::uint32_t>(stream)};
}

}  // namespace

#define PHILOX_ENTRY(kind, Value)                                                                                    \
  extern "C" int philox_##kind(const std::int64_t* sample_ids, Value* out, std::int64_t samples, std::int64_t count, \
                               std::int64_t seed, std::int64_t modality, std::int64_t step, std::int64_t stream) {   \
    return rohydr::launch_philox_##kind##_cuda(                                                                      \
        request(sample_ids, samples, count, seed, modality, step, stream), out, 0, nullptr);                         \
  }

PHILOX_ENTRY(bits, std::int64_t)
PHILOX_ENTRY(uniform, float)
PHILOX_ENTRY(normal, float)

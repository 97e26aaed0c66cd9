// SPDX-License-Identifier: MIT
// One kernel per instruction set, each in a file compiled for it. Call them through normal_kernel() of noise.h.
#pragma once

#include <cstdint>

#include "rohydr/philox.h"

namespace rohydr {

#define ROHYDR_NORMAL_KERNEL(name)                                                                               \
  void name(const PhiloxRequest& request, std::int64_t sample_id, std::int64_t first_block, std::int64_t blocks, \
            float* out)

ROHYDR_NORMAL_KERNEL(normal_portable);
ROHYDR_NORMAL_KERNEL(normal_avx2);
ROHYDR_NORMAL_KERNEL(normal_avx512);
ROHYDR_NORMAL_KERNEL(normal_neon);

}  // namespace rohydr

// SPDX-License-Identifier: MIT
#define ROHYDR_LANES 2
#define ROHYDR_NEON_LANES
#include "normal_simd.h"

namespace rohydr {

ROHYDR_NORMAL_KERNEL(normal_neon) { fill_normals(request, sample_id, first_block, blocks, out); }

}  // namespace rohydr

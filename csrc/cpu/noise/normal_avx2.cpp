// SPDX-License-Identifier: MIT
#define ROHYDR_LANES 4
#include "normal_simd.h"

namespace rohydr {

ROHYDR_NORMAL_KERNEL(normal_avx2) { fill_normals(request, sample_id, first_block, blocks, out); }

}  // namespace rohydr

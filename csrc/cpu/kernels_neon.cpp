// SPDX-License-Identifier: MIT
#define RH_VECTOR_BYTES 16
#define RH_TILE_ROWS 6
#define RH_TILE_VECTORS 4
#include "kernels/table.h"

namespace rohydr {

const Kernels<float>* kernels_neon() { return &kTable<float>; }

}  // namespace rohydr

// SPDX-License-Identifier: MIT
#define RH_VECTOR_BYTES 32
#define RH_TILE_ROWS 6
#define RH_TILE_VECTORS 2
#include "kernels/table.h"

namespace rohydr {

const Kernels<float>* kernels_avx2() { return &kTable<float>; }

}  // namespace rohydr

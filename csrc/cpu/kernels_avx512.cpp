// SPDX-License-Identifier: MIT
#define RH_VECTOR_BYTES 64
#define RH_TILE_ROWS 10
#define RH_TILE_VECTORS 2
#include "kernels/table.h"

namespace rohydr {

const Kernels<float>* kernels_avx512() { return &kTable<float>; }

}  // namespace rohydr

// SPDX-License-Identifier: MIT
// Normal numbers of whole Philox blocks, vectorised: the bits of box_muller.h on every instruction set.
#pragma once

#include <cstdint>

#include "isa.h"
#include "rohydr/philox.h"

namespace rohydr {

// Writes the 4 * blocks normals of the blocks first_block, first_block + 1, ... of one sample's row to `out`; the
// request gives seed, modality, step and stream (its sample_ids, samples and count are not read).
using NormalKernel = void (*)(const PhiloxRequest& request, std::int64_t sample_id, std::int64_t first_block,
                              std::int64_t blocks, float* out);

NormalKernel normal_kernel(Isa isa);

// Rows of normals, (samples, count) as the request says.
void launch_philox_normal_cpu(const PhiloxRequest& request, NormalKernel normals, float* out);

}  // namespace rohydr

// SPDX-License-Identifier: MIT
// The normal numbers of a step for the rows of a sample.
#pragma once

#include "device.cuh"
#include "rohydr/box_muller.h"
#include "rohydr/philox.h"

namespace rohydr {

// z (rows, C), row_stride numbers apart, of rows begin, begin + 1, ... (end excluded), by the tokens that they are.
// Threads share them: each takes every `stride`-th block of four numbers from `first` on; a block may belong to two
// rows.
__device__ inline void draw_rows(const PhiloxRequest& noise, std::int64_t id, const int* token, int begin_row, int end,
                                 int channels, float* z, int row_stride, int first, int stride) {
  const int most = channels % 4 == 0 ? channels / 4 : (channels + 6) / 4;  // blocks that a row can touch
#pragma unroll 1
  for (int i = first; i < (end - begin_row) * most; i += stride) {
    const int row = begin_row + i / most;
    const std::int64_t begin = static_cast<std::int64_t>(token[row]) * channels, block = begin / 4 + i % most;
    const int channel = static_cast<int>(4 * block - begin);
    if (channel >= channels) continue;
    float normals[4];
    normal_block(philox_block(noise, id, block), normals);
#pragma unroll
    for (int e = 0; e < 4; ++e) {
      if (channel + e >= 0 && channel + e < channels) z[row * row_stride + channel + e] = normals[e];
    }
  }
}

}  // namespace rohydr

// SPDX-License-Identifier: MIT
// What a loop keeps for its way back: x_t of its last steps.
#pragma once

#include "device.cuh"

namespace rohydr {

// x_t (rows, C), row_stride numbers apart, of a sample to its place in `states` (steps, B, T, C), that of step i at
// i - 1; by the whole block. Tokens that do not exist are left as they are.
__device__ inline void keep_state(float* states, int step, std::int64_t samples, std::int64_t sample, int tokens,
                                  int channels, const float* x, int row_stride, const int* token, int rows) {
  float* const to = states + ((step - 1) * samples + sample) * tokens * channels;
  for (int i = ptx::thread_index(); i < rows * channels; i += static_cast<int>(blockDim.x)) {
    to[static_cast<std::int64_t>(token[i / channels]) * channels + i % channels] =
        x[i / channels * row_stride + i % channels];
  }
}

}  // namespace rohydr

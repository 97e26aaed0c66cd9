// SPDX-License-Identifier: MIT
// What the kernels of the way back are given, beside what is special to each.
#pragma once

#include "device.cuh"
#include "gradient_layout.h"

namespace rohydr {

struct GradientParameters {
  GradientSizes sizes;
  TapeLayout layout;
  GradientShared shared;
  std::int64_t samples, first_sample, all_samples;  // of the group, its first, and those of the call
  int steps;                                        // of the chunk
  const std::uint8_t* token_mask;                   // (B, T), or null
  const uint4 *weights, *transposed, *condition;
  const float* biases;
  const int *key_counts, *key_list;  // (B), (B, S)
  int* row_counts;                   // (samples)
  char* tape;                        // (steps, samples, TapeLayout::bytes())
  void* streams;                     // see StreamLayout
  float* modulation;                 // (steps, samples, modulation_size())
  float* cond_gradient;              // (L, 2, B, S, W), to which is added

  // A part of the packed condition, see GradientSizes::condition_part; `sample` of the call.
  __device__ const uint4* condition_at(std::int64_t sample, int layer, int part) const {
    return condition + ((sample * sizes.layers + layer) * sizes.condition_parts() + part) * sizes.condition_part();
  }
};

}  // namespace rohydr

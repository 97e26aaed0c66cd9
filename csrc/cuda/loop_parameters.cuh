// SPDX-License-Identifier: MIT
// What the kernels of the reverse loop are given, and the step of Eq. 2 itself.
#pragma once

#include "device.cuh"
#include "reverse_loop.h"
#include "rohydr/philox.h"

namespace rohydr {

struct LoopModality {
  std::int64_t samples;
  int tokens, keys, channels, layers, hidden, steps;
  const float* x;
  float* out;
  const float *position, *block_modulation, *final_modulation, *coefficients;
  const std::uint8_t* token_mask;
  const uint4* weights;
  const float* biases;
  const uint4* condition;
  const int* key_counts;
  PhiloxRequest noise;
  float* states;  // null, or x_t of the last kept_steps steps, see loop_states.cuh
  int kept_steps;
};

struct LoopParameters {
  LoopModality modalities[kLoopModalitiesMax];
  int count, heads;
};

// Which modality, and which of its samples, a block computes.
struct LoopPlace {
  int modality;
  std::int64_t sample;
};

__device__ inline LoopPlace place_of(const LoopParameters& p, std::int64_t block) {
  LoopPlace place{0, block};
  while (place.sample >= p.modalities[place.modality].samples) place.sample -= p.modalities[place.modality++].samples;
  return place;
}

// x_{t-1} = mean + sigma z, the mean alone at step 1. `c`: c_x, c_p, log beta_t, log btilde_t.
__device__ inline float previous(const float4& c, float x, float prediction, float v, float z, int step) {
  const float mean = fmaf(c.x, x, c.y * prediction);
  if (step == 1) return mean;
  const float u = 0.5f * (v + 1.0f);
  return fmaf(expf(0.5f * (u * c.z + (1.0f - u) * c.w)), z, mean);
}

}  // namespace rohydr

// SPDX-License-Identifier: MIT
// What the kernels of the way back through the reverse loop are given.
#pragma once

#include "gradient_parameters.h"
#include "rohydr/philox.h"

namespace rohydr {

struct LoopGradientParameters {
  GradientParameters gradient;
  const float* states;  // (steps, B, T, C)
  float* of_state;      // (B, T, C) the gradient of the last step's result, then of the first step's x_t
  const float *position, *block_modulation, *final_modulation, *coefficients;
  PhiloxRequest noise;
  int first_step;  // of the chunk, from 1
};

}  // namespace rohydr

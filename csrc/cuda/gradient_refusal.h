// SPDX-License-Identifier: MIT
// Which sizes the kernels with a way back take.
#pragma once

#include <string>

#include "gradient_layout.h"

namespace rohydr {

constexpr int kGradientTokensMax = 128;

// What is not taken, as a part of a sentence; empty when all is well. What shared memory a device has is not looked at.
inline std::string gradient_refusal(const GradientSizes& s) {
  const auto text = [](const std::string& takes, std::int64_t got) {
    return "the CUDA kernel takes " + takes + ", and this has " + std::to_string(got);
  };
  if (s.width != 32 && s.width != 64 && s.width != 128) return text("a width of 32, 64 or 128", s.width);
  const int size = s.heads >= 1 && s.width % s.heads == 0 ? s.width / s.heads : 0;
  if (size != 4 && size != 8 && size != 16 && size != 32 && size != 64) {
    return text("heads of 4, 8, 16, 32 or 64 channels", size);
  }
  if (s.tokens > kGradientTokensMax) {
    return text("up to " + std::to_string(kGradientTokensMax) + " tokens in its way back", s.tokens);
  }
  const int wide = s.padded_hidden() > 3 * s.width ? s.padded_hidden() : 3 * s.width;
  if (2 * s.state_depth() > wide) {  // x_t, or its noise, where the MLP's hidden layer is
    return text("up to half as many channels as the MLP is wide", s.channels);
  }
  return "";
}

}  // namespace rohydr

// SPDX-License-Identifier: MIT
// The structures in which the kernels of the way back find their memory, as numbers: TapeLayout, then GradientShared.
#pragma once

#include <cstdint>
#include <cstring>

#include "gradient_layout.h"

inline std::int64_t gradient_word(const rohydr::GradientSizes& sizes, std::int64_t what) {
  struct {
    rohydr::TapeLayout tape;
    rohydr::GradientShared shared;
  } all{rohydr::TapeLayout(sizes), rohydr::GradientShared(sizes)};
  static_assert(sizeof all == 23 * sizeof(int), "GRADIENT of test_denoiser_block_ptx.py");
  int words[23];
  std::memcpy(words, &all, sizeof all);
  return words[what];
}

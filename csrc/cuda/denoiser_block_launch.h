// SPDX-License-Identifier: MIT
// Between the host's side of a block and the files that compile its kernels.
#pragma once

#include <cuda_bf16.h>

#include "denoiser_block.h"
#include "gradient_layout.h"

namespace rohydr {

using Bf16 = __nv_bfloat16;

inline GradientSizes sizes_of(const CudaBlockRequest& r) {
  return {r.width, r.hidden, 0, 1, r.type == CudaType::kBfloat16 ? 2 : 4, r.heads, r.tokens, r.keys};
}

inline GradientScratch scratch_of(const CudaBlockRequest& r, bool backward) {
  const GradientSizes sizes = sizes_of(r);
  const GradientPlan plan(sizes, r.samples, 1);
  return {sizes, r.samples, backward ? plan.group : 0, 1, backward ? plan.parts : 0, false};
}

template <class E, int W>
int launch_block(const CudaBlockRequest& request);
template <class E, int W>
int launch_block_backward(const CudaBlockRequest& request);

}  // namespace rohydr

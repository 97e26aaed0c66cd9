// SPDX-License-Identifier: MIT
// Between the host's side of the way back and the files that compile its kernels.
#pragma once

#include <cuda_bf16.h>

#include "gradient_layout.h"
#include "reverse_loop_backward.h"

namespace rohydr {

using Bf16 = __nv_bfloat16;

inline GradientSizes sizes_of(const CudaLoopGradient& r) {
  const CudaLoopModality& m = r.loop;
  return {r.width, m.hidden, m.channels, m.layers, r.type == CudaType::kBfloat16 ? 2 : 4, r.heads, m.tokens, m.keys};
}

inline GradientPlan plan_of(const CudaLoopGradient& r) { return {sizes_of(r), r.loop.samples, r.loop.steps}; }

inline GradientScratch scratch_of(const CudaLoopGradient& r) {
  const GradientPlan plan = plan_of(r);
  return {sizes_of(r), r.loop.samples, plan.group, plan.steps, plan.parts, true};
}

template <class E, int W>
int launch_loop_backward(const CudaLoopGradient& request);

}  // namespace rohydr

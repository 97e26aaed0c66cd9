// SPDX-License-Identifier: MIT
// What every launch of the reverse loop does first, on the host: where its scratch memory has what, and the condition.
#pragma once

#include <algorithm>

#include "loop_parameters.cuh"
#include "pack.cuh"

namespace rohydr {
namespace {

constexpr int kPackThreads = 256;

// What the kernel is given of a modality whose scratch memory has this layout.
LoopModality loop_modality(const CudaLoopModality& m, const ScratchLayout& scratch) {
  char* const memory = static_cast<char*>(m.scratch);
  const auto at = [&](std::int64_t offset) { return static_cast<void*>(memory + offset); };
  return {m.samples,
          m.tokens,
          m.keys,
          m.channels,
          m.layers,
          m.hidden,
          m.steps,
          m.x,
          m.out,
          m.position,
          m.block_modulation,
          m.final_modulation,
          m.coefficients,
          m.token_mask,
          static_cast<const uint4*>(at(scratch.weights)),
          static_cast<const float*>(at(scratch.biases)),
          static_cast<const uint4*>(at(scratch.condition)),
          static_cast<const int*>(at(scratch.counts)),
          {m.seed, m.sample_ids, m.samples, 0, m.modality, 0, kPhiloxStepStream},
          m.states,
          m.kept_steps};
}

template <class E>
int pack_condition(const CudaLoopModality& m, const CudaLoopRequest& r, const LoopModality& loop) {
  const ConditionJob job{m.cond_kv, m.key_mask, const_cast<uint4*>(loop.condition), const_cast<int*>(loop.key_counts),
                         m.samples, m.keys,     r.width,                            m.layers};
  const dim3 grid(static_cast<unsigned>(m.samples), static_cast<unsigned>(std::max(m.layers, 1)));
  return ROHYDR_LAUNCH(pack_condition_kernel<E>, grid, dim3(kPackThreads), (m.keys + 1) * 4, r.stream, job);
}

}  // namespace
}  // namespace rohydr

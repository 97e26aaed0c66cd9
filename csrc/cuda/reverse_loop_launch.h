// SPDX-License-Identifier: MIT
// Between the host's side of the reverse loop and the files that compile its kernels.
#pragma once

#include <cuda_bf16.h>

#include "arena.h"
#include "reverse_loop.h"

namespace rohydr {

using Bf16 = __nv_bfloat16;

inline ArenaLayout arena_of(const CudaLoopModality& m, int width, CudaType type) {
  return {width, m.hidden, m.channels, m.layers, type == CudaType::kBfloat16 ? 2 : 4};
}

// In bfloat16: over so many tokens no two warps share rows, so at W = 128 the kernel of tiles takes them.
constexpr int kRowTokens = 64;

template <class E, int W>
int loop_max_tokens();
template <class E, int W>
int loop_shared_bytes(const CudaLoopRequest& request);
template <class E, int W>
ScratchLayout loop_scratch(const CudaLoopModality& modality);
template <class E, int W>
int launch_loop(const CudaLoopRequest& request);

ScratchLayout scratch_of(const CudaLoopModality& modality, int width, CudaType type);

}  // namespace rohydr

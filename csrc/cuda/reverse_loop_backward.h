// SPDX-License-Identifier: MIT
// The way back through the last steps of the reverse loop on CUDA, as host code sees it. Pointers are device memory;
// nothing waits for the device, nothing allocates. Functions return a cudaError_t.
#pragma once

#include <cstdint>
#include <string>

#include "reverse_loop.h"

namespace rohydr {

struct CudaLoopGradient {
  // As in the forward, with the last steps alone; but x: (steps, B, T, C) x_t of each, that of step i at i - 1;
  // out: (B, T, C) the gradient of x_0, which becomes that of x_t of the first of these steps, zeros at tokens that the
  // mask leaves out; scratch: reverse_loop_backward_cuda_scratch() bytes, aligned to 256.
  CudaLoopModality loop;
  float* block_modulation;  // (steps, L, 9, W) gradients
  float* final_modulation;  // (steps, 2, W)
  float* cond_kv;           // (L, 2, B, S, W), zeros
  float* weights;           // those of all weights in order of use, one after the other
  int width, heads;
  CudaType type;
  int device;
  void* stream;
};

// What no kernel takes of the request, as a part of a sentence; empty when all is well.
// The others are for requests that are not refused.
std::string reverse_loop_backward_cuda_refusal(const CudaLoopGradient& request);
// Shared memory of a block: what the device must have, at most.
int reverse_loop_backward_cuda_shared_bytes(const CudaLoopGradient& request);
std::int64_t reverse_loop_backward_cuda_scratch(const CudaLoopGradient& request);
int launch_reverse_loop_backward_cuda(const CudaLoopGradient& request);

}  // namespace rohydr

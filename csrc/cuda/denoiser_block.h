// SPDX-License-Identifier: MIT
// One block of the denoiser on CUDA, and its way back, as host code sees them. Pointers are device memory; nothing
// waits for the device, nothing allocates. Functions return a cudaError_t.
#pragma once

#include <cstdint>
#include <string>

#include "reverse_loop.h"  // CudaType

namespace rohydr {

// Shapes as in rohydr_fast/ops/denoiser_block/reference.py; E is the type of the call.
struct CudaBlockRequest {
  std::int64_t samples;
  int tokens, keys, hidden, width, heads;
  int modulation_rows;             // 1, or one for each sample
  const float* x;                  // (B, T, W)
  const float* modulation;         // (rows, 9, W)
  const void* cond_kv;             // (2, B, S, W) E
  const std::uint8_t* token_mask;  // (B, T), or null
  const std::uint8_t* key_mask;    // (B, S), or null
  const void* const* weights;      // on the host: 12 pointers to E in order of use
  void* scratch;                   // denoiser_block_cuda_scratch() bytes, aligned to 256
  float* out;                      // (B, T, W), zeros at tokens that the mask leaves out; of the forward
  // Of the way back:
  const float* out_gradient;   // (B, T, W)
  float* x_gradient;           // (B, T, W)
  float* modulation_gradient;  // (rows, 9, W)
  float* cond_gradient;        // (2, B, S, W), zeros
  float* weight_gradients;     // those of all weights, one after the other
  CudaType type;
  int device;
  void* stream;
};

// What no kernel takes of the request, as a part of a sentence; empty when all is well.
// The others are for requests that are not refused.
std::string denoiser_block_cuda_refusal(const CudaBlockRequest& request);
// Shared memory of a block: what the device must have, at most.
int denoiser_block_cuda_shared_bytes(const CudaBlockRequest& request);
std::int64_t denoiser_block_cuda_scratch(const CudaBlockRequest& request, bool backward);
int launch_denoiser_block_cuda(const CudaBlockRequest& request, bool backward);

}  // namespace rohydr

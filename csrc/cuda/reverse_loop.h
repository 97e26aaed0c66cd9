// SPDX-License-Identifier: MIT
// The reverse loop on CUDA as host code sees it. Pointers are device memory; nothing waits for the device, nothing
// allocates. Functions return a cudaError_t.
#pragma once

#include <cstdint>
#include <string>

namespace rohydr {

constexpr int kLoopModalitiesMax = 3;
constexpr std::uint32_t kPhiloxStepStream = 1;  // Stream.STEP of rohydr_fast/ops/philox

enum class CudaType : int { kFloat32, kBfloat16 };

// One modality's reverse diffusion; shapes as in rohydr_fast/ops/reverse_loop/reference.py.
struct CudaLoopModality {
  std::int64_t samples;
  int tokens, keys, channels, layers, hidden, steps;
  const float* x;                    // (B, T, C) x_K
  float* out;                        // (B, T, C) x_0, zeros at tokens that the mask leaves out
  float* states = nullptr;           // (kept_steps, B, T, C) or null: x_t of steps 1, 2, ..., not at those tokens
  int kept_steps = 0;
  const float* position;             // (T, W)
  const float* block_modulation;     // (K, L, 9, W)
  const float* final_modulation;     // (K, 2, W)
  const float* coefficients;         // (K, 4)
  const std::uint8_t* token_mask;    // (B, T), or null
  const std::uint8_t* key_mask;      // (B, S), or null
  const void* cond_kv;               // (L, 2, B, S, W) in the type of the call
  const void* const* weights;        // on the host: 4 + 12 L pointers in order of use, in the type of the call
  const std::int64_t* sample_ids;    // (B)
  std::uint64_t seed;
  std::uint32_t modality;
  void* scratch;                     // reverse_loop_scratch() bytes, aligned to 256
};

struct CudaLoopRequest {
  const CudaLoopModality* modalities;
  int count;  // up to kLoopModalitiesMax, of the same width and heads
  int width, heads;
  CudaType type;  // of operands: sums, softmax, LayerNorm and x_t are float32 in both
  int device;
  void* stream;
};

// What no kernel takes of the request, as a part of a sentence; empty when all is well.
// The others are for requests that are not refused.
std::string reverse_loop_cuda_refusal(const CudaLoopRequest& request);
// Shared memory of a block: what the device must have, at most.
int reverse_loop_cuda_shared_bytes(const CudaLoopRequest& request);
std::int64_t reverse_loop_cuda_scratch(const CudaLoopModality& modality, int width, CudaType type);
int launch_reverse_loop_cuda(const CudaLoopRequest& request);

}  // namespace rohydr

// SPDX-License-Identifier: MIT
// The operations as bindings.cpp calls them: checked arguments in, results written, on the process's pool of threads.
#pragma once

#include <cstdint>
#include <vector>

#include "packing.h"
#include "plan.h"

namespace rohydr {

// One modality's reverse diffusion; shapes as in rohydr_fast/ops/reverse_loop/reference.py.
template <class T>
struct ReverseLoopRequest {
  PackedWeights<T>* weights;
  Batch batch;
  std::int64_t steps;
  const T* x;                 // (B, T, C)
  const T* position;          // (T, W)
  const T* block_modulation;  // (K, L, 9, W)
  const T* final_modulation;  // (K, 2, W)
  const T* cond_kv;           // (L, 2, B, S, W)
  const T* coefficients;      // (K, 4)
  std::uint64_t seed;
  const std::int64_t* sample_ids;  // (B)
  std::uint32_t modality;
  T* out;  // (B, T, C), zeros at tokens that the mask leaves out
};

template <class T>
struct DenoiserBlockRequest {
  PackedWeights<T>* weights;
  Batch batch;
  const T* x;               // (B, T, W)
  const T* modulation;      // (M, 9, W)
  std::int64_t modulations;  // M: 1 or B
  const T* cond_kv;         // (2, B, S, W)
  T* out;                   // (B, T, W)
};

template <class T>
struct CrossAttentionRequest {
  Batch batch;
  std::int64_t width, heads;
  const T* q;  // (B, T, W)
  const T* k;  // (B, S, W)
  const T* v;  // (B, S, W)
  T* out;      // (B, T, W)
};

template <class T>
void run_reverse_loops(const std::vector<ReverseLoopRequest<T>>& requests, Isa isa, int threads);
template <class T>
void run_denoiser_block(const DenoiserBlockRequest<T>& request, Isa isa, int threads);
template <class T>
void run_cross_attention(const CrossAttentionRequest<T>& request, Isa isa, int threads);

// The kernels of an instruction set; float64 has portable ones only.
template <class T>
const Kernels<T>& kernels_of(Isa isa);

// (query, head) pairs whose softmax left the cheap path, in this process.
std::int64_t softmax_range_hits();

}  // namespace rohydr

// SPDX-License-Identifier: MIT
// The operations as bindings.cpp calls them: checked arguments in, results written, on the process's pool of threads.
#pragma once

#include <cstdint>
#include <vector>

#include "packing.h"
#include "plan.h"
#include "thread_pool.h"

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
  const T* coefficients;      // (K, columns)
  std::int64_t columns;       // 4, or 8 with a history
  std::uint64_t seed;
  const std::int64_t* sample_ids;  // (B)
  std::uint32_t modality;
  T* out;     // (B, T, C), zeros at tokens that the mask leaves out
  std::int64_t kept_steps;  // the last so many steps leave behind what the way back needs:
  T* states;  // (kept_steps, B, T, C): x_t that step i starts from at i - 1, or null
  T* kept;    // kept_elements() of it, activations, or null
};

// The gradients of one modality's reverse diffusion. All outputs are written whole.
template <class T>
struct ReverseLoopBackwardRequest {
  ReverseLoopRequest<T> forward;  // x and out are not read; states are
  const T* out_gradient;          // (B, T, C)
  T* x_gradient;                  // (B, T, C) of x_t of the first step that is given
  T* block_modulation_gradient;   // (K, L, 9, W)
  T* final_modulation_gradient;   // (K, 2, W)
  T* condition_gradient;          // (L, 2, B, S, W)
  std::vector<T*> weight_gradients;  // in order of use, shaped like the weights
};

// Linear layers of equal shape on the same rows.
template <class T>
struct LinearsRequest {
  std::vector<const T*> weights;  // each (columns, depth)
  std::vector<const T*> biases;   // each (columns)
  std::int64_t rows, depth, columns;
  const T* x;  // (rows, depth)
  T* out;      // y_i starts at i matrix_stride, its rows are row_stride apart
  std::int64_t matrix_stride, row_stride;
  bool silu;   // of every y
};

// What blocks read of steps and condition, see rohydr_fast/ops/conditioning; with 3 + L layers the modulation alone.
template <class T>
struct ConditioningRequest {
  std::int64_t rows, inputs, width, layers, condition_rows;
  const T* features;                      // (rows, inputs)
  const T* encoded;                       // (condition_rows, width)
  std::vector<const T*> weights, biases;  // 3 + 2 L, weights as (outputs, inputs)
  T* blocks;                              // (rows, L, 9, width)
  T* final;                               // (rows, 2, width)
  T* cond_kv;                             // (L, 2, condition_rows, width)
};

template <class T>
class ModulationMemo;

// The outputs and inputs of layer i of such a request, whose time embedding reads so many inputs.
struct LayerSize {
  std::int64_t outputs, inputs;
};
inline LayerSize conditioning_layer(std::int64_t i, std::int64_t layers, std::int64_t width, std::int64_t inputs) {
  const std::int64_t times = i < 2 ? 1 : i < 2 + layers ? 9 : 2;
  return {times * width, i == 0 ? inputs : width};
}

// Its way back; every gradient may be null.
template <class T>
struct ConditioningBackwardRequest {
  ConditioningRequest<T> forward;  // without results
  const T* blocks;                 // what comes back, shaped like the results
  const T* final;
  const T* cond_kv;
  T* features_gradient;
  T* encoded_gradient;
  std::vector<T*> weight_gradients, bias_gradients;
};

// The network of Eq. 2 once.
template <class T>
struct DenoiserRequest {
  PackedWeights<T>* weights;
  Batch batch;
  const T* x;                 // (B, T, C)
  const T* position;          // (T, W)
  const T* block_modulation;  // (M, L, 9, W)
  const T* final_modulation;  // (M, 2, W)
  std::int64_t modulations;   // M: 1 or B
  const T* cond_kv;           // (L, 2, B, S, W)
  T* out;                     // (B, T, 2C), zeros at tokens that the mask leaves out
  T* kept;                    // kept_elements() of one step, for the way back, or null
};

template <class T>
struct DenoiserBackwardRequest {
  DenoiserRequest<T> forward;  // out is not used; kept is read
  const T* out_gradient;       // (B, T, 2C)
  T* x_gradient;               // (B, T, C)
  T* block_modulation_gradient;
  T* final_modulation_gradient;
  T* condition_gradient;
  std::vector<T*> weight_gradients;
};

// Eq. 3 of one modality; shapes as in rohydr_fast/ops/diffusion_loss/reference.py. Gradients are those of the loss.
template <class T>
struct DiffusionLossRequest {
  PackedWeights<T>* weights;  // with K and V of the condition
  Batch batch;
  const T* x_0;               // (B, T, C)
  const T* rows;              // (B, kLossColumns)
  Loss loss;
  const T* position;          // (T, W)
  const T* features;          // (M, inputs)
  std::int64_t modulations, inputs;         // M: 1 or B
  std::vector<const T*> layers, layer_biases;  // 3 + L, of the time embedding and of the modulation
  const T* encoded;           // (B, S, W)
  std::uint64_t seed;
  const std::int64_t* sample_ids;  // (B)
  std::uint32_t modality;
  T* out;                          // (1)
  T* encoded_gradient;             // (B, S, W); null, as all gradients, for the loss alone
  std::vector<T*> weight_gradients;  // in order of use, K and V of each layer last
  std::vector<T*> layer_gradients, layer_bias_gradients;
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
struct DenoiserBlockBackwardRequest {
  DenoiserBlockRequest<T> forward;  // out is not used
  const T* out_gradient;            // (B, T, W)
  T* x_gradient;                    // (B, T, W)
  T* modulation_gradient;           // (M, 9, W)
  T* condition_gradient;            // (2, B, S, W)
  std::vector<T*> weight_gradients;
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

// The room that `kept` of a request needs; so much depends on the token mask.
template <class T>
std::int64_t kept_elements(const DenoiserShape& shape, const Batch& batch, std::int64_t steps, Isa isa);

template <class T>
void run_reverse_loops(const std::vector<ReverseLoopRequest<T>>& requests, Isa isa, int threads);
template <class T>
void run_reverse_loops_backward(const std::vector<ReverseLoopBackwardRequest<T>>& requests, Isa isa, int threads);
template <class T>
void run_denoiser(const DenoiserRequest<T>& request, Isa isa, int threads);
template <class T>
void run_denoiser_backward(const DenoiserBackwardRequest<T>& request, Isa isa, int threads);
template <class T>
void run_denoiser_block_backward(const DenoiserBlockBackwardRequest<T>& request, Isa isa, int threads);
template <class T>
void run_denoiser_block(const DenoiserBlockRequest<T>& request, Isa isa, int threads);
template <class T>
void run_diffusion_losses(const std::vector<DiffusionLossRequest<T>>& requests, Isa isa, int threads);
template <class T>
void run_cross_attention(const CrossAttentionRequest<T>& request, Isa isa, int threads);

template <class T>
void run_linears(const LinearsRequest<T>& request, Isa isa, int threads, Threads kind = Threads::kOwn);
// `memo` is that of the request's layers.
template <class T>
void run_conditioning(const ConditioningRequest<T>& request, Isa isa, int threads, Threads kind = Threads::kOwn,
                      ModulationMemo<T>* memo = nullptr);
template <class T>
void run_conditioning_backward(const ConditioningBackwardRequest<T>& request, Isa isa, int threads);

// The kernels of an instruction set; float64 has portable ones only.
template <class T>
const Kernels<T>& kernels_of(Isa isa);

// (query, head) pairs whose softmax left the cheap path, in this process.
std::int64_t softmax_range_hits();

}  // namespace rohydr

// SPDX-License-Identifier: MIT
// The line between the plan (who computes what) and the kernels (one set for each instruction set). Plain structs only:
// this header is compiled with wide instructions too, so it must not define anything that the linker could share.
#pragma once

#include <cstdint>

#include "isa.h"
#include "noise.h"

namespace rohydr {

// Packed W (columns, depth): panels of several vectors of columns, each [depth][panel]; what is left is in panels of
// one vector. The panel at column j starts at data + j * depth. Columns beyond W hold 0, and so does their bias.
template <class T>
struct PackedMatrix {
  const T* data;
  const T* bias;  // (columns rounded up to whole vectors)
  std::int64_t columns;
  std::int64_t depth;
};

template <class T>
struct BlockView {
  PackedMatrix<T> qkv, self_out, q, cross_out, fc1, fc2;  // q and the q of qkv times log2(e) / sqrt(D)
  PackedMatrix<T> k, v;  // of the condition; empty unless they were packed too
};

template <class T>
struct DenoiserView {
  PackedMatrix<T> in, out;  // out: prediction, then v
  const BlockView<T>* blocks;
  std::int64_t layers, channels, width, heads;
};

// W' of every matrix, unscaled and without bias, for the way back.
template <class T>
struct TransposedView {
  PackedMatrix<T> in, out;
  const BlockView<T>* blocks;
};

// Where the gradients of one matrix and its bias are added up, in the panels of PackedMatrix.
template <class T>
struct MatrixGradient {
  T* weight;
  T* bias;
  std::int64_t columns;  // rounded up to whole vectors
  std::int64_t depth;
};

template <class T>
struct BlockGradient {
  MatrixGradient<T> qkv, self_out, q, cross_out, fc1, fc2;
  MatrixGradient<T> k, v;  // as in BlockView
};

template <class T>
struct DenoiserGradient {
  MatrixGradient<T> in, out;
  const BlockGradient<T>* blocks;
  T* block_modulation;  // (K, L, 9, stride)
  T* final_modulation;  // (K, 2, stride)
};

// One sample of a group. Rows are its real tokens, keys its existing condition tokens.
struct Member {
  std::int64_t sample;     // in the batch
  std::int64_t first_row;  // in the group
  std::int64_t rows;
  const std::int32_t* keys;
  std::int64_t key_count;
  std::int64_t key_row;    // of the condition: its first key is there
};

// Samples that one team takes through the whole loop together, so that short clips fill the tiles too.
struct Group {
  const Member* members;
  std::int64_t member_count;
  std::int64_t rows;
  const std::int32_t* token;    // (rows) the token that a row is
  const std::int32_t* counting;  // 0, 1, 2, ... at least as many as rows
  std::int64_t kept_offset;     // where the group's kept activations start, if they are kept
};

// Threads that share a group: each owns some of its rows.
struct Team {
  int index;
  int size;
  void (*meet)(void* barrier);
  void* barrier;
};

// Keys and values of the condition. Those of layer l and a member start at data + l layer_size + key_row stride, and
// value_offset further.
template <class T>
struct Condition {
  const T* data;
  std::int64_t layer_size, value_offset, stride;
};

// Where their gradients are added up, in the same way; layers that share room, one after the other, have a layer_size
// of 0.
template <class T>
struct ConditionGradient {
  T* data;
  std::int64_t layer_size;
};

// One modality's reverse diffusion. `stride` is W rounded up to whole vectors; tables are padded with 0 to it.
template <class T>
struct LoopCall {
  DenoiserView<T> denoiser;
  Condition<T> condition;
  const T* x;                  // (B, T, C) x_K
  T* out;                      // (B, T, C) x_0
  const T* position;           // (T, stride)
  const T* block_modulation;   // (K, L, 9, stride)
  const T* final_modulation;   // (K, 2, stride)
  const double* coefficients;  // (K, columns) c_x, c_p, log beta, log btilde; c_xh, c_hx, c_hp, c_hh
  std::int64_t columns;        // 4, or 8 with a history
  std::int64_t kept_steps;     // the last so many steps are kept:
  T* states;                   // (kept_steps, B, T, C) gets x_t, or null
  T* kept;  // activations for the way back, see `Kernels::kept_size`, or null; teams of one then
  const std::int64_t* sample_ids;
  PhiloxRequest noise;  // seed, modality, stream
  NormalKernel normals;
  std::int64_t samples, tokens, steps;
};

// The way back through all steps that the call holds. x_t of every step comes from the forward; its activations do too,
// or are computed again.
template <class T>
struct BackwardCall {
  LoopCall<T> forward;  // x and out are not read
  TransposedView<T> transposed;
  const T* states;        // (K, B, T, C): x_t that step i starts from at i - 1
  const T* kept;          // activations of the forward, or null: they are computed again
  const T* out_gradient;  // (B, T, C)
  T* x_gradient;          // (B, T, C) of x_K
  ConditionGradient<T> condition_gradient;
};

// The network of Eq. 2 once, at each sample's own step or at one for all.
template <class T>
struct DenoiserCall {
  DenoiserView<T> denoiser;
  Condition<T> condition;
  const T* x;                 // (B, T, C)
  T* out;                     // (B, T, 2C)
  const T* position;          // (T, stride)
  const T* block_modulation;  // (M, L, 9, stride), M 1 or B
  const T* final_modulation;  // (M, 2, stride)
  bool per_sample;            // M is B
  std::int64_t tokens;
  T* kept;  // activations for the way back, see `Kernels::kept_size`, or null; teams of one then
};

template <class T>
struct DenoiserBackwardCall {
  DenoiserCall<T> forward;  // out is not read; where nothing was kept, activations are computed again
  TransposedView<T> transposed;
  const T* out_gradient;  // (B, T, 2C)
  T* x_gradient;          // (B, T, C)
  ConditionGradient<T> condition_gradient;
};

constexpr std::uint32_t kForwardStream = 2, kForwardPreviousStream = 3;  // of rohydr_fast/ops/philox

// What Eq. 3 takes the mean of, see rohydr_fast/ops/diffusion_loss.
enum class Loss { kNll, kKl, kHybrid };

// A sample's row of the table of Eq. 3.
enum LossColumn { kSignal, kNoise, kTargetX0, kTargetEps, kMeanX0, kMeanXt, kDeviation, kCx, kCp, kLogBeta,
                  kLogPosterior, kLossColumns };

// Eq. 3 with its gradients: x_t is drawn, the network runs, and goes back from the loss at once.
template <class T>
struct LossCall {
  DenoiserCall<T> forward;  // x is x_0; condition, out and kept are not read
  TransposedView<T> transposed;
  Loss loss;
  const T* rows;     // (B, kLossColumns)
  const T* encoded;  // E (B, S, W)
  std::int64_t keys;  // S
  const std::int64_t* sample_ids;
  PhiloxRequest noise;  // seed, modality
  NormalKernel normals;
  T scale;              // of the gradients
  double* sums;         // (B) of the loss over each sample's elements
  T* encoded_gradient;  // (B, S, W), written where a key exists; null for the loss alone
};

template <class T>
struct BlockCall {
  DenoiserView<T> denoiser;  // one layer; in and out are not used
  Condition<T> condition;
  const T* x;           // (B, T, W)
  T* out;               // (B, T, W)
  const T* modulation;  // (M, 9, stride), M 1 or B
  bool per_sample;      // M is B
  std::int64_t tokens;
};

template <class T>
struct BlockBackwardCall {
  BlockCall<T> forward;  // out is not read
  TransposedView<T> transposed;
  const T* out_gradient;  // (B, T, W)
  T* x_gradient;          // (B, T, W)
  ConditionGradient<T> condition_gradient;
};

template <class T>
struct AttentionCall {
  const T* q;  // (B, T, W)
  const T* k;  // (B, S, W)
  const T* v;  // (B, S, W)
  T* out;      // (B, T, W)
  std::int64_t tokens, keys, width, heads;
};

constexpr std::int64_t kLinearsColumns = 192;  // a multiple of every panel

// Layers y_i = x W_i' + b_i of equal shape on the same rows, or y_i = silu(...).
template <class T>
struct LinearsCall {
  const T* x;               // (R, depth)
  const T* const* weights;  // each (columns, depth)
  const T* const* biases;   // each (columns)
  T* out;                   // y_i starts at i matrix_stride, its rows are row_stride apart
  std::int64_t depth, columns, matrix_stride, row_stride;
  bool silu;
};

constexpr std::int64_t kLinearColumns = 64;

// The way back through a layer y = x W' + b. x, W and dx have lines of whole vectors, `stride` apart, padded with 0.
template <class T>
struct LinearBackwardCall {
  std::int64_t rows, inputs, outputs, stride;
  const T* dy;  // (rows, outputs), rows dy_stride apart
  std::int64_t dy_stride;
  const T* x;          // (rows, stride)
  T* weight_gradient;  // (outputs, inputs)
  T* bias_gradient;    // (outputs)
  const T* weight;     // (outputs, stride)
  T* x_gradient;       // (rows, stride), added to
};

// Functions on groups return how many (query, head) pairs left the cheap path of softmax. `memory` is the team's
// workspace, aligned to 64 bytes, of at least workspace(...) elements.
template <class T>
struct Kernels {
  int lanes;         // of a vector
  int tile_vectors;  // of a panel of weights
  std::int64_t (*workspace)(const DenoiserView<T>& denoiser, const Group& group, int team_size);
  std::int64_t (*reverse_loop)(const LoopCall<T>& call, const Group& group, const Team& team, T* memory);
  std::int64_t (*denoiser)(const DenoiserCall<T>& call, const Group& group, const Team& team, T* memory);
  std::int64_t (*denoiser_block)(const BlockCall<T>& call, const Group& group, const Team& team, T* memory);
  std::int64_t (*attention_workspace)(std::int64_t rows, std::int64_t width);
  std::int64_t (*cross_attention)(const AttentionCall<T>& call, const Member& member, std::int64_t first,
                                  std::int64_t rows, T* memory);
  double (*fma_peak)(std::int64_t iterations);  // runs a chain of multiply-adds; returns its FLOP
  std::int64_t (*kept_size)(const DenoiserView<T>& denoiser, const Group& group);  // of one step
  std::int64_t (*backward_workspace)(const DenoiserView<T>& denoiser, const Group& group);
  // Adds to `gradient` and to what the call points to.
  std::int64_t (*reverse_loop_backward)(const BackwardCall<T>& call, const DenoiserGradient<T>& gradient,
                                        const Group& group, T* memory);
  std::int64_t (*denoiser_backward)(const DenoiserBackwardCall<T>& call, const DenoiserGradient<T>& gradient,
                                    const Group& group, T* memory);
  std::int64_t (*denoiser_block_backward)(const BlockBackwardCall<T>& call, const DenoiserGradient<T>& gradient,
                                          const Group& group, T* memory);
  std::int64_t (*loss_workspace)(const DenoiserView<T>& denoiser, const Group& group);
  std::int64_t (*diffusion_loss)(const LossCall<T>& call, const DenoiserGradient<T>& gradient, const Group& group,
                                 T* memory);
  std::int64_t (*linears_workspace)(std::int64_t depth);
  // kLinearsColumns columns of one layer, for some rows.
  void (*linears)(const LinearsCall<T>& call, std::int64_t matrix, std::int64_t column, std::int64_t first,
                  std::int64_t rows, T* memory);
  // At most kLinearColumns outputs of a layer; some of its rows.
  void (*linear_weight_gradient)(const LinearBackwardCall<T>& call, std::int64_t first, std::int64_t count);
  void (*linear_bias_gradient)(const LinearBackwardCall<T>& call, std::int64_t first, std::int64_t count);
  void (*linear_input_gradient)(const LinearBackwardCall<T>& call, std::int64_t first, std::int64_t count);
  void (*silu_and_slope)(const T* x, std::int64_t count, T* value, T* slope);
  // out (columns, rows) = in (rows, columns)'.
  void (*transpose)(const T* in, std::int64_t in_stride, std::int64_t rows, std::int64_t columns, T* out,
                    std::int64_t out_stride);
  void (*add_and_clear)(T* to, T* from, std::int64_t count);  // to += from, from = 0
};

template <class T>
const Kernels<T>* kernels_portable();
const Kernels<float>* kernels_avx2();
const Kernels<float>* kernels_avx512();
const Kernels<float>* kernels_neon();

}  // namespace rohydr

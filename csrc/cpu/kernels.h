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
};

template <class T>
struct DenoiserView {
  PackedMatrix<T> in, out;  // out: prediction, then v
  const BlockView<T>* blocks;
  std::int64_t layers, channels, width, heads;
};

// One sample of a group. Rows are its real tokens, keys its existing condition tokens.
struct Member {
  std::int64_t sample;     // in the batch
  std::int64_t first_row;  // in the group
  std::int64_t rows;
  const std::int32_t* keys;
  std::int64_t key_count;
};

// Samples that one team takes through the whole loop together, so that short clips fill the tiles too.
struct Group {
  const Member* members;
  std::int64_t member_count;
  std::int64_t rows;
  const std::int32_t* token;    // (rows) the token that a row is
  const std::int32_t* counting;  // 0, 1, 2, ... at least as many as rows
};

// Threads that share a group: each owns some of its rows.
struct Team {
  int index;
  int size;
  void (*meet)(void* barrier);
  void* barrier;
};

// The condition of a batch. K of layer l and sample b: data + ((2 l) batch + b) keys width; V one `batch` further.
template <class T>
struct Condition {
  const T* data;  // (L, 2, B, S, W)
  std::int64_t batch, keys;
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
  const double* coefficients;  // (K, 4) c_x, c_p, log beta, log btilde
  const std::int64_t* sample_ids;
  PhiloxRequest noise;  // seed, modality, stream
  NormalKernel normals;
  std::int64_t tokens, steps;
};

template <class T>
struct BlockCall {
  DenoiserView<T> denoiser;  // one layer; in and out are not used
  Condition<T> condition;
  const T* x;           // (B, T, W)
  T* out;               // (B, T, W)
  const T* modulation;  // (9, stride), or (B, 9, stride) with modulation_step = 9 stride
  std::int64_t modulation_step;
  std::int64_t tokens;
};

template <class T>
struct AttentionCall {
  const T* q;  // (B, T, W)
  const T* k;  // (B, S, W)
  const T* v;  // (B, S, W)
  T* out;      // (B, T, W)
  std::int64_t tokens, keys, width, heads;
};

// Every function returns how many (query, head) pairs left the cheap path of softmax. `memory` is the team's workspace,
// aligned to 64 bytes, of at least workspace(...) elements.
template <class T>
struct Kernels {
  int lanes;         // of a vector
  int tile_vectors;  // of a panel of weights
  std::int64_t (*workspace)(const DenoiserView<T>& denoiser, const Group& group, int team_size);
  std::int64_t (*reverse_loop)(const LoopCall<T>& call, const Group& group, const Team& team, T* memory);
  std::int64_t (*denoiser_block)(const BlockCall<T>& call, const Group& group, const Team& team, T* memory);
  std::int64_t (*attention_workspace)(std::int64_t rows, std::int64_t width);
  std::int64_t (*cross_attention)(const AttentionCall<T>& call, const Member& member, std::int64_t first,
                                  std::int64_t rows, T* memory);
  double (*fma_peak)(std::int64_t iterations);  // runs a chain of multiply-adds; returns its FLOP
};

template <class T>
const Kernels<T>* kernels_portable();
const Kernels<float>* kernels_avx2();
const Kernels<float>* kernels_avx512();
const Kernels<float>* kernels_neon();

}  // namespace rohydr

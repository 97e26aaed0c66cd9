// SPDX-License-Identifier: MIT
// The launches of one type and width: weights and condition packed, then the loop. Included by the files that compile
// them, each for one type.
#pragma once

#include <algorithm>
#include <cmath>

#include "reverse_loop.cuh"
#include "reverse_loop_launch.h"

namespace rohydr {
namespace {

constexpr int kPackThreads = 256, kPackBlocks = 8;

// Rows of a block, a multiple of 32: the same for all modalities of a launch.
int rows_of(const CudaLoopRequest& r) {
  int tokens = 1;
  for (int i = 0; i < r.count; ++i) {
    if (r.modalities[i].samples > 0) tokens = std::max(tokens, r.modalities[i].tokens);
  }
  return round_up_to(tokens, kPairRows);
}

}  // namespace

template <class E, int W>
int loop_max_tokens() {
  return kMaxPairs<E, W> * kPairRows;
}

template <class E, int W>
int loop_shared_bytes(const CudaLoopRequest& r) {
  int most = 0;
  for (int i = 0; i < r.count; ++i) {
    const ArenaLayout arena = arena_of(r.modalities[i], W, r.type);
    most = std::max(most, SharedLayout<E, W>(rows_of(r), arena.hidden, arena.channels).bytes());
  }
  return most;
}

namespace {

template <class E>
int pack_weights(const CudaLoopModality& m, const ArenaLayout& arena, int heads, uint4* pieces, float* biases,
                 void* stream) {
  PackJobs jobs{};
  jobs.scale = static_cast<float>(1.4426950408889634 / std::sqrt(static_cast<double>(arena.width / heads)));
  jobs.pieces = pieces;
  jobs.biases = biases;
  std::int64_t piece = 0;
  int bias = 0, next = 0;
  const auto flush = [&] {
    const dim3 grid(kPackBlocks, static_cast<unsigned>(jobs.count));
    const int error = ROHYDR_LAUNCH(pack_weights_kernel<E>, grid, dim3(kPackThreads), 0, stream, jobs);
    jobs.count = 0;
    return error;
  };
  const auto add = [&](int columns, int depth, int padded_columns, int padded_depth, int scaled, int channels) {
    PackJob& job = jobs.jobs[jobs.count++];
    job = {m.weights[next], m.weights[next + 1], columns, depth, padded_columns, padded_depth, scaled, channels, piece,
           bias};
    next += 2;
    piece += arena.pieces(padded_columns, padded_depth);
    bias += padded_columns;
    return jobs.count < PackJobs::kMax ? 0 : flush();
  };
  const int w = arena.width;
  int error = add(w, m.channels, w, arena.state_depth(), 0, 0);
  for (int layer = 0; layer < m.layers && error == 0; ++layer) {
    error = add(3 * w, w, 3 * w, w, w, 0);
    if (error == 0) error = add(w, w, w, w, 0, 0);
    if (error == 0) error = add(w, w, w, w, w, 0);
    if (error == 0) error = add(w, w, w, w, 0, 0);
    if (error == 0) error = add(m.hidden, w, arena.hidden, w, 0, 0);
    if (error == 0) error = add(w, m.hidden, w, arena.hidden, 0, 0);
  }
  if (error == 0) error = add(2 * m.channels, w, arena.out_columns(), w, 0, m.channels);
  return error != 0 || jobs.count == 0 ? error : flush();
}

// Packs what a modality's loop reads into its scratch memory.
template <class E>
int prepare(const CudaLoopModality& m, const CudaLoopRequest& r, LoopModality& loop) {
  const ArenaLayout arena = arena_of(m, r.width, r.type);
  const ScratchLayout scratch(arena, m.samples, m.keys);
  char* const memory = static_cast<char*>(m.scratch);
  const auto at = [&](std::int64_t offset) { return static_cast<void*>(memory + offset); };
  uint4* const weights = static_cast<uint4*>(at(scratch.weights));
  float* const biases = static_cast<float*>(at(scratch.biases));
  uint4* const condition = static_cast<uint4*>(at(scratch.condition));
  int* const counts = static_cast<int*>(at(scratch.counts));
  loop = {m.samples,  m.tokens,   m.keys,         m.channels,
          m.layers,   m.hidden,   m.steps,        m.x,
          m.out,      m.position, m.block_modulation, m.final_modulation,
          m.coefficients, m.token_mask, weights,  biases,
          condition,  counts,     {m.seed, m.sample_ids, m.samples, 0, m.modality, 0, kPhiloxStepStream},
          m.states,   m.kept_steps};
  if (m.samples == 0) return 0;
  const int error = pack_weights<E>(m, arena, r.heads, weights, biases, r.stream);
  if (error != 0) return error;
  const ConditionJob job{m.cond_kv, m.key_mask, condition, counts, m.samples, m.keys, r.width, m.layers};
  const dim3 grid(static_cast<unsigned>(m.samples), static_cast<unsigned>(std::max(m.layers, 1)));
  return ROHYDR_LAUNCH(pack_condition_kernel<E>, grid, dim3(kPackThreads), (m.keys + 1) * 4, r.stream, job);
}

}  // namespace

template <class E, int W>
int launch_loop(const CudaLoopRequest& r) {
  LoopParameters parameters{};
  parameters.count = r.count;
  parameters.heads = r.heads;
  std::int64_t samples = 0;
  for (int i = 0; i < r.count; ++i) {
    const int error = prepare<E>(r.modalities[i], r, parameters.modalities[i]);
    if (error != 0) return error;
    samples += r.modalities[i].samples;
  }
  if (samples == 0) return 0;
  const unsigned threads = static_cast<unsigned>(rows_of(r) / kPairRows * 32 * Columns<W>::kWarps);
  return ROHYDR_LAUNCH((reverse_loop_kernel<E, W>), dim3(static_cast<unsigned>(samples)), dim3(threads),
                       (loop_shared_bytes<E, W>(r)), r.stream, parameters);
}

}  // namespace rohydr

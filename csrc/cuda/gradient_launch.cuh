// SPDX-License-Identifier: MIT
// The host's part that the gradients of a block and of the reverse loop share: packing, and sums of weight gradients.
#pragma once

#include <algorithm>
#include <cmath>

#include "gradient_pack.cuh"
#include "gradient_parameters.h"
#include "weight_gradients.cuh"

namespace rohydr {
namespace {

// visit(number, columns, depth) for the matrices of `sizes` in order of use; those of a block are 0 to 5.
template <class Visit>
int for_matrices(const GradientSizes& s, const Visit& visit) {
  int error = s.channels > 0 ? visit(-1, 0, s.width, s.channels) : 0;
  for (int layer = 0; layer < s.layers; ++layer) {
    for (int i = 0; i < kBlockMatrices && error == 0; ++i) {
      error = visit(i, layer, i == 0 ? 3 * s.width : i == 4 ? s.hidden : s.width, i == 5 ? s.hidden : s.width);
    }
  }
  return error == 0 && s.channels > 0 ? visit(kBlockMatrices, s.layers, 2 * s.channels, s.width) : error;
}

// Weights as the forward reads them, or transposed, without biases. `weights`: pointers to each and its bias, in order
// of use.
template <class E>
int pack_matrices(const GradientSizes& s, const void* const* weights, bool transposed, uint4* pieces, float* biases,
                  void* stream) {
  constexpr int kBlocks = 8, kThreads = 256;
  PackJobs jobs{};
  jobs.scale = static_cast<float>(1.4426950408889634 / std::sqrt(static_cast<double>(s.width / s.heads)));
  jobs.pieces = pieces;
  jobs.biases = biases;
  std::int64_t piece = 0;
  int bias = 0;
  const auto flush = [&] {
    const int error = ROHYDR_LAUNCH(pack_weights_kernel<E>, dim3(kBlocks, static_cast<unsigned>(jobs.count)),
                                    dim3(kThreads), 0, stream, jobs);
    jobs.count = 0;
    return error;
  };
  const int error = for_matrices(s, [&](int number, int, int columns, int depth) {
    const int channels = number == kBlockMatrices ? s.channels : 0;
    const int padded_columns = channels > 0 ? s.out_columns() : round_up_to(columns, 16);
    const int padded_depth = round_up_to(depth, 16);
    PackJob& job = jobs.jobs[jobs.count++];
    if (transposed) {
      job = {weights[0], nullptr, columns, depth, padded_depth, padded_columns, 0, channels, piece, 0, true};
    } else {
      const int scaled = number == 0 || number == 2 ? s.width : 0;  // Q
      job = {weights[0], weights[1], columns,  depth, padded_columns, padded_depth,
             scaled,     channels,   piece, bias,  false};
      bias += padded_columns;
    }
    weights += 2;
    piece += s.pieces(padded_columns, padded_depth);
    return jobs.count < PackJobs::kMax ? 0 : flush();
  });
  return error != 0 || jobs.count == 0 ? error : flush();
}

struct GradientInputs {
  std::int64_t samples;
  const void* cond_kv;
  const std::uint8_t *token_mask, *key_mask;
  const void* const* weights;
  float* cond_gradient;
  void* scratch;
};

// Packs what all groups of samples read, and says where it is; with `backward` also what the way back reads.
template <class E>
int prepare_gradient(const GradientSizes& s, const GradientInputs& in, const GradientScratch& scratch, bool backward,
                     GradientParameters& p, void* stream) {
  char* const memory = static_cast<char*>(in.scratch);
  const auto at = [&](std::int64_t offset) { return static_cast<void*>(memory + offset); };
  p = {};
  p.sizes = s;
  p.layout = TapeLayout(s);
  p.shared = GradientShared(s);
  p.all_samples = in.samples;
  p.token_mask = in.token_mask;
  uint4* const weights = static_cast<uint4*>(at(scratch.weights));
  float* const biases = static_cast<float*>(at(scratch.biases));
  uint4* const transposed = static_cast<uint4*>(at(scratch.transposed));
  uint4* const condition = static_cast<uint4*>(at(scratch.condition));
  int* const counts = static_cast<int*>(at(scratch.key_counts));
  int* const list = static_cast<int*>(at(scratch.key_list));
  p.weights = weights, p.biases = biases, p.transposed = transposed, p.condition = condition;
  p.key_counts = counts, p.key_list = list;
  p.row_counts = static_cast<int*>(at(scratch.row_counts));
  p.tape = memory + scratch.tape;
  p.streams = at(scratch.streams);
  p.modulation = static_cast<float*>(at(scratch.modulation));
  p.cond_gradient = in.cond_gradient;
  int error = pack_matrices<E>(s, in.weights, false, weights, biases, stream);
  if (error == 0 && backward) error = pack_matrices<E>(s, in.weights, true, transposed, nullptr, stream);
  if (error != 0) return error;
  const GradientConditionJob job{s, in.samples, in.cond_kv, in.key_mask, condition, counts, list};
  const dim3 grid(static_cast<unsigned>(in.samples), static_cast<unsigned>(std::max(s.layers, 1)));
  return ROHYDR_LAUNCH(pack_gradient_condition_kernel<E>, grid, dim3(256), (s.keys + 1) * 4, stream, job);
}

// Adds the weight gradients of a chunk to `to`, or writes the first.
template <class E>
int sum_weight_gradients(const GradientParameters& p, int parts, float* partial, bool first, float* to, void* stream) {
  const GradientSizes& s = p.sizes;
  const StreamLayout layout{s};
  WeightJobs jobs{};
  jobs.streams = p.streams;
  jobs.row_counts = p.row_counts;
  jobs.samples = p.samples;
  jobs.steps = p.steps;
  jobs.rows = s.rows();
  jobs.parts = parts;
  jobs.weight_count = s.weight_count();
  jobs.to = partial;
  int tiles = 0;
  const auto flush = [&] {
    const dim3 grid(static_cast<unsigned>(tiles), static_cast<unsigned>(jobs.count), static_cast<unsigned>(parts));
    const int error = ROHYDR_LAUNCH(weight_gradient_kernel<E>, grid, dim3(kWeightThreads), WeightTile<E>::kBytes,
                                    stream, jobs);
    jobs.count = 0;
    tiles = 0;
    return error;
  };
  std::int64_t place = 0;
  int error = for_matrices(s, [&](int number, int layer, int columns, int depth) {
    const bool last = number == kBlockMatrices;
    const std::int64_t x = number < 0 ? layout.x_in() : last ? layout.x_out() : layout.x(layer, number);
    const std::int64_t y = number < 0 ? layout.y_in() : last ? layout.y_out() : layout.y(layer, number);
    const int padded_columns = last ? s.out_columns() : round_up_to(columns, 16), padded_depth = round_up_to(depth, 16);
    const std::int64_t weight = place, bias = place + static_cast<std::int64_t>(columns) * depth;
    place = bias + columns;
    jobs.jobs[jobs.count++] = {x, y, weight, bias, columns, depth, padded_columns, padded_depth, last ? s.channels : 0};
    const auto count = [](int size) { return (size + kGradientTile - 1) / kGradientTile; };
    tiles = std::max(tiles, count(padded_columns) * count(padded_depth));
    return jobs.count < WeightJobs::kMax ? 0 : flush();
  });
  if (error == 0 && jobs.count > 0) error = flush();
  if (error != 0) return error;
  const std::int64_t size = jobs.weight_count;
  return ROHYDR_LAUNCH(add_parts_kernel, dim3(static_cast<unsigned>((size + 255) / 256)), dim3(256), 0, stream,
                       partial, parts, size, first ? 1 : 0, to);
}

int sum_modulation(const ModulationSum& sum, int steps, void* stream) {
  const dim3 grid(static_cast<unsigned>((sum.blocks + sum.last + 255) / 256), static_cast<unsigned>(steps));
  return ROHYDR_LAUNCH(modulation_sum_kernel, grid, dim3(256), 0, stream, sum);
}

}  // namespace
}  // namespace rohydr

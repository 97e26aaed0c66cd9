// SPDX-License-Identifier: MIT
// What the calls share: tables padded to whole vectors, requests made ready for the kernels, memory of the teams.
#pragma once

#include <algorithm>
#include <memory>
#include <vector>

#include "calls.h"

namespace rohydr {

constexpr double kFlopOfThread = 4e6;  // less is not worth waking another thread for
constexpr std::uint32_t kStepStream = 1;  // Stream.STEP of rohydr_fast/ops/philox

void count_range_hits(std::int64_t hits);

enum class Purpose { kTeam, kGradient, kModulation };

// Memory number so and so of the calling thread's runs, kept for the next call.
inline Arena& kept_arena(Purpose purpose, int number) {
  thread_local std::vector<std::unique_ptr<Arena>> all[3];
  std::vector<std::unique_ptr<Arena>>& arenas = all[static_cast<int>(purpose)];
  while (arenas.size() <= static_cast<std::size_t>(number)) arenas.push_back(std::make_unique<Arena>());
  return *arenas[static_cast<std::size_t>(number)];
}

template <class T>
T* team_memory(int number, std::int64_t count) {
  Arena& arena = kept_arena(Purpose::kTeam, number);
  return static_cast<T*>(arena.reserve(static_cast<std::size_t>(count) * sizeof(T)));
}

// A table of rows of W, padded with 0 to whole vectors; the table itself where it needs no padding.
template <class T>
class PaddedRows {
 public:
  PaddedRows(const T* table, std::int64_t rows, std::int64_t width, std::int64_t stride) : data_(table) {
    if (width == stride) return;
    copy_.resize(static_cast<std::size_t>(rows * stride));
    for (std::int64_t row = 0; row < rows; ++row) {
      std::copy_n(table + row * width, width, copy_.data() + row * stride);
    }
    data_ = copy_.data();
  }
  const T* data() const { return data_; }

 private:
  std::vector<T> copy_;
  const T* data_;
};

inline double group_cost(const DenoiserShape& shape, const Group& group) {
  const double width = static_cast<double>(shape.width);
  double cost = static_cast<double>(group.rows) * width * (12 * width + 4.0 * static_cast<double>(shape.hidden));
  for (std::int64_t i = 0; i < group.member_count; ++i) {
    const Member& member = group.members[i];
    cost += 6.0 * static_cast<double>(member.rows) * static_cast<double>(member.rows + member.key_count) * width;
  }
  return cost * static_cast<double>(shape.layers);
}

// The largest workspace of the tasks for a team of `size`, in every team's arena.
template <class T, class Size>
std::vector<T*> reserve_teams(const std::vector<Task>& tasks, int teams, const Size& size_of) {
  std::int64_t most = 0;
  for (const Task& task : tasks) most = std::max(most, size_of(task));
  std::vector<T*> memory;
  for (int i = 0; i < teams; ++i) memory.push_back(team_memory<T>(i, most));
  return memory;
}

// The gradients of weights are added up in so many units, see calls_backward.cpp.
constexpr std::int64_t kUnits = 8;

// Rows of a group on the way back: the same whatever the number of threads, also in a forward that keeps activations
// for it. Gradients of wide weights leave the cache between one group and the next, so their groups are larger.
inline std::int64_t backward_rows(const DenoiserShape& shape, const Batch& batch) {
  return std::clamp<std::int64_t>(count_rows(batch) / kUnits, 64, shape.width >= 96 ? 200 : 64);
}

// Gives every group its place among the kept activations; returns what they need together.
template <class T>
std::int64_t place_kept(const Kernels<T>& kernels, const DenoiserView<T>& denoiser, std::int64_t steps,
                        Grouping& grouping) {
  std::int64_t used = 0;
  for (Group& group : grouping.groups()) {
    group.kept_offset = used;
    used += steps * kernels.kept_size(denoiser, group);
  }
  return used;
}

// Keys and values as Python passes them, (L, 2, B, S, W), and their gradients.
template <class T>
Condition<T> condition_of(const T* cond_kv, const Batch& batch, std::int64_t width) {
  const std::int64_t half = batch.samples * batch.keys * width;
  return {cond_kv, 2 * half, half, width};
}
template <class T>
ConditionGradient<T> cleared_condition_gradient(T* data, const Batch& batch, std::int64_t layers, std::int64_t width) {
  const std::int64_t layer_size = 2 * batch.samples * batch.keys * width;
  std::fill_n(data, layers * layer_size, T(0));
  return {data, layer_size};
}

template <class T>
struct PreparedLoop {
  PreparedLoop(const ReverseLoopRequest<T>& r, const Kernels<T>& kernels, std::int64_t rows_of_group,
               NormalKernel normals, bool transposed = false)
      : weights(r.weights->current(kernels, transposed)),
        stride(round_up(r.weights->shape().width, kernels.lanes)),
        position(r.position, r.batch.tokens, r.weights->shape().width, stride),
        block_modulation(r.block_modulation, r.steps * r.weights->shape().layers * 9, r.weights->shape().width, stride),
        final_modulation(r.final_modulation, r.steps * 2, r.weights->shape().width, stride),
        coefficients(r.coefficients, r.coefficients + r.columns * r.steps),
        grouping(r.batch, rows_of_group, false) {
    call.denoiser = weights->view;
    call.condition = condition_of(r.cond_kv, r.batch, r.weights->shape().width);
    call.x = r.x;
    call.out = r.out;
    call.kept_steps = r.kept_steps;
    call.states = r.states;
    call.kept = r.kept;
    if (r.kept != nullptr) place_kept(kernels, call.denoiser, r.kept_steps, grouping);
    call.position = position.data();
    call.block_modulation = block_modulation.data();
    call.final_modulation = final_modulation.data();
    call.coefficients = coefficients.data();
    call.columns = r.columns;
    call.sample_ids = r.sample_ids;
    call.noise = {r.seed, nullptr, 0, 0, r.modality, 0, kStepStream};
    call.normals = normals;
    call.samples = r.batch.samples;
    call.tokens = r.batch.tokens;
    call.steps = r.steps;
  }

  std::shared_ptr<const PackedArena<T>> weights;
  std::int64_t stride;
  PaddedRows<T> position, block_modulation, final_modulation;
  std::vector<double> coefficients;
  Grouping grouping;
  LoopCall<T> call{};
};

// A single pass through the network, or through a block.
template <class T>
struct PreparedDenoiser {
  PreparedDenoiser(const DenoiserRequest<T>& r, const Kernels<T>& kernels, std::int64_t rows, bool transposed = false)
      : weights(r.weights->current(kernels, transposed)),
        stride(round_up(r.weights->shape().width, kernels.lanes)),
        position(r.position, r.batch.tokens, r.weights->shape().width, stride),
        block_modulation(r.block_modulation, r.modulations * r.weights->shape().layers * 9, r.weights->shape().width,
                         stride),
        final_modulation(r.final_modulation, r.modulations * 2, r.weights->shape().width, stride),
        grouping(r.batch, rows, false),
        call{weights->view, condition_of(r.cond_kv, r.batch, r.weights->shape().width), r.x, r.out, position.data(),
             block_modulation.data(), final_modulation.data(), r.modulations > 1, r.batch.tokens, r.kept} {
    if (r.kept != nullptr) place_kept(kernels, call.denoiser, 1, grouping);
  }
  PreparedDenoiser(const PreparedDenoiser&) = delete;

  std::shared_ptr<const PackedArena<T>> weights;
  std::int64_t stride;
  PaddedRows<T> position, block_modulation, final_modulation;
  Grouping grouping;
  DenoiserCall<T> call;
};

template <class T>
struct PreparedBlock {
  PreparedBlock(const DenoiserBlockRequest<T>& r, const Kernels<T>& kernels, std::int64_t rows, bool transposed = false)
      : weights(r.weights->current(kernels, transposed)),
        stride(round_up(r.weights->shape().width, kernels.lanes)),
        modulation(r.modulation, r.modulations * 9, r.weights->shape().width, stride),
        grouping(r.batch, rows, false),
        call{weights->view, condition_of(r.cond_kv, r.batch, r.weights->shape().width), r.x, r.out, modulation.data(),
             r.modulations > 1, r.batch.tokens} {}
  PreparedBlock(const PreparedBlock&) = delete;

  std::shared_ptr<const PackedArena<T>> weights;
  std::int64_t stride;
  PaddedRows<T> modulation;
  Grouping grouping;
  BlockCall<T> call;
};

}  // namespace rohydr

// SPDX-License-Identifier: MIT
// Gradients of weights are sums over samples. To give the same bits for any number of threads they are added up in a
// fixed number of units, each of which takes its groups in order, and the units are added in order.
#include <algorithm>
#include <memory>
#include <numeric>

#include "prepared.h"

namespace rohydr {
namespace {

// Room for the gradients of one unit, and the views into it.
template <class T>
class UnitGradient {
 public:
  // `tables` rows of modulation: K of a loop, M of a single pass.
  UnitGradient(const DenoiserShape& shape, int lanes, std::int64_t tables, std::int64_t stride)
      : lanes_(lanes), blocks_(static_cast<std::size_t>(shape.layers)) {
    const auto [layers, channels, width, heads, hidden] = shape;
    for (int pass = 0; pass < 2; ++pass) {  // sizes first, then places
      used_ = 0;
      if (channels > 0) gradient.in = take(width, channels);
      for (BlockGradient<T>& block : blocks_) {
        block.qkv = take(3 * width, width);
        block.self_out = take(width, width);
        block.q = take(width, width);
        block.cross_out = take(width, width);
        block.fc1 = take(hidden, width);
        block.fc2 = take(width, hidden);
      }
      if (channels > 0) gradient.out = take(2 * channels, width);
      gradient.block_modulation = take(tables * layers * 9 * stride);
      gradient.final_modulation = take(tables * 2 * stride);
      if (pass == 0) {
        memory_.reserve(static_cast<std::size_t>(used_) * sizeof(T));
        std::fill_n(static_cast<T*>(memory_.reserve(0)), used_, T(0));
      }
    }
    gradient.blocks = blocks_.data();
  }
  UnitGradient(const UnitGradient&) = delete;

  void add(const UnitGradient& other) {
    T* const to = static_cast<T*>(memory_.reserve(0));
    const T* const from = static_cast<const T*>(const_cast<Arena&>(other.memory_).reserve(0));
    for (std::int64_t i = 0; i < used_; ++i) to[i] += from[i];
  }

  DenoiserGradient<T> gradient{};

 private:
  T* take(std::int64_t count) {
    T* const base = static_cast<T*>(memory_.reserve(0));
    T* const place = base == nullptr ? nullptr : base + used_;
    used_ += round_up(count, lanes_);
    return place;
  }
  MatrixGradient<T> take(std::int64_t columns, std::int64_t depth) {
    const std::int64_t padded = round_up(columns, lanes_);
    T* const weight = take(padded * depth);
    return {weight, take(padded), padded, depth};
  }

  int lanes_;
  std::vector<BlockGradient<T>> blocks_;
  Arena memory_;
  std::int64_t used_ = 0;
};

// W (columns, depth) and its bias from panels.
template <class T>
class Exporter {
 public:
  Exporter(const Kernels<T>& kernels, const std::vector<T*>& targets)
      : lanes_(kernels.lanes), whole_(static_cast<std::int64_t>(kernels.lanes) * kernels.tile_vectors),
        targets_(targets) {}

  void matrix(const MatrixGradient<T>& from, std::int64_t columns, std::int64_t depth) {
    T* const weight = targets_[next_++];
    for (std::int64_t start = 0; start < columns;) {
      const std::int64_t panel = start + whole_ <= from.columns ? whole_ : lanes_;
      const T* const lines = from.weight + start * depth;
      for (std::int64_t c = 0; c < std::min(panel, columns - start); ++c) {
        for (std::int64_t k = 0; k < depth; ++k) weight[(start + c) * depth + k] = lines[k * panel + c];
      }
      start += panel;
    }
    std::copy_n(from.bias, columns, targets_[next_++]);
  }

 private:
  const std::int64_t lanes_, whole_;
  const std::vector<T*>& targets_;
  std::size_t next_ = 0;
};

template <class T>
void export_rows(const T* from, std::int64_t rows, std::int64_t width, std::int64_t stride, T* to) {
  for (std::int64_t row = 0; row < rows; ++row) std::copy_n(from + row * stride, width, to + row * width);
}

// The groups of one request shared out to units, and the gradients of each.
template <class T>
class UnitSums {
 public:
  UnitSums(const DenoiserShape& shape, const Kernels<T>& kernels, const Grouping& grouping, std::int64_t tables)
      : kernels_(kernels), shape_(shape), stride_(round_up(shape.width, kernels.lanes)), tables_(tables) {
    const std::size_t count = std::min<std::size_t>(kUnits, grouping.groups().size());
    groups_.resize(count);
    costs_.resize(count);
    for (const Group& group : grouping.groups()) {
      const auto unit = static_cast<std::size_t>(std::min_element(costs_.begin(), costs_.end()) - costs_.begin());
      groups_[unit].push_back(&group);
      costs_[unit] += group_cost(shape, group);
    }
    for (std::size_t i = 0; i < std::max<std::size_t>(count, 1); ++i) {  // without any token: zeros all the same
      gradients_.push_back(std::make_unique<UnitGradient<T>>(shape, kernels.lanes, tables, stride_));
    }
  }

  std::size_t count() const { return groups_.size(); }
  const std::vector<const Group*>& groups(std::size_t unit) const { return groups_[unit]; }
  double cost(std::size_t unit) const { return costs_[unit]; }
  const DenoiserGradient<T>& gradient(std::size_t unit) const { return gradients_[unit]->gradient; }

  // Adds the units up and writes the sums out; `final_modulation` may be null for a block.
  void finish(const std::vector<T*>& weights, T* block_modulation, T* final_modulation) {
    for (std::size_t i = 1; i < gradients_.size(); ++i) gradients_[0]->add(*gradients_[i]);
    const DenoiserGradient<T>& sum = gradient(0);
    const auto [layers, channels, width, heads, hidden] = shape_;
    Exporter<T> exporter(kernels_, weights);
    if (channels > 0) exporter.matrix(sum.in, width, channels);
    for (std::int64_t layer = 0; layer < layers; ++layer) {
      const BlockGradient<T>& block = sum.blocks[layer];
      exporter.matrix(block.qkv, 3 * width, width);
      exporter.matrix(block.self_out, width, width);
      exporter.matrix(block.q, width, width);
      exporter.matrix(block.cross_out, width, width);
      exporter.matrix(block.fc1, hidden, width);
      exporter.matrix(block.fc2, width, hidden);
    }
    if (channels > 0) exporter.matrix(sum.out, 2 * channels, width);
    export_rows(sum.block_modulation, tables_ * layers * 9, width, stride_, block_modulation);
    if (final_modulation != nullptr) export_rows(sum.final_modulation, tables_ * 2, width, stride_, final_modulation);
  }

 private:
  const Kernels<T>& kernels_;
  DenoiserShape shape_;
  std::int64_t stride_, tables_;
  std::vector<std::vector<const Group*>> groups_;
  std::vector<double> costs_;
  std::vector<std::unique_ptr<UnitGradient<T>>> gradients_;
};

// Runs `run(owner, group, gradient, memory)` for every group, the units of all owners shared out to the threads.
template <class T, class WorkspaceOf, class Run>
void run_units(const std::vector<UnitSums<T>*>& owners, int threads, const WorkspaceOf& workspace_of, const Run& run) {
  std::vector<Task> tasks;
  std::vector<std::pair<std::size_t, std::size_t>> places;  // (owner, unit)
  for (std::size_t owner = 0; owner < owners.size(); ++owner) {
    for (std::size_t unit = 0; unit < owners[owner]->count(); ++unit) {
      const auto number = static_cast<int>(places.size());
      tasks.push_back({owners[owner]->groups(unit).front(), number, owners[owner]->cost(unit)});
      places.emplace_back(owner, unit);
    }
  }
  std::vector<T*> memory;
  run_tasks(
      tasks, threads, 1,
      [&](int teams, int) {
        memory = reserve_teams<T>(tasks, teams, [&](const Task& task) {
          const auto [owner, unit] = places[static_cast<std::size_t>(task.owner)];
          std::int64_t most = 0;
          for (const Group* group : owners[owner]->groups(unit)) most = std::max(most, workspace_of(owner, *group));
          return most;
        });
      },
      [&](const Task& task, const Team&, int number) {
        const auto [owner, unit] = places[static_cast<std::size_t>(task.owner)];
        T* const place = memory[static_cast<std::size_t>(number)];
        for (const Group* group : owners[owner]->groups(unit)) {
          count_range_hits(run(owner, *group, owners[owner]->gradient(unit), place));
        }
      });
}

template <class T>
struct PreparedBackward {
  PreparedBackward(const ReverseLoopBackwardRequest<T>& r, const Kernels<T>& kernels, NormalKernel normals)
      : loop(r.forward, kernels, backward_rows(r.forward.weights->shape(), r.forward.batch), normals, true),
        sums(r.forward.weights->shape(), kernels, loop.grouping, r.forward.steps) {
    const Batch& batch = r.forward.batch;
    const DenoiserShape& shape = r.forward.weights->shape();
    std::fill_n(r.x_gradient, batch.samples * batch.tokens * shape.channels, T(0));
    std::fill_n(r.condition_gradient, shape.layers * 2 * batch.samples * batch.keys * shape.width, T(0));
    call = {loop.call,      loop.weights->transposed, r.forward.states,    r.forward.kept,
            r.out_gradient, r.x_gradient,             r.condition_gradient};
  }

  PreparedLoop<T> loop;
  UnitSums<T> sums;
  BackwardCall<T> call{};
};

}  // namespace

template <class T>
void run_reverse_loops_backward(const std::vector<ReverseLoopBackwardRequest<T>>& requests, Isa isa, int threads) {
  const Kernels<T>& kernels = kernels_of<T>(isa);
  std::vector<std::unique_ptr<PreparedBackward<T>>> loops;
  std::vector<UnitSums<T>*> sums;
  for (const ReverseLoopBackwardRequest<T>& r : requests) {
    loops.push_back(std::make_unique<PreparedBackward<T>>(r, kernels, normal_kernel(isa)));
    sums.push_back(&loops.back()->sums);
  }
  run_units<T>(
      sums, threads,
      [&](std::size_t owner, const Group& group) {
        return kernels.backward_workspace(loops[owner]->call.forward.denoiser, group);
      },
      [&](std::size_t owner, const Group& group, const DenoiserGradient<T>& gradient, T* memory) {
        return kernels.reverse_loop_backward(loops[owner]->call, gradient, group, memory);
      });
  for (std::size_t i = 0; i < requests.size(); ++i) {
    const ReverseLoopBackwardRequest<T>& r = requests[i];
    loops[i]->sums.finish(r.weight_gradients, r.block_modulation_gradient, r.final_modulation_gradient);
  }
}

template <class T>
void run_denoiser_backward(const DenoiserBackwardRequest<T>& r, Isa isa, int threads) {
  const Kernels<T>& kernels = kernels_of<T>(isa);
  const DenoiserShape& shape = r.forward.weights->shape();
  const PreparedDenoiser<T> prepared(r.forward, kernels, backward_rows(shape, r.forward.batch), true);
  const Batch& batch = r.forward.batch;
  std::fill_n(r.x_gradient, batch.samples * batch.tokens * shape.channels, T(0));
  std::fill_n(r.condition_gradient, shape.layers * 2 * batch.samples * batch.keys * shape.width, T(0));
  UnitSums<T> sums(shape, kernels, prepared.grouping, r.forward.modulations);
  const DenoiserBackwardCall<T> call{prepared.call, prepared.weights->transposed, r.out_gradient, r.x_gradient,
                                     r.condition_gradient};
  run_units<T>(
      {&sums}, threads,
      [&](std::size_t, const Group& group) { return kernels.backward_workspace(call.forward.denoiser, group); },
      [&](std::size_t, const Group& group, const DenoiserGradient<T>& gradient, T* memory) {
        return kernels.denoiser_backward(call, gradient, group, memory);
      });
  sums.finish(r.weight_gradients, r.block_modulation_gradient, r.final_modulation_gradient);
}

template <class T>
void run_denoiser_block_backward(const DenoiserBlockBackwardRequest<T>& r, Isa isa, int threads) {
  const Kernels<T>& kernels = kernels_of<T>(isa);
  const std::int64_t rows = backward_rows(r.forward.weights->shape(), r.forward.batch);
  const PreparedBlock<T> prepared(r.forward, kernels, rows, true);
  const Batch& batch = r.forward.batch;
  const std::int64_t width = r.forward.weights->shape().width;
  std::fill_n(r.x_gradient, batch.samples * batch.tokens * width, T(0));
  std::fill_n(r.condition_gradient, 2 * batch.samples * batch.keys * width, T(0));
  UnitSums<T> sums(r.forward.weights->shape(), kernels, prepared.grouping, r.forward.modulations);
  const BlockBackwardCall<T> call{prepared.call, prepared.weights->transposed, r.out_gradient, r.x_gradient,
                                  r.condition_gradient};
  run_units<T>(
      {&sums}, threads,
      [&](std::size_t, const Group& group) { return kernels.backward_workspace(call.forward.denoiser, group); },
      [&](std::size_t, const Group& group, const DenoiserGradient<T>& gradient, T* memory) {
        return kernels.denoiser_block_backward(call, gradient, group, memory);
      });
  sums.finish(r.weight_gradients, r.modulation_gradient, nullptr);
}

template void run_reverse_loops_backward<float>(const std::vector<ReverseLoopBackwardRequest<float>>&, Isa, int);
template void run_reverse_loops_backward<double>(const std::vector<ReverseLoopBackwardRequest<double>>&, Isa, int);
template void run_denoiser_backward<float>(const DenoiserBackwardRequest<float>&, Isa, int);
template void run_denoiser_backward<double>(const DenoiserBackwardRequest<double>&, Isa, int);
template void run_denoiser_block_backward<float>(const DenoiserBlockBackwardRequest<float>&, Isa, int);
template void run_denoiser_block_backward<double>(const DenoiserBlockBackwardRequest<double>&, Isa, int);

}  // namespace rohydr

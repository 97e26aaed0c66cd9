// SPDX-License-Identifier: MIT
// Gradients of weights are sums over samples. To give the same bits for any number of threads they are added up in a
// fixed number of units, each of which takes its groups in order, and the units are added in order.
#pragma once

#include <algorithm>
#include <memory>
#include <mutex>
#include <vector>

#include "prepared.h"

namespace rohydr {

// Room for the gradients of one unit, and the views into it.
template <class T>
class UnitGradient {
 public:
  // `tables` rows of modulation: K of a loop. `condition`: of K and V too. The memory's content is anything.
  UnitGradient(const DenoiserShape& shape, bool condition, int lanes, std::int64_t tables, std::int64_t stride,
               Arena& memory)
      : lanes_(lanes), memory_(memory), blocks_(static_cast<std::size_t>(shape.layers)) {
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
        if (condition) block.k = take(width, width);
        if (condition) block.v = take(width, width);
      }
      if (channels > 0) gradient.out = take(2 * channels, width);
      gradient.block_modulation = take(tables * layers * 9 * stride);
      gradient.final_modulation = take(tables * 2 * stride);
      if (pass == 0) memory_.reserve(static_cast<std::size_t>(used_) * sizeof(T));
    }
    gradient.blocks = blocks_.data();
  }
  UnitGradient(const UnitGradient&) = delete;

  void clear() { std::fill_n(data(), used_, T(0)); }

  // Adds the other and clears it.
  void take_from(UnitGradient& other, const Kernels<T>& kernels) { kernels.add_and_clear(data(), other.data(), used_); }

  DenoiserGradient<T> gradient{};

 private:
  T* data() { return static_cast<T*>(memory_.reserve(0)); }
  T* take(std::int64_t count) {
    T* const base = data();
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
  Arena& memory_;
  std::vector<BlockGradient<T>> blocks_;
  std::int64_t used_ = 0;
};

// W (columns, depth) and its bias from panels.
template <class T>
class Exporter {
 public:
  Exporter(const Kernels<T>& kernels, const std::vector<T*>& targets)
      : kernels_(kernels), lanes_(kernels.lanes),
        whole_(static_cast<std::int64_t>(kernels.lanes) * kernels.tile_vectors), targets_(targets) {}

  void matrix(const MatrixGradient<T>& from, std::int64_t columns, std::int64_t depth) {
    T* const weight = targets_[next_++];
    for (std::int64_t start = 0; start < columns;) {
      const std::int64_t panel = start + whole_ <= from.columns ? whole_ : lanes_;
      kernels_.transpose(from.weight + start * depth, panel, depth, std::min(panel, columns - start),
                         weight + start * depth, depth);
      start += panel;
    }
    std::copy_n(from.bias, columns, targets_[next_++]);
  }

 private:
  const Kernels<T>& kernels_;
  const std::int64_t lanes_, whole_;
  const std::vector<T*>& targets_;
  std::size_t next_ = 0;
};

template <class T>
void export_rows(const T* from, std::int64_t rows, std::int64_t width, std::int64_t stride, T* to) {
  for (std::int64_t row = 0; row < rows; ++row) std::copy_n(from + row * stride, width, to + row * width);
}

// The groups of one request shared out to units, and the sum of their gradients. A unit is added as soon as those before
// it are, and its memory goes to the next one that starts: one thread touches that of two.
template <class T>
class UnitSums {
 public:
  // `tables` rows of modulation that groups share: K of a loop, 1 of a single pass, 0 if each sample has its own, which
  // `finish` does not see. `number` tells requests of one call apart.
  UnitSums(const PackedWeights<T>& weights, const Kernels<T>& kernels, const Grouping& grouping, std::int64_t tables,
           int number = 0)
      : kernels_(kernels), shape_(weights.shape()), condition_(weights.condition()),
        stride_(round_up(shape_.width, kernels.lanes)), tables_(tables) {
    const std::size_t count = std::min<std::size_t>(kUnits, grouping.groups().size());
    groups_.resize(count);
    costs_.resize(count);
    finished_.resize(count);
    for (const Group& group : grouping.groups()) {
      const auto unit = static_cast<std::size_t>(std::min_element(costs_.begin(), costs_.end()) - costs_.begin());
      groups_[unit].push_back(&group);
      costs_[unit] += group_cost(shape_, group);
    }
    for (std::size_t i = 0; i < std::max<std::size_t>(count, 1); ++i) {  // without any token: zeros all the same
      Arena& memory = kept_arena(Purpose::kGradient, number * static_cast<int>(kUnits) + static_cast<int>(i));
      unused_.push_back(std::make_unique<UnitGradient<T>>(shape_, condition_, kernels.lanes, tables, stride_, memory));
    }
    std::reverse(unused_.begin(), unused_.end());
  }

  std::size_t count() const { return groups_.size(); }
  const std::vector<const Group*>& groups(std::size_t unit) const { return groups_[unit]; }
  double cost(std::size_t unit) const { return costs_[unit]; }

  // Zeros, for a unit that starts.
  std::unique_ptr<UnitGradient<T>> start() {
    std::unique_ptr<UnitGradient<T>> gradient;
    {
      const std::lock_guard<std::mutex> lock(mutex_);
      std::vector<std::unique_ptr<UnitGradient<T>>>& from = cleared_.empty() ? unused_ : cleared_;
      gradient = std::move(from.back());
      from.pop_back();
      if (&from == &cleared_) return gradient;
    }
    gradient->clear();
    return gradient;
  }

  void end(std::size_t unit, std::unique_ptr<UnitGradient<T>> gradient) {
    const std::lock_guard<std::mutex> lock(mutex_);
    finished_[unit] = std::move(gradient);
    for (; added_ < count() && finished_[added_] != nullptr; ++added_) {
      if (sum_ == nullptr) {
        sum_ = std::move(finished_[added_]);
      } else {
        sum_->take_from(*finished_[added_], kernels_);
        cleared_.push_back(std::move(finished_[added_]));
      }
    }
  }

  // Writes the sums out, after the last unit's end. `final_modulation` may be null for a block, both for tables of 0.
  void finish(const std::vector<T*>& weights, T* block_modulation, T* final_modulation) {
    if (sum_ == nullptr) sum_ = start();
    const DenoiserGradient<T>& sum = sum_->gradient;
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
    for (std::int64_t layer = 0; condition_ && layer < layers; ++layer) {
      exporter.matrix(sum.blocks[layer].k, width, width);
      exporter.matrix(sum.blocks[layer].v, width, width);
    }
    export_rows(sum.block_modulation, tables_ * layers * 9, width, stride_, block_modulation);
    if (final_modulation != nullptr) export_rows(sum.final_modulation, tables_ * 2, width, stride_, final_modulation);
  }

 private:
  const Kernels<T>& kernels_;
  DenoiserShape shape_;
  bool condition_;
  std::int64_t stride_, tables_;
  std::vector<std::vector<const Group*>> groups_;
  std::vector<double> costs_;
  std::mutex mutex_;  // of what follows
  std::vector<std::unique_ptr<UnitGradient<T>>> unused_, cleared_, finished_;
  std::unique_ptr<UnitGradient<T>> sum_;
  std::size_t added_ = 0;
};

// Where the gradients of each sample's own modulation are added up: the result itself where it needs no padding.
template <class T>
class SampleRows {
 public:
  SampleRows(T* result, std::int64_t rows, std::int64_t width, std::int64_t stride)
      : result_(result), rows_(rows), width_(width), stride_(stride) {
    if (width != stride) padded_.resize(static_cast<std::size_t>(rows * stride));
    if (width == stride) std::fill_n(result, rows * width, T(0));
  }
  T* data() { return width_ == stride_ ? result_ : padded_.data(); }
  void finish() {
    if (width_ != stride_) export_rows(padded_.data(), rows_, width_, stride_, result_);
  }

 private:
  T* result_;
  std::int64_t rows_, width_, stride_;
  std::vector<T> padded_;
};

// The gradients of a pass's modulation where each sample has its own; otherwise units add them up.
template <class T>
class OwnModulation {
 public:
  // `modulations`: M of the request.
  OwnModulation(std::int64_t modulations, const DenoiserShape& shape, std::int64_t stride, T* blocks, T* last)
      : count_(modulations > 1 ? modulations : 0), blocks_(blocks, count_ * shape.layers * 9, shape.width, stride),
        last_(last, count_ * 2, shape.width, stride) {}

  void place(DenoiserGradient<T>& gradient) {
    if (count_ == 0) return;
    gradient.block_modulation = blocks_.data();
    gradient.final_modulation = last_.data();
  }
  void finish() {
    blocks_.finish();
    last_.finish();
  }

 private:
  std::int64_t count_;
  SampleRows<T> blocks_, last_;
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
        std::unique_ptr<UnitGradient<T>> gradient = owners[owner]->start();
        for (const Group* group : owners[owner]->groups(unit)) {
          count_range_hits(run(owner, *group, gradient->gradient, place));
        }
        owners[owner]->end(unit, std::move(gradient));
      });
}

}  // namespace rohydr

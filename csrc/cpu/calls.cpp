// SPDX-License-Identifier: MIT
#include "calls.h"

#include <algorithm>
#include <atomic>
#include <memory>

namespace rohydr {
namespace {

constexpr std::uint32_t kStepStream = 1;  // Stream.STEP of rohydr_fast/ops/philox
constexpr std::int64_t kAttentionRows = 64;

std::atomic<std::int64_t> range_hits{0};

// Memory of the teams of the calling thread's runs, kept for the next call.
template <class T>
T* team_memory(int number, std::int64_t count) {
  thread_local std::vector<std::unique_ptr<Arena>> arenas;
  while (arenas.size() <= static_cast<std::size_t>(number)) arenas.push_back(std::make_unique<Arena>());
  Arena& arena = *arenas[static_cast<std::size_t>(number)];
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

double group_cost(const DenoiserShape& shape, const Group& group) {
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

template <class T>
struct PreparedLoop {
  PreparedLoop(const ReverseLoopRequest<T>& r, const Kernels<T>& kernels, std::int64_t rows_of_group,
               NormalKernel normals)
      : weights(r.weights->current(kernels)),
        stride(round_up(r.weights->shape().width, kernels.lanes)),
        position(r.position, r.batch.tokens, r.weights->shape().width, stride),
        block_modulation(r.block_modulation, r.steps * r.weights->shape().layers * 9, r.weights->shape().width, stride),
        final_modulation(r.final_modulation, r.steps * 2, r.weights->shape().width, stride),
        coefficients(r.coefficients, r.coefficients + 4 * r.steps),
        grouping(r.batch, rows_of_group, false) {
    call.denoiser = weights->view;
    call.condition = {r.cond_kv, r.batch.samples, r.batch.keys};
    call.x = r.x;
    call.out = r.out;
    call.position = position.data();
    call.block_modulation = block_modulation.data();
    call.final_modulation = final_modulation.data();
    call.coefficients = coefficients.data();
    call.sample_ids = r.sample_ids;
    call.noise = {r.seed, nullptr, 0, 0, r.modality, 0, kStepStream};
    call.normals = normals;
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

}  // namespace

template <>
const Kernels<float>& kernels_of<float>(Isa isa) {
  switch (isa) {
#if defined(ROHYDR_HAS_AVX2)
    case Isa::kAvx2:
      return *kernels_avx2();
#endif
#if defined(ROHYDR_HAS_AVX512)
    case Isa::kAvx512:
      return *kernels_avx512();
#endif
#if defined(ROHYDR_HAS_NEON)
    case Isa::kNeon:
      return *kernels_neon();
#endif
    default:
      return *kernels_portable<float>();
  }
}

template <>
const Kernels<double>& kernels_of<double>(Isa) {
  return *kernels_portable<double>();
}

std::int64_t softmax_range_hits() { return range_hits.load(); }

template <class T>
void run_reverse_loops(const std::vector<ReverseLoopRequest<T>>& requests, Isa isa, int threads) {
  const Kernels<T>& kernels = kernels_of<T>(isa);
  const NormalKernel normals = normal_kernel(isa);
  std::int64_t rows = 0;
  for (const ReverseLoopRequest<T>& r : requests) rows += count_rows(r.batch);
  const std::int64_t rows_of_group = group_rows(rows, threads);
  std::vector<PreparedLoop<T>> loops;
  loops.reserve(requests.size());  // calls point into their loop
  std::vector<Task> tasks;
  for (const ReverseLoopRequest<T>& r : requests) {
    if (r.batch.token_mask != nullptr) {
      std::fill_n(r.out, r.batch.samples * r.batch.tokens * r.weights->shape().channels, T(0));
    }
    loops.emplace_back(r, kernels, rows_of_group, normals);
    for (const Group& group : loops.back().grouping.groups()) {
      const double cost = group_cost(r.weights->shape(), group) * static_cast<double>(r.steps);
      tasks.push_back({&group, static_cast<int>(loops.size()) - 1, cost});
    }
  }
  std::vector<T*> memory;
  const auto call_of = [&](const Task& task) -> const LoopCall<T>& {
    return loops[static_cast<std::size_t>(task.owner)].call;
  };
  run_tasks(
      tasks, threads, threads,
      [&](int teams, int size) {
        memory = reserve_teams<T>(tasks, teams, [&](const Task& task) {
          return kernels.workspace(call_of(task).denoiser, *task.group, size);
        });
      },
      [&](const Task& task, const Team& team, int number) {
        T* const place = memory[static_cast<std::size_t>(number)];
        range_hits += kernels.reverse_loop(call_of(task), *task.group, team, place);
      });
}

template <class T>
void run_denoiser_block(const DenoiserBlockRequest<T>& r, Isa isa, int threads) {
  const Kernels<T>& kernels = kernels_of<T>(isa);
  const std::shared_ptr<const PackedArena<T>> weights = r.weights->current(kernels);
  const std::int64_t width = r.weights->shape().width, stride = round_up(width, kernels.lanes);
  if (r.batch.token_mask != nullptr) std::fill_n(r.out, r.batch.samples * r.batch.tokens * width, T(0));
  const PaddedRows<T> modulation(r.modulation, r.modulations * 9, width, stride);
  const bool per_sample = r.modulations > 1;
  const Grouping grouping(r.batch, group_rows(count_rows(r.batch), threads), per_sample);
  const BlockCall<T> call{weights->view,            {r.cond_kv, r.batch.samples, r.batch.keys}, r.x,
                          r.out,                    modulation.data(),
                          per_sample ? 9 * stride : 0, r.batch.tokens};
  std::vector<Task> tasks;
  for (const Group& group : grouping.groups()) tasks.push_back({&group, 0, group_cost(r.weights->shape(), group)});
  std::vector<T*> memory;
  run_tasks(
      tasks, threads, threads,
      [&](int teams, int size) {
        memory = reserve_teams<T>(
            tasks, teams, [&](const Task& task) { return kernels.workspace(call.denoiser, *task.group, size); });
      },
      [&](const Task& task, const Team& team, int number) {
        range_hits += kernels.denoiser_block(call, *task.group, team, memory[static_cast<std::size_t>(number)]);
      });
}

template <class T>
void run_cross_attention(const CrossAttentionRequest<T>& r, Isa isa, int threads) {
  const Kernels<T>& kernels = kernels_of<T>(isa);
  const AttentionCall<T> call{r.q, r.k, r.v, r.out, r.batch.tokens, r.batch.keys, r.width, r.heads};
  const Grouping grouping(r.batch, 1, true);
  std::vector<Task> tasks;
  for (const Group& group : grouping.groups()) {  // long samples in pieces: queries are independent
    const double cost = static_cast<double>(group.members[0].key_count);
    for (std::int64_t first = 0; first < group.rows; first += kAttentionRows) {
      tasks.push_back({&group, static_cast<int>(first / kAttentionRows), cost});
    }
  }
  const std::int64_t most = kernels.attention_workspace(kAttentionRows, r.width);
  std::vector<T*> memory;
  run_tasks(
      tasks, threads, 1,
      [&](int teams, int) { memory = reserve_teams<T>(tasks, teams, [&](const Task&) { return most; }); },
      [&](const Task& task, const Team&, int number) {
        const std::int64_t first = task.owner * kAttentionRows;
        range_hits += kernels.cross_attention(call, task.group->members[0], first,
                                              std::min(kAttentionRows, task.group->rows - first),
                                              memory[static_cast<std::size_t>(number)]);
      });
}

template void run_reverse_loops<float>(const std::vector<ReverseLoopRequest<float>>&, Isa, int);
template void run_reverse_loops<double>(const std::vector<ReverseLoopRequest<double>>&, Isa, int);
template void run_denoiser_block<float>(const DenoiserBlockRequest<float>&, Isa, int);
template void run_denoiser_block<double>(const DenoiserBlockRequest<double>&, Isa, int);
template void run_cross_attention<float>(const CrossAttentionRequest<float>&, Isa, int);
template void run_cross_attention<double>(const CrossAttentionRequest<double>&, Isa, int);

}  // namespace rohydr

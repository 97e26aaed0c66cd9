// SPDX-License-Identifier: MIT
#include "calls.h"

#include <algorithm>
#include <atomic>
#include <memory>

#include "prepared.h"

namespace rohydr {
namespace {

constexpr std::int64_t kAttentionRows = 64;

std::atomic<std::int64_t> range_hits{0};

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
void count_range_hits(std::int64_t hits) { range_hits += hits; }

template <class T>
std::int64_t kept_elements(const DenoiserShape& shape, const Batch& batch, std::int64_t steps, Isa isa) {
  BlockView<T> block{};  // sizes alone: nothing needs to be packed for them
  block.fc1.columns = shape.hidden;
  const DenoiserView<T> view{{}, {}, &block, shape.layers, shape.channels, shape.width, shape.heads};
  Grouping grouping(batch, backward_rows(shape, batch), false);
  return place_kept(kernels_of<T>(isa), view, steps, grouping);
}

template <class T>
void run_reverse_loops(const std::vector<ReverseLoopRequest<T>>& requests, Isa isa, int threads) {
  const Kernels<T>& kernels = kernels_of<T>(isa);
  const NormalKernel normals = normal_kernel(isa);
  std::int64_t rows = 0;
  for (const ReverseLoopRequest<T>& r : requests) rows += count_rows(r.batch);
  bool keeps = false;
  for (const ReverseLoopRequest<T>& r : requests) keeps = keeps || r.kept != nullptr;
  std::vector<PreparedLoop<T>> loops;
  loops.reserve(requests.size());  // calls point into their loop
  std::vector<Task> tasks;
  for (const ReverseLoopRequest<T>& r : requests) {
    if (r.batch.token_mask != nullptr) {
      std::fill_n(r.out, r.batch.samples * r.batch.tokens * r.weights->shape().channels, T(0));
    }
    const std::int64_t most = keeps ? backward_rows(r.weights->shape(), r.batch) : group_rows(rows, threads);
    loops.emplace_back(r, kernels, most, normals);
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
      tasks, threads, keeps ? 1 : threads,
      [&](int teams, int size) {
        memory = reserve_teams<T>(tasks, teams, [&](const Task& task) {
          return kernels.workspace(call_of(task).denoiser, *task.group, size);
        });
      },
      [&](const Task& task, const Team& team, int number) {
        T* const place = memory[static_cast<std::size_t>(number)];
        count_range_hits(kernels.reverse_loop(call_of(task), *task.group, team, place));
      });
}

// Runs `run(group, team, memory)` for every group, by teams of at most `largest_team`.
template <class T, class Run>
void run_groups(const DenoiserShape& shape, const DenoiserView<T>& denoiser, const Grouping& grouping,
                const Kernels<T>& kernels, int threads, int largest_team, const Run& run) {
  std::vector<Task> tasks;
  for (const Group& group : grouping.groups()) tasks.push_back({&group, 0, group_cost(shape, group)});
  std::vector<T*> memory;
  run_tasks(
      tasks, threads, largest_team,
      [&](int teams, int size) {
        memory = reserve_teams<T>(
            tasks, teams, [&](const Task& task) { return kernels.workspace(denoiser, *task.group, size); });
      },
      [&](const Task& task, const Team& team, int number) {
        count_range_hits(run(*task.group, team, memory[static_cast<std::size_t>(number)]));
      });
}

template <class T>
void run_denoiser(const DenoiserRequest<T>& r, Isa isa, int threads) {
  const Kernels<T>& kernels = kernels_of<T>(isa);
  const DenoiserShape& shape = r.weights->shape();
  if (r.batch.token_mask != nullptr) std::fill_n(r.out, r.batch.samples * r.batch.tokens * 2 * shape.channels, T(0));
  const bool keeps = r.kept != nullptr;
  const std::int64_t rows = keeps ? backward_rows(shape, r.batch) : group_rows(count_rows(r.batch), threads);
  const PreparedDenoiser<T> prepared(r, kernels, rows);
  run_groups(shape, prepared.call.denoiser, prepared.grouping, kernels, threads, keeps ? 1 : threads,
             [&](const Group& group, const Team& team, T* memory) {
               return kernels.denoiser(prepared.call, group, team, memory);
             });
}

template <class T>
void run_denoiser_block(const DenoiserBlockRequest<T>& r, Isa isa, int threads) {
  const Kernels<T>& kernels = kernels_of<T>(isa);
  const DenoiserShape& shape = r.weights->shape();
  if (r.batch.token_mask != nullptr) std::fill_n(r.out, r.batch.samples * r.batch.tokens * shape.width, T(0));
  const PreparedBlock<T> prepared(r, kernels, group_rows(count_rows(r.batch), threads));
  run_groups(shape, prepared.call.denoiser, prepared.grouping, kernels, threads, threads,
             [&](const Group& group, const Team& team, T* memory) {
               return kernels.denoiser_block(prepared.call, group, team, memory);
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
        count_range_hits(kernels.cross_attention(call, task.group->members[0], first,
                                              std::min(kAttentionRows, task.group->rows - first),
                                              memory[static_cast<std::size_t>(number)]));
      });
}

template std::int64_t kept_elements<float>(const DenoiserShape&, const Batch&, std::int64_t, Isa);
template std::int64_t kept_elements<double>(const DenoiserShape&, const Batch&, std::int64_t, Isa);
template void run_reverse_loops<float>(const std::vector<ReverseLoopRequest<float>>&, Isa, int);
template void run_reverse_loops<double>(const std::vector<ReverseLoopRequest<double>>&, Isa, int);
template void run_denoiser<float>(const DenoiserRequest<float>&, Isa, int);
template void run_denoiser<double>(const DenoiserRequest<double>&, Isa, int);
template void run_denoiser_block<float>(const DenoiserBlockRequest<float>&, Isa, int);
template void run_denoiser_block<double>(const DenoiserBlockRequest<double>&, Isa, int);
template void run_cross_attention<float>(const CrossAttentionRequest<float>&, Isa, int);
template void run_cross_attention<double>(const CrossAttentionRequest<double>&, Isa, int);

}  // namespace rohydr

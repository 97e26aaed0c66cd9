// SPDX-License-Identifier: MIT
#include <algorithm>

#include "modulation_memo.h"
#include "share_out.h"

namespace rohydr {
namespace {

constexpr std::int64_t kRows = 1024;   // of a piece: enough to lay out its columns for

constexpr std::int64_t pieces_of(std::int64_t count, std::int64_t size) { return (count + size - 1) / size; }

// The tables of adaLN: r.blocks and r.final.
template <class T>
void run_modulation(const ConditioningRequest<T>& r, Isa isa, int threads, Threads kind) {
  const auto layers = static_cast<std::size_t>(r.layers);
  const auto some = [](const std::vector<const T*>& all, std::size_t first, std::size_t count) {
    return std::vector<const T*>(all.begin() + static_cast<std::ptrdiff_t>(first),
                                 all.begin() + static_cast<std::ptrdiff_t>(first + count));
  };
  // `count` layers of `columns` outputs each, side by side in the rows of `out`.
  const auto rows_first = [&](const T* x, std::int64_t depth, std::size_t first, std::size_t count,
                              std::int64_t columns, bool silu, T* out) {
    if (count == 0) return;
    const std::int64_t stride = static_cast<std::int64_t>(count) * columns;
    run_linears<T>({some(r.weights, first, count), some(r.biases, first, count), r.rows, depth, columns, x, out,
                    columns, stride, silu},
                   isa, threads, kind);
  };
  std::vector<T> hidden(static_cast<std::size_t>(r.rows * r.width)), time(hidden.size());
  rows_first(r.features, r.inputs, 0, 1, r.width, true, hidden.data());
  rows_first(hidden.data(), r.width, 1, 1, r.width, true, time.data());
  rows_first(time.data(), r.width, 2, layers, 9 * r.width, false, r.blocks);
  rows_first(time.data(), r.width, 2 + layers, 1, 2 * r.width, false, r.final);
}

}  // namespace

template <class T>
void run_linears(const LinearsRequest<T>& r, Isa isa, int threads, Threads kind) {
  const Kernels<T>& kernels = kernels_of<T>(isa);
  const LinearsCall<T> call{r.x,       r.weights.data(),  r.biases.data(), r.out, r.depth,
                            r.columns, r.matrix_stride, r.row_stride,    r.silu};
  const auto matrices = static_cast<std::int64_t>(r.weights.size());
  const std::int64_t blocks = pieces_of(r.columns, kLinearsColumns), runs = pieces_of(r.rows, kRows);
  const std::int64_t pieces = matrices * blocks * runs;  // (matrix, block of columns, run of rows)
  const double flop = 2.0 * static_cast<double>(r.rows * r.depth * r.columns * matrices);
  const int useful = useful_threads(pieces, flop, threads);
  std::vector<T*> memory;
  for (int i = 0; i < useful; ++i) memory.push_back(team_memory<T>(i, kernels.linears_workspace(r.depth)));
  share_out(pieces, useful, kind, [&](std::int64_t piece, int thread) {
    const std::int64_t first = piece % runs * kRows, block = piece / runs;
    kernels.linears(call, block / blocks, block % blocks * kLinearsColumns, first, std::min(kRows, r.rows - first),
                    memory[static_cast<std::size_t>(thread)]);
  });
}

template <class T>
void run_conditioning(const ConditioningRequest<T>& r, Isa isa, int threads, Threads kind, ModulationMemo<T>* memo) {
  const auto modulation = [&](const ConditioningRequest<T>& request) { run_modulation(request, isa, threads, kind); };
  if (r.rows > 0) memo == nullptr ? modulation(r) : memo->run(r, isa, modulation);
  const auto layers = static_cast<std::size_t>(r.layers);
  if (layers == 0 || r.condition_rows == 0) return;
  std::vector<const T*> weights, biases;  // of K and V by themselves
  for (std::size_t i = 3 + layers; i < 3 + 2 * layers; ++i) {
    for (const std::int64_t half : {std::int64_t{0}, r.width}) {
      weights.push_back(r.weights[i] + half * r.width);
      biases.push_back(r.biases[i] + half);
    }
  }
  run_linears<T>({std::move(weights), std::move(biases), r.condition_rows, r.width, r.width, r.encoded, r.cond_kv,
                  r.condition_rows * r.width, r.width, false},
                 isa, threads, kind);
}

template void run_conditioning<float>(const ConditioningRequest<float>&, Isa, int, Threads, ModulationMemo<float>*);
template void run_conditioning<double>(const ConditioningRequest<double>&, Isa, int, Threads, ModulationMemo<double>*);
template void run_linears<float>(const LinearsRequest<float>&, Isa, int, Threads);
template void run_linears<double>(const LinearsRequest<double>&, Isa, int, Threads);

}  // namespace rohydr

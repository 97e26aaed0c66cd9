// SPDX-License-Identifier: MIT
#include <algorithm>

#include "prepared.h"
#include "thread_pool.h"

namespace rohydr {
namespace {

constexpr std::int64_t kRows = 1024;   // of a piece: enough to lay out its columns for

constexpr std::int64_t pieces_of(std::int64_t count, std::int64_t size) { return (count + size - 1) / size; }

// Pieces are (matrix, block of columns, run of rows); each thread takes as many as another.
template <class T>
struct LinearsWork {
  const Kernels<T>& kernels;
  const LinearsCall<T>& call;
  std::int64_t rows, row_runs, blocks, pieces;
  int threads;
  std::vector<T*> memory;

  static void run(void* context, int index) {
    const auto& work = *static_cast<const LinearsWork*>(context);
    const std::int64_t end = work.pieces * (index + 1) / work.threads;
    for (std::int64_t piece = work.pieces * index / work.threads; piece < end; ++piece) {
      const std::int64_t first = piece % work.row_runs * kRows, block = piece / work.row_runs;
      work.kernels.linears(work.call, block / work.blocks, block % work.blocks * kLinearsColumns, first,
                           std::min(kRows, work.rows - first), work.memory[static_cast<std::size_t>(index)]);
    }
  }
};

}  // namespace

template <class T>
void run_linears(const LinearsRequest<T>& r, Isa isa, int threads) {
  const Kernels<T>& kernels = kernels_of<T>(isa);
  const LinearsCall<T> call{r.x,       r.weights.data(),  r.biases.data(), r.out, r.depth,
                            r.columns, r.matrix_stride, r.row_stride,    r.silu};
  const auto matrices = static_cast<std::int64_t>(r.weights.size());
  const std::int64_t blocks = pieces_of(r.columns, kLinearsColumns), runs = pieces_of(r.rows, kRows);
  const double flop = 2.0 * static_cast<double>(r.rows * r.depth * r.columns * matrices);
  const auto useful = static_cast<int>(std::min(flop / kFlopOfThread + 1, 1e6));
  LinearsWork<T> work{kernels, call, r.rows, runs, blocks, matrices * blocks * runs, std::min(threads, useful), {}};
  work.threads = static_cast<int>(std::min<std::int64_t>(work.threads, work.pieces));
  for (int i = 0; i < work.threads; ++i) work.memory.push_back(team_memory<T>(i, kernels.linears_workspace(r.depth)));
  if (work.threads > 1 && run_on_threads(work.threads, &LinearsWork<T>::run, &work)) return;
  work.threads = 1;  // the pool is busy, or not worth it
  LinearsWork<T>::run(&work, 0);
}

template <class T>
void run_conditioning(const ConditioningRequest<T>& r, Isa isa, int threads) {
  const auto layers = static_cast<std::size_t>(r.layers);
  const auto some = [](const std::vector<const T*>& all, std::size_t first, std::size_t count) {
    return std::vector<const T*>(all.begin() + static_cast<std::ptrdiff_t>(first),
                                 all.begin() + static_cast<std::ptrdiff_t>(first + count));
  };
  // `count` layers of `columns` outputs each, side by side in the rows of `out`.
  const auto rows_first = [&](const T* x, std::int64_t depth, std::size_t first, std::size_t count,
                              std::int64_t columns, bool silu, T* out) {
    if (count == 0 || r.rows == 0) return;
    const std::int64_t stride = static_cast<std::int64_t>(count) * columns;
    run_linears<T>({some(r.weights, first, count), some(r.biases, first, count), r.rows, depth, columns, x, out,
                    columns, stride, silu},
                   isa, threads);
  };
  std::vector<T> hidden(static_cast<std::size_t>(r.rows * r.width)), time(hidden.size());
  rows_first(r.features, r.inputs, 0, 1, r.width, true, hidden.data());
  rows_first(hidden.data(), r.width, 1, 1, r.width, true, time.data());
  rows_first(time.data(), r.width, 2, layers, 9 * r.width, false, r.blocks);
  rows_first(time.data(), r.width, 2 + layers, 1, 2 * r.width, false, r.final);
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
                 isa, threads);
}

template void run_conditioning<float>(const ConditioningRequest<float>&, Isa, int);
template void run_conditioning<double>(const ConditioningRequest<double>&, Isa, int);
template void run_linears<float>(const LinearsRequest<float>&, Isa, int);
template void run_linears<double>(const LinearsRequest<double>&, Isa, int);

}  // namespace rohydr

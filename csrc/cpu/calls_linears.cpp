// SPDX-License-Identifier: MIT
#include <algorithm>

#include "prepared.h"
#include "thread_pool.h"

namespace rohydr {
namespace {

constexpr std::int64_t kRows = 1024;   // of a piece: enough to lay out its columns for
constexpr double kFlopOfThread = 4e6;  // less is not worth waking another thread for

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
  const LinearsCall<T> call{r.x,     r.weights.data(), r.biases.data(), r.out,
                            r.depth, r.columns,        r.matrix_stride, r.row_stride};
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

template void run_linears<float>(const LinearsRequest<float>&, Isa, int);
template void run_linears<double>(const LinearsRequest<double>&, Isa, int);

}  // namespace rohydr

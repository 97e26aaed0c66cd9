// SPDX-License-Identifier: MIT
#include <algorithm>
#include <memory>

#include "unit_sums.h"

namespace rohydr {
namespace {

template <class T>
struct PreparedBackward {
  PreparedBackward(const ReverseLoopBackwardRequest<T>& r, const Kernels<T>& kernels, NormalKernel normals, int number)
      : loop(r.forward, kernels, backward_rows(r.forward.weights->shape(), r.forward.batch), normals, true),
        sums(*r.forward.weights, kernels, loop.grouping, r.forward.steps, number) {
    const Batch& batch = r.forward.batch;
    const DenoiserShape& shape = r.forward.weights->shape();
    std::fill_n(r.x_gradient, batch.samples * batch.tokens * shape.channels, T(0));
    call = {loop.call,      loop.weights->transposed, r.forward.states, r.forward.kept, r.out_gradient, r.x_gradient,
            cleared_condition_gradient(r.condition_gradient, batch, shape.layers, shape.width)};
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
    const auto number = static_cast<int>(loops.size());
    loops.push_back(std::make_unique<PreparedBackward<T>>(r, kernels, normal_kernel(isa), number));
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
  OwnModulation<T> own(r.forward.modulations, shape, prepared.stride, r.block_modulation_gradient,
                       r.final_modulation_gradient);
  UnitSums<T> sums(*r.forward.weights, kernels, prepared.grouping, r.forward.modulations == 1 ? 1 : 0);
  const DenoiserBackwardCall<T> call{
      prepared.call, prepared.weights->transposed, r.out_gradient, r.x_gradient,
      cleared_condition_gradient(r.condition_gradient, batch, shape.layers, shape.width)};
  run_units<T>(
      {&sums}, threads,
      [&](std::size_t, const Group& group) { return kernels.backward_workspace(call.forward.denoiser, group); },
      [&](std::size_t, const Group& group, DenoiserGradient<T> gradient, T* memory) {
        own.place(gradient);
        return kernels.denoiser_backward(call, gradient, group, memory);
      });
  sums.finish(r.weight_gradients, r.block_modulation_gradient, r.final_modulation_gradient);
  own.finish();
}

template <class T>
void run_denoiser_block_backward(const DenoiserBlockBackwardRequest<T>& r, Isa isa, int threads) {
  const Kernels<T>& kernels = kernels_of<T>(isa);
  const std::int64_t rows = backward_rows(r.forward.weights->shape(), r.forward.batch);
  const PreparedBlock<T> prepared(r.forward, kernels, rows, true);
  const Batch& batch = r.forward.batch;
  const std::int64_t width = r.forward.weights->shape().width;
  std::fill_n(r.x_gradient, batch.samples * batch.tokens * width, T(0));
  const std::int64_t own = r.forward.modulations > 1 ? r.forward.modulations : 0;
  SampleRows<T> rows_of_samples(r.modulation_gradient, own * 9, width, prepared.stride);
  UnitSums<T> sums(*r.forward.weights, kernels, prepared.grouping, r.forward.modulations == 1 ? 1 : 0);
  const BlockBackwardCall<T> call{prepared.call, prepared.weights->transposed, r.out_gradient, r.x_gradient,
                                  cleared_condition_gradient(r.condition_gradient, batch, 1, width)};
  run_units<T>(
      {&sums}, threads,
      [&](std::size_t, const Group& group) { return kernels.backward_workspace(call.forward.denoiser, group); },
      [&](std::size_t, const Group& group, DenoiserGradient<T> gradient, T* memory) {
        if (own > 0) gradient.block_modulation = rows_of_samples.data();
        return kernels.denoiser_block_backward(call, gradient, group, memory);
      });
  sums.finish(r.weight_gradients, r.modulation_gradient, nullptr);
  rows_of_samples.finish();
}

template void run_reverse_loops_backward<float>(const std::vector<ReverseLoopBackwardRequest<float>>&, Isa, int);
template void run_reverse_loops_backward<double>(const std::vector<ReverseLoopBackwardRequest<double>>&, Isa, int);
template void run_denoiser_backward<float>(const DenoiserBackwardRequest<float>&, Isa, int);
template void run_denoiser_backward<double>(const DenoiserBackwardRequest<double>&, Isa, int);
template void run_denoiser_block_backward<float>(const DenoiserBlockBackwardRequest<float>&, Isa, int);
template void run_denoiser_block_backward<double>(const DenoiserBlockBackwardRequest<double>&, Isa, int);

}  // namespace rohydr

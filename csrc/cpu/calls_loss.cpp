// SPDX-License-Identifier: MIT
#include <algorithm>
#include <vector>

#include "unit_sums.h"

namespace rohydr {
namespace {

template <class T>
DenoiserRequest<T> pass_of(const DiffusionLossRequest<T>& r) {
  DenoiserRequest<T> pass{};
  pass.weights = r.weights;
  pass.batch = r.batch;
  pass.x = r.x_0;
  pass.position = r.position;
  pass.block_modulation = r.block_modulation;
  pass.final_modulation = r.final_modulation;
  pass.modulations = r.modulations;
  return pass;
}

// The loss alone, by group.
template <class T>
void run_loss(const LossCall<T>& call, const DenoiserShape& shape, const Kernels<T>& kernels, const Grouping& grouping,
              int threads) {
  std::vector<Task> tasks;
  for (const Group& group : grouping.groups()) tasks.push_back({&group, 0, group_cost(shape, group)});
  std::vector<T*> memory;
  run_tasks(
      tasks, threads, 1,
      [&](int teams, int) {
        memory = reserve_teams<T>(
            tasks, teams, [&](const Task& task) { return kernels.loss_workspace(call.forward.denoiser, *task.group); });
      },
      [&](const Task& task, const Team&, int number) {
        T* const place = memory[static_cast<std::size_t>(number)];
        count_range_hits(kernels.diffusion_loss(call, DenoiserGradient<T>{}, *task.group, place));
      });
}

}  // namespace

template <class T>
void run_diffusion_loss(const DiffusionLossRequest<T>& r, Isa isa, int threads) {
  const Kernels<T>& kernels = kernels_of<T>(isa);
  const DenoiserShape& shape = r.weights->shape();
  const Batch& batch = r.batch;
  const PreparedDenoiser<T> prepared(pass_of(r), kernels, backward_rows(shape, batch), true);
  const auto elements = static_cast<double>(std::max<std::int64_t>(count_rows(batch) * shape.channels, 1));
  std::vector<double> sums(static_cast<std::size_t>(batch.samples));
  const LossCall<T> call{prepared.call,
                         prepared.weights->transposed,
                         r.loss,
                         r.rows,
                         r.encoded,
                         batch.keys,
                         r.sample_ids,
                         {r.seed, nullptr, 0, 0, r.modality, 0, kForwardStream},
                         normal_kernel(isa),
                         static_cast<T>(1 / elements),
                         sums.data(),
                         r.encoded_gradient};
  if (r.encoded_gradient == nullptr) {
    run_loss(call, shape, kernels, prepared.grouping, threads);
  } else {
    std::fill_n(r.encoded_gradient, batch.samples * batch.keys * shape.width, T(0));
    OwnModulation<T> own(r.modulations, shape, prepared.stride, r.block_modulation_gradient,
                         r.final_modulation_gradient);
    UnitSums<T> units(*r.weights, kernels, prepared.grouping, r.modulations == 1 ? 1 : 0);
    run_units<T>(
        {&units}, threads,
        [&](std::size_t, const Group& group) { return kernels.loss_workspace(call.forward.denoiser, group); },
        [&](std::size_t, const Group& group, DenoiserGradient<T> gradient, T* memory) {
          own.place(gradient);
          return kernels.diffusion_loss(call, gradient, group, memory);
        });
    units.finish(r.weight_gradients, r.block_modulation_gradient, r.final_modulation_gradient);
    own.finish();
  }
  double total = 0;
  for (const double sum : sums) total += sum;
  *r.out = static_cast<T>(total / elements);
}

template void run_diffusion_loss<float>(const DiffusionLossRequest<float>&, Isa, int);
template void run_diffusion_loss<double>(const DiffusionLossRequest<double>&, Isa, int);

}  // namespace rohydr

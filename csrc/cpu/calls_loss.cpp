// SPDX-License-Identifier: MIT
#include <algorithm>
#include <memory>
#include <utility>
#include <vector>

#include "share_out.h"
#include "unit_sums.h"

namespace rohydr {
namespace {

// A request on its way: `prepare` and `finish` may run beside those of others, the rest is for the calling thread.
template <class T>
class LossOf {
 public:
  // `number` tells requests of one call apart.
  LossOf(const DiffusionLossRequest<T>& r, Isa isa, int number)
      : r_(r), isa_(isa), number_(number), kernels_(kernels_of<T>(isa)),
        sums_(static_cast<std::size_t>(r.batch.samples)) {
    const DenoiserShape& shape = r.weights->shape();
    const std::int64_t rows = r.modulations * shape.width, blocks = rows * shape.layers * 9, final = rows * 2;
    Arena& arena = kept_arena(Purpose::kModulation, number);
    T* next = static_cast<T*>(
        arena.reserve(static_cast<std::size_t>((blocks + final) * (backward() ? 2 : 1)) * sizeof(T)));
    const auto take = [&](std::int64_t count) { return std::exchange(next, next + count); };
    T* const block_modulation = take(blocks);
    T* const final_modulation = take(final);
    modulation_ = {r.modulations, r.inputs,       shape.width,      shape.layers,     0,      r.features, nullptr,
                   r.layers,      r.layer_biases, block_modulation, final_modulation, nullptr};
    if (!backward()) return;
    block_gradient_ = take(blocks);
    final_gradient_ = take(final);
  }

  bool backward() const { return r_.encoded_gradient != nullptr; }
  const LossCall<T>& call() const { return call_; }
  const std::vector<Group>& groups() const { return prepared_->grouping.groups(); }
  UnitSums<T>* units() { return &*units_; }
  double group_cost_of(const Group& group) const { return group_cost(r_.weights->shape(), group); }

  void prepare(int threads) {
    run_conditioning(modulation_, isa_, threads, Threads::kOfOpenMp);
    DenoiserRequest<T> pass{};
    pass.weights = r_.weights;
    pass.batch = r_.batch;
    pass.x = r_.x_0;
    pass.position = r_.position;
    pass.block_modulation = modulation_.blocks;
    pass.final_modulation = modulation_.final;
    pass.modulations = r_.modulations;
    const DenoiserShape& shape = r_.weights->shape();
    prepared_ = std::make_unique<PreparedDenoiser<T>>(pass, kernels_, backward_rows(shape, r_.batch), true);
    if (backward()) std::fill_n(r_.encoded_gradient, r_.batch.samples * r_.batch.keys * shape.width, T(0));
    elements_ = static_cast<double>(std::max<std::int64_t>(count_rows(r_.batch) * shape.channels, 1));
    call_ = {prepared_->call,
             prepared_->weights->transposed,
             r_.loss,
             r_.rows,
             r_.encoded,
             r_.batch.keys,
             r_.sample_ids,
             {r_.seed, nullptr, 0, 0, r_.modality, 0, kForwardStream},
             normal_kernel(isa_),
             static_cast<T>(1 / elements_),
             sums_.data(),
             r_.encoded_gradient};
  }

  void start() {
    if (!backward()) return;
    const DenoiserShape& shape = r_.weights->shape();
    own_ = std::make_unique<OwnModulation<T>>(r_.modulations, shape, prepared_->stride, block_gradient_,
                                              final_gradient_);
    units_ = std::make_unique<UnitSums<T>>(*r_.weights, kernels_, prepared_->grouping, r_.modulations == 1 ? 1 : 0,
                                           number_);
  }

  std::int64_t run(const Group& group, DenoiserGradient<T> gradient, T* memory) const {
    if (backward()) own_->place(gradient);
    return kernels_.diffusion_loss(call_, gradient, group, memory);
  }

  void finish(int threads) {
    double total = 0;
    for (const double sum : sums_) total += sum;
    *r_.out = static_cast<T>(total / elements_);
    if (!backward()) return;
    units_->finish(r_.weight_gradients, block_gradient_, final_gradient_);
    own_->finish();
    ConditioningBackwardRequest<T> back{};
    back.forward = modulation_;
    back.blocks = block_gradient_;
    back.final = final_gradient_;
    back.weight_gradients = r_.layer_gradients;
    back.bias_gradients = r_.layer_bias_gradients;
    run_conditioning_backward(back, isa_, threads);
  }

 private:
  const DiffusionLossRequest<T>& r_;
  const Isa isa_;
  const int number_;
  const Kernels<T>& kernels_;
  ConditioningRequest<T> modulation_{};
  T *block_gradient_ = nullptr, *final_gradient_ = nullptr;
  std::vector<double> sums_;  // of each sample
  double elements_ = 1;
  std::unique_ptr<PreparedDenoiser<T>> prepared_;
  std::unique_ptr<OwnModulation<T>> own_;
  std::unique_ptr<UnitSums<T>> units_;
  LossCall<T> call_{};
};

// The losses alone, by group.
template <class T>
void run_losses(const std::vector<LossOf<T>*>& losses, const Kernels<T>& kernels, int threads) {
  std::vector<Task> tasks;
  for (std::size_t i = 0; i < losses.size(); ++i) {
    for (const Group& group : losses[i]->groups()) {
      tasks.push_back({&group, static_cast<int>(i), losses[i]->group_cost_of(group)});
    }
  }
  const auto owner = [&](const Task& task) { return losses[static_cast<std::size_t>(task.owner)]; };
  std::vector<T*> memory;
  run_tasks(
      tasks, threads, 1,
      [&](int teams, int) {
        memory = reserve_teams<T>(tasks, teams, [&](const Task& task) {
          return kernels.loss_workspace(owner(task)->call().forward.denoiser, *task.group);
        });
      },
      [&](const Task& task, const Team&, int number) {
        T* const place = memory[static_cast<std::size_t>(number)];
        count_range_hits(owner(task)->run(*task.group, DenoiserGradient<T>{}, place));
      });
}

}  // namespace

template <class T>
void run_diffusion_losses(const std::vector<DiffusionLossRequest<T>>& requests, Isa isa, int threads) {
  const Kernels<T>& kernels = kernels_of<T>(isa);
  std::vector<std::unique_ptr<LossOf<T>>> all;
  for (const DiffusionLossRequest<T>& r : requests) {
    all.push_back(std::make_unique<LossOf<T>>(r, isa, static_cast<int>(all.size())));
  }
  const auto count = static_cast<std::int64_t>(all.size());
  const int at_once = static_cast<int>(std::min<std::int64_t>(count, threads)), inside = count == 1 ? threads : 1;
  const auto each = [&](const auto& what) {
    if (count == 0) return;
    share_out(count, at_once, Threads::kOfOpenMp, [&](std::int64_t i, int) { what(*all[static_cast<std::size_t>(i)]); });
  };
  each([&](LossOf<T>& loss) { loss.prepare(inside); });
  std::vector<LossOf<T>*> alone, with_gradients;
  std::vector<UnitSums<T>*> units;
  for (const std::unique_ptr<LossOf<T>>& loss : all) {
    loss->start();
    (loss->backward() ? with_gradients : alone).push_back(loss.get());
    if (loss->backward()) units.push_back(loss->units());
  }
  run_losses(alone, kernels, threads);
  run_units<T>(
      units, threads,
      [&](std::size_t owner, const Group& group) {
        return kernels.loss_workspace(with_gradients[owner]->call().forward.denoiser, group);
      },
      [&](std::size_t owner, const Group& group, const DenoiserGradient<T>& gradient, T* memory) {
        return with_gradients[owner]->run(group, gradient, memory);
      });
  each([&](LossOf<T>& loss) { loss.finish(inside); });
}

template void run_diffusion_losses<float>(const std::vector<DiffusionLossRequest<float>>&, Isa, int);
template void run_diffusion_losses<double>(const std::vector<DiffusionLossRequest<double>>&, Isa, int);

}  // namespace rohydr

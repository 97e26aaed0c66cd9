// SPDX-License-Identifier: MIT
// Random calls of the way back through the reverse loop, the denoiser and its block, the conditioning, and of Eq. 3,
// which has its own.
#pragma once

#include "forward_calls.h"

namespace rohydr {

// The last steps of a reverse loop, forward and back. Ways: activations are kept by the forward, or computed again;
// the latter also with the same loop a second time in the call.
template <class T>
class LoopBackwardOf final : public DrawnLoop<T> {
 public:
  explicit LoopBackwardOf(Random& random) : DrawnLoop<T>(random) {
    this->request_.kept_steps = std::max<Index>(1, this->request_.kept_steps);
    out_gradient_ = this->input(this->tokens_of(this->problem_.shape.channels), random, 1);
  }
  int ways() const override { return 3; }

  Results<T> run(Isa isa, int threads, int way) override {
    const Index out_count = this->tokens_of(this->problem_.shape.channels);
    const Exact<T> out(out_count), states(this->states_count(), T(0)), tape = way == 0 ? this->tape(isa) : Exact<T>();
    ReverseLoopRequest<T> forward = this->request_;
    forward.out = out.data();
    forward.states = states.data();
    forward.kept = tape.data();
    run_reverse_loops<T>({forward}, isa, threads);
    const Exact<T> states_before = states.copy(), tape_before = tape.copy();

    // The tables of the steps that have a gradient, and not one row more.
    const Index steps = forward.kept_steps, layers = this->problem_.shape.layers, width = this->problem_.shape.width;
    const auto block_modulation = Exact<T>::copy_of(forward.block_modulation, steps * layers * 9 * width);
    const auto final_modulation = Exact<T>::copy_of(forward.final_modulation, steps * 2 * width);
    const auto coefficients = Exact<T>::copy_of(forward.coefficients, steps * forward.columns);
    ReverseLoopBackwardRequest<T> request{};
    request.forward = forward;
    request.forward.steps = steps;
    request.forward.x = nullptr;
    request.forward.out = nullptr;
    request.forward.block_modulation = block_modulation.data();
    request.forward.final_modulation = final_modulation.data();
    request.forward.coefficients = coefficients.data();
    request.out_gradient = out_gradient_;
    std::vector<ReverseLoopBackwardRequest<T>> requests;
    std::vector<Results<T>> results;
    while (requests.size() < (way == 2 ? 2 : 1)) {
      add_results(request);
      requests.push_back(request);
      results.push_back(this->taken());
    }
    run_reverse_loops_backward<T>(requests, isa, threads);
    handed_over_unchanged_ = handed_over_unchanged_ && states.same(states_before) && tape.same(tape_before);
    return std::move(results.back());
  }

  bool inputs_unchanged() const override { return handed_over_unchanged_ && DrawnLoop<T>::inputs_unchanged(); }

 private:
  void add_results(ReverseLoopBackwardRequest<T>& request) {
    const Index steps = request.forward.steps, layers = this->problem_.shape.layers, width = this->problem_.shape.width;
    request.x_gradient = this->result(this->tokens_of(this->problem_.shape.channels));
    request.block_modulation_gradient = this->result(steps * layers * 9 * width);
    request.final_modulation_gradient = this->result(steps * 2 * width);
    request.condition_gradient = this->result(this->condition_count());
    request.weight_gradients = this->weight_results();
  }

  const T* out_gradient_;
  bool handed_over_unchanged_ = true;
};

// Ways: activations are computed again, or kept by the forward.
template <class T>
class DenoiserBackwardOf final : public DrawnDenoiser<T> {
 public:
  explicit DenoiserBackwardOf(Random& random) : DrawnDenoiser<T>(random) {
    out_gradient_ = this->input(this->tokens_of(2 * this->problem_.shape.channels), random, 1);
  }
  int ways() const override { return 2; }

  Results<T> run(Isa isa, int threads, int way) override {
    const auto [layers, channels, width, heads, hidden] = this->problem_.shape;
    DenoiserBackwardRequest<T> request{};
    request.forward = this->request_;
    const Exact<T> out(this->tokens_of(2 * channels)), tape = way == 1 ? this->tape(isa) : Exact<T>();
    if (way == 1) {
      request.forward.out = out.data();
      request.forward.kept = tape.data();
      run_denoiser<T>(request.forward, isa, threads);
      request.forward.out = nullptr;
    }
    request.out_gradient = out_gradient_;
    request.x_gradient = this->result(this->tokens_of(channels));
    request.block_modulation_gradient = this->result(request.forward.modulations * layers * 9 * width);
    request.final_modulation_gradient = this->result(request.forward.modulations * 2 * width);
    request.condition_gradient = this->result(this->condition_count());
    request.weight_gradients = this->weight_results();
    run_denoiser_backward<T>(request, isa, threads);
    return this->taken();
  }

 private:
  const T* out_gradient_;
};

template <class T>
class BlockBackwardOf final : public DrawnBlock<T> {
 public:
  explicit BlockBackwardOf(Random& random) : DrawnBlock<T>(random) {
    out_gradient_ = this->input(this->tokens_of(this->problem_.shape.width), random, 1);
  }
  Results<T> run(Isa isa, int threads, int) override {
    const Index width = this->problem_.shape.width;
    DenoiserBlockBackwardRequest<T> request{};
    request.forward = this->request_;
    request.out_gradient = out_gradient_;
    request.x_gradient = this->result(this->tokens_of(width));
    request.modulation_gradient = this->result(request.forward.modulations * 9 * width);
    request.condition_gradient = this->result(this->condition_count());
    request.weight_gradients = this->weight_results();
    run_denoiser_block_backward<T>(request, isa, threads);
    return this->taken();
  }

 private:
  const T* out_gradient_;
};

// Eq. 3 with its gradients.
template <class T>
class DiffusionLossOf final : public WeightedCall<T> {
 public:
  explicit DiffusionLossOf(Random& random) : WeightedCall<T>(random, false, true) {
    const auto [layers, channels, width, heads, hidden] = this->problem_.shape;
    const Index samples = this->problem_.samples;
    request_.weights = &this->packed_;
    request_.batch = this->problem_.batch();
    request_.x_0 = this->input(this->tokens_of(channels), random, 2);
    request_.rows = this->input(samples * kLossColumns, random, 1);
    request_.loss = static_cast<Loss>(random.bits() % 3);
    request_.position = this->input(this->problem_.tokens * width, random, 1);
    request_.modulations = random.bits() % 2 == 0 ? 1 : samples;
    request_.inputs = random.size(300);
    request_.features = this->input(request_.modulations * request_.inputs, random, 1);
    for (Index i = 0; i < 3 + layers; ++i) {
      const auto [outputs, inputs] = layer(i);
      request_.layers.push_back(this->input(outputs * inputs, random, 0.3));
      request_.layer_biases.push_back(this->input(outputs, random, 0.5));
    }
    request_.encoded = this->input(encoded_count(), random, 2);
    request_.seed = random.bits();
    ids_ = Exact<Index>(samples);
    for (Index i = 0; i < samples; ++i) ids_.data()[i] = static_cast<Index>(random.bits() >> 16);
    request_.sample_ids = ids_.data();
    request_.modality = static_cast<std::uint32_t>(random.bits() % 256);
  }

  int ways() const override { return 2; }

  // Ways: by itself, or with two more terms, of which one is the same and one wants no gradients.
  Results<T> run(Isa isa, int threads, int way) override {
    const Exact<T> alone(1);
    DiffusionLossRequest<T> loss = request_;
    loss.out = alone.data();
    if (way == 0) run_diffusion_losses<T>({loss}, isa, threads);
    std::vector<DiffusionLossRequest<T>> requests;
    std::vector<Results<T>> results;
    T* again = nullptr;
    while (requests.size() < (way == 1 ? 2 : 1)) {
      again = this->result(1);
      requests.push_back(with_results());
      results.push_back(this->taken());
    }
    const T* const out = requests.back().out;
    if (way == 1) requests.insert(requests.begin() + 1, loss);
    run_diffusion_losses<T>(requests, isa, threads);
    // Without gradients the loss is the same.
    *again = *alone.data() == *out ? T(0) : std::numeric_limits<T>::quiet_NaN();
    return std::move(results.back());
  }

 private:
  LayerSize layer(Index i) const {
    return conditioning_layer(i, this->problem_.shape.layers, this->problem_.shape.width, request_.inputs);
  }

  DiffusionLossRequest<T> with_results() {
    DiffusionLossRequest<T> request = request_;
    request.out = this->result(1);
    request.encoded_gradient = this->result(encoded_count());
    request.weight_gradients = this->weight_results();
    for (Index i = 0; i < 3 + this->problem_.shape.layers; ++i) {
      const auto [outputs, inputs] = layer(i);
      request.layer_gradients.push_back(this->result(outputs * inputs));
      request.layer_bias_gradients.push_back(this->result(outputs));
    }
    return request;
  }

  Index encoded_count() const { return this->problem_.samples * this->problem_.keys * this->problem_.shape.width; }

  DiffusionLossRequest<T> request_{};
  Exact<Index> ids_;
};

// Ways: all gradients at once, or every second of them and then the others.
template <class T>
class ConditioningBackwardOf final : public ConditioningOf<T> {
 public:
  explicit ConditioningBackwardOf(Random& random) : ConditioningOf<T>(random) {
    const ConditioningRequest<T>& forward = this->request_;
    blocks_ = this->input(forward.rows * forward.layers * 9 * forward.width, random, 1);
    final_ = this->input(forward.rows * 2 * forward.width, random, 1);
    cond_kv_ = this->input(forward.layers * 2 * forward.condition_rows * forward.width, random, 1);
  }
  int ways() const override { return 2; }

  Results<T> run(Isa isa, int threads, int way) override {
    ConditioningBackwardRequest<T> request{};
    const ConditioningRequest<T>& forward = request.forward = this->request_;
    request.blocks = blocks_;
    request.final = final_;
    request.cond_kv = cond_kv_;
    std::vector<T*> all{this->result(forward.rows * forward.inputs), this->result(forward.condition_rows * forward.width)};
    for (Index i = 0; i < 3 + 2 * forward.layers; ++i) {
      const auto [outputs, inputs] = conditioning_layer(i, forward.layers, forward.width, forward.inputs);
      all.push_back(this->result(outputs * inputs));
      all.push_back(this->result(outputs));
    }
    for (std::size_t turn = 0; turn < (way == 0 ? 1 : 2); ++turn) {
      const auto wanted = [&](std::size_t i) { return way == 0 || i % 2 == turn ? all[i] : nullptr; };
      request.features_gradient = wanted(0);
      request.encoded_gradient = wanted(1);
      request.weight_gradients.clear();
      request.bias_gradients.clear();
      for (std::size_t i = 2; i < all.size(); i += 2) {
        request.weight_gradients.push_back(wanted(i));
        request.bias_gradients.push_back(wanted(i + 1));
      }
      run_conditioning_backward<T>(request, isa, threads);
    }
    return this->taken();
  }

 private:
  const T *blocks_, *final_, *cond_kv_;
};

}  // namespace rohydr

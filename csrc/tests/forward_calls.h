// SPDX-License-Identifier: MIT
// Random calls of the reverse loop, the denoiser, its block, attention, linear layers and the conditioning.
#pragma once

#include "../cpu/modulation_memo.h"
#include "random_calls.h"

namespace rohydr {

// The reverse loop of which the last steps keep what the way back needs.
template <class T>
class DrawnLoop : public WeightedCall<T> {
 protected:
  explicit DrawnLoop(Random& random) : WeightedCall<T>(random, false) {
    const Problem& p = this->problem_;
    const Index width = p.shape.width;
    request_.weights = &this->packed_;
    request_.batch = p.batch();
    request_.steps = p.steps;
    request_.x = this->input(this->tokens_of(p.shape.channels), random, 2);
    request_.position = this->input(p.tokens * width, random, 1);
    request_.block_modulation = this->input(p.steps * p.shape.layers * 9 * width, random, 0.8);
    request_.final_modulation = this->input(p.steps * 2 * width, random, 0.8);
    request_.cond_kv = this->condition(random);
    request_.columns = random.bits() % 2 == 0 ? 4 : 8;
    request_.coefficients = this->input(p.steps * request_.columns, random, 1);
    request_.seed = random.bits();
    ids_ = Exact<Index>(p.samples);
    for (Index i = 0; i < p.samples; ++i) ids_.data()[i] = static_cast<Index>(random.bits() >> 16);
    request_.sample_ids = ids_.data();
    request_.modality = static_cast<std::uint32_t>(random.bits() % 256);
    request_.kept_steps = static_cast<Index>(random.bits() % static_cast<std::uint64_t>(p.steps + 1));
  }

  Index states_count() const { return request_.kept_steps * this->tokens_of(this->problem_.shape.channels); }
  Exact<T> tape(Isa isa) {
    return Exact<T>(kept_elements<T>(this->packed_.shape(), request_.batch, request_.kept_steps, isa));
  }

  ReverseLoopRequest<T> request_{};

 private:
  Exact<Index> ids_;
};

// Ways: x_t is kept alone, or with the activations.
template <class T>
class LoopOf final : public DrawnLoop<T> {
 public:
  explicit LoopOf(Random& random) : DrawnLoop<T>(random) {}
  int ways() const override { return 2; }
  Results<T> run(Isa isa, int threads, int way) override {
    ReverseLoopRequest<T> request = this->request_;
    request.out = this->result(this->tokens_of(this->problem_.shape.channels));
    request.states = this->result(this->states_count());
    const Exact<T> tape = way == 1 ? this->tape(isa) : Exact<T>();
    request.kept = tape.data();
    run_reverse_loops<T>({request}, isa, threads);
    check_padding(request.states);
    return this->taken();
  }

 private:
  // Of x_t, tokens that the mask leaves out are not written: they become 0, or NaN where they were.
  void check_padding(T* states) const {
    const bool* const mask = this->problem_.token_mask.data();
    const Index tokens = this->problem_.samples * this->problem_.tokens, channels = this->problem_.shape.channels;
    for (Index i = 0; mask != nullptr && i < this->states_count(); ++i) {
      if (mask[i / channels % tokens]) continue;
      states[i] = std::isnan(states[i]) ? T(0) : std::numeric_limits<T>::quiet_NaN();
    }
  }
};

template <class T>
class DrawnDenoiser : public WeightedCall<T> {
 protected:
  explicit DrawnDenoiser(Random& random) : WeightedCall<T>(random, false) {
    const Problem& p = this->problem_;
    const Index width = p.shape.width;
    request_.weights = &this->packed_;
    request_.batch = p.batch();
    request_.x = this->input(this->tokens_of(p.shape.channels), random, 2);
    request_.position = this->input(p.tokens * width, random, 1);
    request_.modulations = random.bits() % 2 == 0 ? 1 : p.samples;
    request_.block_modulation = this->input(request_.modulations * p.shape.layers * 9 * width, random, 0.8);
    request_.final_modulation = this->input(request_.modulations * 2 * width, random, 0.8);
    request_.cond_kv = this->condition(random);
  }

  Exact<T> tape(Isa isa) { return Exact<T>(kept_elements<T>(this->packed_.shape(), request_.batch, 1, isa)); }

  DenoiserRequest<T> request_{};
};

// Ways: without and with the activations kept.
template <class T>
class DenoiserOf final : public DrawnDenoiser<T> {
 public:
  explicit DenoiserOf(Random& random) : DrawnDenoiser<T>(random) {}
  int ways() const override { return 2; }
  Results<T> run(Isa isa, int threads, int way) override {
    DenoiserRequest<T> request = this->request_;
    request.out = this->result(this->tokens_of(2 * this->problem_.shape.channels));
    const Exact<T> tape = way == 1 ? this->tape(isa) : Exact<T>();
    request.kept = tape.data();
    run_denoiser<T>(request, isa, threads);
    return this->taken();
  }
};

template <class T>
class DrawnBlock : public WeightedCall<T> {
 protected:
  explicit DrawnBlock(Random& random) : WeightedCall<T>(random, true) {
    const Problem& p = this->problem_;
    const Index width = p.shape.width;
    request_.weights = &this->packed_;
    request_.batch = p.batch();
    request_.x = this->input(this->tokens_of(width), random, 2);
    request_.modulations = random.bits() % 2 == 0 ? 1 : p.samples;
    request_.modulation = this->input(request_.modulations * 9 * width, random, 0.8);
    request_.cond_kv = this->condition(random);
  }

  DenoiserBlockRequest<T> request_{};
};

template <class T>
class BlockOf final : public DrawnBlock<T> {
 public:
  explicit BlockOf(Random& random) : DrawnBlock<T>(random) {}
  Results<T> run(Isa isa, int threads, int) override {
    DenoiserBlockRequest<T> request = this->request_;
    request.out = this->result(this->tokens_of(this->problem_.shape.width));
    run_denoiser_block<T>(request, isa, threads);
    return this->taken();
  }
};

template <class T>
class AttentionOf final : public Call<T> {
 public:
  explicit AttentionOf(Random& random) : problem_(random) {
    const Problem& p = problem_;
    request_.batch = p.batch();
    request_.batch.token_mask = nullptr;
    request_.width = p.shape.width;
    request_.heads = p.shape.heads;
    request_.q = this->input(p.samples * p.tokens * request_.width, random, random.uniform() * 10);
    request_.k = this->input(p.samples * p.keys * request_.width, random, random.uniform() * 10);
    request_.v = this->input(p.samples * p.keys * request_.width, random, 1);
  }
  Results<T> run(Isa isa, int threads, int) override {
    CrossAttentionRequest<T> request = request_;
    request.out = this->result(problem_.samples * problem_.tokens * request.width);
    run_cross_attention<T>(request, isa, threads);
    return this->taken();
  }

 private:
  Problem problem_;
  CrossAttentionRequest<T> request_{};
};

// Large enough for several pieces of rows and of columns, now and then.
template <class T>
class LinearsOf final : public Call<T> {
 public:
  explicit LinearsOf(Random& random) {
    request_.rows = random.size(1500);
    request_.depth = random.size(40);
    request_.columns = random.size(400);
    request_.x = this->input(request_.rows * request_.depth, random, 1);
    for (Index i = random.size(4); i > 0; --i) {
      request_.weights.push_back(this->input(request_.columns * request_.depth, random, 1));
      request_.biases.push_back(this->input(request_.columns, random, 1));
    }
    const auto matrices = static_cast<Index>(request_.weights.size());
    const bool rows_first = random.bits() % 2 == 0;
    request_.matrix_stride = rows_first ? request_.columns : request_.rows * request_.columns;
    request_.row_stride = rows_first ? matrices * request_.columns : request_.columns;
  }
  Results<T> run(Isa isa, int threads, int) override {
    LinearsRequest<T> request = request_;
    request.out = this->result(static_cast<Index>(request.weights.size()) * request.rows * request.columns);
    run_linears<T>(request, isa, threads);
    return this->taken();
  }

 private:
  LinearsRequest<T> request_{};
};

template <class T>
class ConditioningOf : public Call<T> {
 public:
  explicit ConditioningOf(Random& random) {
    request_.rows = random.size(80);
    request_.inputs = random.size(300);
    request_.width = random.size(70);
    request_.layers = random.size(3) - 1;
    request_.condition_rows = random.size(200) - 1;
    request_.features = this->input(request_.rows * request_.inputs, random, 1);
    request_.encoded = this->input(request_.condition_rows * request_.width, random, 1);
    for (Index i = 0; i < 3 + 2 * request_.layers; ++i) {
      const auto [outputs, inputs] = conditioning_layer(i, request_.layers, request_.width, request_.inputs);
      request_.weights.push_back(this->input(outputs * inputs, random, 1));
      request_.biases.push_back(this->input(outputs, random, 1));
    }
  }
  int ways() const override { return 3; }  // how often: a first run is noted, a second kept, a third given by the memo
  Results<T> run(Isa isa, int threads, int way) override {
    ConditioningRequest<T> request = request_;
    request.blocks = this->result(request.rows * request.layers * 9 * request.width);
    request.final = this->result(request.rows * 2 * request.width);
    request.cond_kv = this->result(request.layers * 2 * request.condition_rows * request.width);
    ModulationMemo<T> memo;
    for (int i = 0; i <= way; ++i) run_conditioning<T>(request, isa, threads, Threads::kOwn, &memo);
    return this->taken();
  }

 protected:
  ConditioningRequest<T> request_{};
};

}  // namespace rohydr

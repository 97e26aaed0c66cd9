// SPDX-License-Identifier: MIT
// Random calls of the kernels in heap buffers of exactly the size that a caller gives.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <iterator>
#include <limits>
#include <memory>
#include <utility>
#include <vector>

#include "../cpu/calls.h"

namespace rohydr {

using Index = std::int64_t;

// Reproducible on every platform, unlike the distributions of <random>.
class Random {
 public:
  explicit Random(std::uint64_t seed) : state_(seed * 0x9E3779B97F4A7C15u + 1) {}
  std::uint64_t bits() {  // splitmix64
    std::uint64_t z = state_ += 0x9E3779B97F4A7C15u;
    z = (z ^ (z >> 30)) * 0xBF58476D1CE4E5B9u;
    z = (z ^ (z >> 27)) * 0x94D049BB133111EBu;
    return z ^ (z >> 31);
  }
  double uniform() { return static_cast<double>(bits() >> 11) * 0x1p-53; }
  double number(double size) { return size * (2 * uniform() - 1); }
  Index size(Index last) {  // 1..last, small ones more often
    return static_cast<Index>(std::exp(uniform() * std::log(static_cast<double>(last) + 1)));
  }

 private:
  std::uint64_t state_;
};

// A heap buffer without a spare byte.
template <class T>
class Exact {
 public:
  Exact() = default;
  explicit Exact(Index count) : count_(count), data_(new T[static_cast<std::size_t>(count)]) {}
  Exact(Index count, Random& random, double size) : Exact(count) {
    for (Index i = 0; i < count; ++i) data_[static_cast<std::size_t>(i)] = static_cast<T>(random.number(size));
  }
  T* data() const { return data_.get(); }
  Index count() const { return count_; }
  std::size_t bytes() const { return static_cast<std::size_t>(count_) * sizeof(T); }
  Exact copy() const {
    Exact result(count_);
    if (count_ > 0) std::memcpy(result.data(), data(), bytes());
    return result;
  }
  bool same(const Exact& other) const {
    return bytes() == other.bytes() && (count_ == 0 || std::memcmp(data(), other.data(), bytes()) == 0);
  }

 private:
  Index count_ = 0;
  std::unique_ptr<T[]> data_;
};

// True everywhere (no array), the first ones, or any; now and then nothing in a row.
Exact<bool> random_mask(Random& random, Index rows, Index columns) {
  const std::uint64_t kind = random.bits() % 3;
  if (kind == 0) return {};
  Exact<bool> mask(rows * columns);
  for (Index row = 0; row < rows; ++row) {
    const Index length = static_cast<Index>(random.bits() % static_cast<std::uint64_t>(columns + 1));
    for (Index c = 0; c < columns; ++c) {
      mask.data()[row * columns + c] = kind == 1 ? c < length : random.bits() % 3 != 0;
    }
  }
  return mask;
}

// Weights in order of use, of any type that T takes.
template <class T>
class Weights {
 public:
  Weights(Random& random, const DenoiserShape& s) {
    const auto linear = [&](Index columns, Index depth) {
      add(random, columns * depth, 1.5 / std::sqrt(static_cast<double>(depth)));
      add(random, columns, 0.3);
    };
    if (s.channels > 0) linear(s.width, s.channels);
    for (Index layer = 0; layer < s.layers; ++layer) {
      linear(3 * s.width, s.width);
      for (int i = 0; i < 3; ++i) linear(s.width, s.width);
      linear(s.hidden, s.width);
      linear(s.width, s.hidden);
    }
    if (s.channels > 0) linear(2 * s.channels, s.width);
  }
  const std::vector<WeightArray>& arrays() const { return arrays_; }
  // The other sign for the first weight.
  void change() {
    const Index high_byte = arrays_[0].bytes() / arrays_[0].count - 1;
    static_cast<unsigned char*>(const_cast<void*>(arrays_[0].data))[high_byte] ^= 0x80;
  }

 private:
  void add(Random& random, Index count, double size) {
    const std::uint64_t kind = random.bits() % 4;
    if (kind == 0) {
      halves_.emplace_back(count);
      for (Index i = 0; i < count; ++i) {
        const float value = static_cast<float>(random.number(size));
        std::uint32_t word;
        std::memcpy(&word, &value, sizeof(word));
        halves_.back().data()[i] = static_cast<std::uint16_t>(word >> 16);
      }
      arrays_.push_back({halves_.back().data(), WeightType::kBfloat16, count});
    } else if (kind == 1 && sizeof(T) == 8) {
      doubles_.emplace_back(count, random, size);
      arrays_.push_back({doubles_.back().data(), WeightType::kFloat64, count});
    } else {
      floats_.emplace_back(count, random, size);
      arrays_.push_back({floats_.back().data(), WeightType::kFloat32, count});
    }
  }
  std::vector<Exact<std::uint16_t>> halves_;
  std::vector<Exact<float>> floats_;
  std::vector<Exact<double>> doubles_;
  std::vector<WeightArray> arrays_;
};

template <class T>
struct Problem {
  Index samples, tokens, keys, steps;
  DenoiserShape shape{};
  Exact<bool> token_mask, key_mask;
  Batch batch() const { return {samples, tokens, keys, token_mask.data(), key_mask.data()}; }

  explicit Problem(Random& random, bool one_block = false) {
    constexpr Index kHeadSizes[] = {1, 2, 3, 4, 5, 8, 12, 16, 24, 32};
    samples = random.size(5);
    tokens = random.size(70);
    keys = random.size(60);
    steps = random.size(3);
    const Index size = kHeadSizes[random.bits() % std::size(kHeadSizes)];
    shape.heads = 1 + static_cast<Index>(random.bits() % static_cast<std::uint64_t>(std::max<Index>(1, 48 / size)));
    shape.width = size * shape.heads;
    shape.channels = one_block ? 0 : random.size(20);
    shape.layers = one_block ? 1 : random.size(2);
    shape.hidden = random.size(3 * shape.width);
    token_mask = random_mask(random, samples, tokens);
    key_mask = random_mask(random, samples, keys);
  }
};

// One call: inputs that must not change, and a result that must not depend on the number of threads.
template <class T>
class Call {
 public:
  virtual ~Call() = default;
  virtual Exact<T> run(Isa isa, int threads) = 0;
  virtual void change_weights() {}
  bool inputs_unchanged() const {
    for (std::size_t i = 0; i < inputs_.size(); ++i) {
      if (!inputs_[i].same(kept_[i])) return false;
    }
    return true;
  }

 protected:
  const T* input(Index count, Random& random, double size) {
    inputs_.emplace_back(count, random, size);
    kept_.push_back(inputs_.back().copy());
    return inputs_.back().data();
  }
  T* result(Index count) {
    result_ = Exact<T>(count);
    std::fill_n(result_.data(), count, std::numeric_limits<T>::quiet_NaN());
    return result_.data();
  }
  Exact<T> result_;

 private:
  std::vector<Exact<T>> inputs_, kept_;
};

template <class T>
class LoopOf final : public Call<T> {
 public:
  explicit LoopOf(Random& random)
      : problem_(random), weights_(random, problem_.shape), packed_(problem_.shape, weights_.arrays()) {
    const Problem<T>& p = problem_;
    const Index width = p.shape.width;
    request_.weights = &packed_;
    request_.batch = p.batch();
    request_.steps = p.steps;
    request_.x = this->input(p.samples * p.tokens * p.shape.channels, random, 2);
    request_.position = this->input(p.tokens * width, random, 1);
    request_.block_modulation = this->input(p.steps * p.shape.layers * 9 * width, random, 0.8);
    request_.final_modulation = this->input(p.steps * 2 * width, random, 0.8);
    request_.cond_kv = this->input(p.shape.layers * 2 * p.samples * p.keys * width, random, random.uniform() * 4);
    request_.coefficients = this->input(p.steps * 4, random, 1);
    request_.seed = random.bits();
    ids_ = Exact<Index>(p.samples);
    for (Index i = 0; i < p.samples; ++i) ids_.data()[i] = static_cast<Index>(random.bits() >> 16);
    request_.sample_ids = ids_.data();
    request_.modality = static_cast<std::uint32_t>(random.bits() % 256);
  }
  Exact<T> run(Isa isa, int threads) override {
    ReverseLoopRequest<T> request = request_;
    request.out = this->result(problem_.samples * problem_.tokens * problem_.shape.channels);
    run_reverse_loops<T>({request}, isa, threads);
    return std::move(this->result_);
  }
  void change_weights() override { weights_.change(); }

 private:
  Problem<T> problem_;
  Weights<T> weights_;
  PackedWeights<T> packed_;
  Exact<Index> ids_;
  ReverseLoopRequest<T> request_{};
};

template <class T>
class BlockOf final : public Call<T> {
 public:
  explicit BlockOf(Random& random)
      : problem_(random, true), weights_(random, problem_.shape), packed_(problem_.shape, weights_.arrays()) {
    const Problem<T>& p = problem_;
    const Index width = p.shape.width;
    request_.weights = &packed_;
    request_.batch = p.batch();
    request_.x = this->input(p.samples * p.tokens * width, random, 2);
    request_.modulations = random.bits() % 2 == 0 ? 1 : p.samples;
    request_.modulation = this->input(request_.modulations * 9 * width, random, 0.8);
    request_.cond_kv = this->input(2 * p.samples * p.keys * width, random, random.uniform() * 4);
  }
  Exact<T> run(Isa isa, int threads) override {
    DenoiserBlockRequest<T> request = request_;
    request.out = this->result(problem_.samples * problem_.tokens * problem_.shape.width);
    run_denoiser_block<T>(request, isa, threads);
    return std::move(this->result_);
  }
  void change_weights() override { weights_.change(); }

 private:
  Problem<T> problem_;
  Weights<T> weights_;
  PackedWeights<T> packed_;
  DenoiserBlockRequest<T> request_{};
};

template <class T>
class AttentionOf final : public Call<T> {
 public:
  explicit AttentionOf(Random& random) : problem_(random) {
    const Problem<T>& p = problem_;
    request_.batch = p.batch();
    request_.batch.token_mask = nullptr;
    request_.width = p.shape.width;
    request_.heads = p.shape.heads;
    request_.q = this->input(p.samples * p.tokens * request_.width, random, random.uniform() * 10);
    request_.k = this->input(p.samples * p.keys * request_.width, random, random.uniform() * 10);
    request_.v = this->input(p.samples * p.keys * request_.width, random, 1);
  }
  Exact<T> run(Isa isa, int threads) override {
    CrossAttentionRequest<T> request = request_;
    request.out = this->result(problem_.samples * problem_.tokens * request.width);
    run_cross_attention<T>(request, isa, threads);
    return std::move(this->result_);
  }

 private:
  Problem<T> problem_;
  CrossAttentionRequest<T> request_{};
};

template <class T>
std::unique_ptr<Call<T>> random_call(std::uint64_t seed) {
  Random random(seed);
  if (seed % 3 == 0) return std::make_unique<LoopOf<T>>(random);
  if (seed % 3 == 1) return std::make_unique<BlockOf<T>>(random);
  return std::make_unique<AttentionOf<T>>(random);
}

}  // namespace rohydr

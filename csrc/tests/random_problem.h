// SPDX-License-Identifier: MIT
// Random sizes, masks, weights and arrays, in heap buffers of exactly the size that a caller gives.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <iterator>
#include <memory>
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
  Exact(Index count, T value) : Exact(count) { std::fill_n(data(), count, value); }
  Exact(Index count, Random& random, double size) : Exact(count) {
    for (Index i = 0; i < count; ++i) data_[static_cast<std::size_t>(i)] = static_cast<T>(random.number(size));
  }
  T* data() const { return data_.get(); }
  Index count() const { return count_; }
  std::size_t bytes() const { return static_cast<std::size_t>(count_) * sizeof(T); }
  Exact copy() const { return copy_of(data(), count_); }
  bool same(const Exact& other) const {
    return bytes() == other.bytes() && (count_ == 0 || std::memcmp(data(), other.data(), bytes()) == 0);
  }
  static Exact copy_of(const T* from, Index count) {
    Exact result(count);
    if (count > 0) std::memcpy(result.data(), from, result.bytes());
    return result;
  }

 private:
  Index count_ = 0;
  std::unique_ptr<T[]> data_;
};

// True everywhere (no array), the first ones, or any; now and then nothing in a row.
inline Exact<bool> random_mask(Random& random, Index rows, Index columns) {
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
  Weights(Random& random, const DenoiserShape& s, bool condition = false) {
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
    for (Index i = 0; condition && i < 2 * s.layers; ++i) linear(s.width, s.width);
    for (const WeightArray& array : arrays_) {
      kept_.push_back(Exact<char>::copy_of(static_cast<const char*>(array.data), array.bytes()));
    }
  }
  const std::vector<WeightArray>& arrays() const { return arrays_; }
  // The other sign for the first weight.
  void change() {
    const Index high_byte = arrays_[0].bytes() / arrays_[0].count - 1;
    static_cast<unsigned char*>(const_cast<void*>(arrays_[0].data))[high_byte] ^= 0x80;
  }
  bool unchanged() const {
    for (std::size_t i = 0; i < arrays_.size(); ++i) {
      if (std::memcmp(arrays_[i].data, kept_[i].data(), kept_[i].bytes()) != 0) return false;
    }
    return true;
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
  std::vector<Exact<char>> kept_;
};

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
    switch (random.bits() % 24) {
      case 0:
        samples = 0;
        break;
      case 1:
        tokens = 0;
        break;
      case 2:  // more groups than the way back adds up one by one
        samples = 12;
        tokens = 33;
        break;
    }
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

}  // namespace rohydr

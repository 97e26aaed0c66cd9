// SPDX-License-Identifier: MIT
// A call of the kernels with random arguments, to be made again and again.
#pragma once

#include <cmath>
#include <limits>
#include <utility>

#include "random_problem.h"

namespace rohydr {

// The arrays that a call fills.
template <class T>
using Results = std::vector<Exact<T>>;

template <class T>
bool same(const Results<T>& a, const Results<T>& b) {
  return std::equal(a.begin(), a.end(), b.begin(), b.end(), [](const auto& x, const auto& y) { return x.same(y); });
}

template <class T>
bool all_finite(const Results<T>& results) {
  return std::all_of(results.begin(), results.end(), [](const Exact<T>& values) {
    return std::all_of(values.data(), values.data() + values.count(), [](T value) { return std::isfinite(value); });
  });
}

// One call: inputs that must not change, and results that must depend neither on the number of threads nor on which of
// several ways they are computed in.
template <class T>
class Call {
 public:
  virtual ~Call() = default;
  virtual int ways() const { return 1; }
  virtual Results<T> run(Isa isa, int threads, int way) = 0;
  virtual void change_weights() {}
  virtual bool inputs_unchanged() const {
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
  // Another array to be filled, with NaN in it until then.
  T* result(Index count) {
    results_.emplace_back(count, std::numeric_limits<T>::quiet_NaN());
    return results_.back().data();
  }
  Results<T> taken() { return std::exchange(results_, {}); }

 private:
  std::vector<Exact<T>> inputs_, kept_;
  Results<T> results_;
};

// A call of what has weights.
template <class T>
class WeightedCall : public Call<T> {
 public:
  void change_weights() override { weights_.change(); }
  bool inputs_unchanged() const override { return Call<T>::inputs_unchanged() && weights_.unchanged(); }

 protected:
  // `condition`: with K and V of the condition.
  WeightedCall(Random& random, bool one_block, bool condition = false)
      : problem_(random, one_block), weights_(random, problem_.shape, condition),
        packed_(problem_.shape, weights_.arrays(), condition) {}

  // Elements of (B, T, columns).
  Index tokens_of(Index columns) const { return problem_.samples * problem_.tokens * columns; }
  // Elements of (L, 2, B, S, W).
  Index condition_count() const {
    return problem_.shape.layers * 2 * problem_.samples * problem_.keys * problem_.shape.width;
  }
  const T* condition(Random& random) { return this->input(condition_count(), random, random.uniform() * 4); }
  // One array for each weight.
  std::vector<T*> weight_results() {
    std::vector<T*> places;
    for (const WeightArray& array : weights_.arrays()) places.push_back(this->result(array.count));
    return places;
  }

  Problem problem_;
  Weights<T> weights_;
  PackedWeights<T> packed_;
};

}  // namespace rohydr

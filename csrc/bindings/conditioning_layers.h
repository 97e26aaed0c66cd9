// SPDX-License-Identifier: MIT
// The layers of a conditioning as Python holds them.
#pragma once

#include <memory>
#include <string>
#include <variant>
#include <vector>

#include "../cpu/modulation_memo.h"
#include "arrays.h"

namespace rohydr {

template <class T>
struct ConditioningLayers {
  std::vector<const T*> weights, biases;
  ModulationMemo<T> memo;
};

// The layers of a conditioning, the arrays that they lie in, and the modulation that they gave last.
struct LayersObject {
  py::tuple arrays;  // weights, then biases
  std::int64_t inputs, width, layers;
  std::variant<std::unique_ptr<ConditioningLayers<float>>, std::unique_ptr<ConditioningLayers<double>>> of_dtype;

  bool is_double() const { return of_dtype.index() == 1; }
  template <class T>
  ConditioningLayers<T>& get() const {
    return *std::get<std::unique_ptr<ConditioningLayers<T>>>(of_dtype);
  }
};

// `value` as such layers.
const LayersObject& layers_of(const char* op, const py::handle& value, const std::string& name);

}  // namespace rohydr

// SPDX-License-Identifier: MIT
// Packed weights as Python holds them, and the checks that every operation on them shares.
#pragma once

#include <memory>
#include <string>
#include <variant>
#include <vector>

#include "../cpu/calls.h"
#include "arrays.h"

namespace rohydr {

constexpr std::int64_t kSizeMax = std::int64_t{1} << 31;  // lists of tokens and keys are 32-bit

// What was packed: one block, a whole denoiser, or one with K and V of the condition, for Eq. 3.
enum class Packing { kBlock, kDenoiser, kDiffusionLoss };

// The packed weights together with the arrays that they came from.
struct PackedObject {
  Packing kind;
  py::list arrays;
  std::variant<std::unique_ptr<PackedWeights<float>>, std::unique_ptr<PackedWeights<double>>> weights;

  bool is_double() const { return weights.index() == 1; }
  template <class T>
  PackedWeights<T>* get() const {
    return std::get<std::unique_ptr<PackedWeights<T>>>(weights).get();
  }
  const DenoiserShape& shape() const {
    return is_double() ? get<double>()->shape() : get<float>()->shape();
  }
};

// `value` as packed weights of that kind.
const PackedObject* packed_of(const char* op, const py::handle& value, const std::string& name, Packing kind);

const bool* mask(const char* op, const py::object& value, const std::string& name, std::int64_t rows,
                 std::int64_t columns);
bool boolean(const char* op, const py::object& value, const char* name);
int thread_count(const char* op, const py::object& threads);
const std::int64_t* sample_ids_of(const char* op, const py::object& value, const std::string& name,
                                  std::int64_t samples);
void check_keys(const char* op, std::int64_t keys);
// A list of tuples of `size` arguments each; the result holds them, whatever becomes of the caller's list meanwhile.
py::tuple tuples_of(const char* op, const py::object& value, const std::string& name, std::size_t size);

template <class T>
T* writeable_pointer(py::array value) {
  return static_cast<T*>(value.mutable_data());
}

// One writeable array for each weight, shaped like it.
template <class T>
std::vector<T*> weight_gradients(const char* op, const PackedObject& object, const py::object& value,
                                 const std::string& name) {
  RH_CHECK(py::isinstance<py::tuple>(value) && py::len(value) == object.arrays.size(),
           op << ": " << name << " must be a tuple of " << object.arrays.size() << " arrays, got "
              << Py_TYPE(value.ptr())->tp_name << ". Allocate one for each weight.");
  const py::tuple gradients = py::reinterpret_borrow<py::tuple>(value);
  std::vector<T*> result;
  for (std::size_t i = 0; i < gradients.size(); ++i) {
    const std::string full = name + "[" + std::to_string(i) + "]";
    const py::array weight = py::reinterpret_borrow<py::array>(object.arrays[i]);
    const py::array gradient = array<T>(op, gradients[i], full, weight.ndim());
    RH_CHECK(gradient.attr("shape").equal(weight.attr("shape")) && gradient.writeable(),
             op << ": " << full << " must be writeable and have shape " << shape_text(weight) << ", got "
                << shape_text(gradient) << ". Allocate it like the weight.");
    result.push_back(writeable_pointer<T>(gradient));
  }
  return result;
}

void bind_conditioning(py::module_& m);
void bind_diffusion_loss(py::module_& m);
void bind_packed(py::module_& m);
void bind_loops(py::module_& m);
void bind_networks(py::module_& m);

}  // namespace rohydr

// SPDX-License-Identifier: MIT
// Python's way to what blocks read of the steps and of the condition, and back.
#include <algorithm>
#include <utility>

#include "packed.h"

namespace rohydr {
namespace {

// Everything but the results.
template <class T>
ConditioningRequest<T> read_request(const char* op, const py::array& features, const py::object& encoded,
                                    const py::object& weights, const py::object& biases) {
  RH_CHECK(py::isinstance<py::tuple>(weights) && py::isinstance<py::tuple>(biases) &&
               py::len(weights) == py::len(biases) && py::len(weights) >= 3 && py::len(weights) % 2 == 1,
           op << ": weights and biases must be tuples of 3 + 2 L arrays for L blocks, got "
              << Py_TYPE(weights.ptr())->tp_name << " and " << Py_TYPE(biases.ptr())->tp_name
              << ". Pass one bias for each weight.");
  const auto matrices = py::reinterpret_borrow<py::tuple>(weights), offsets = py::reinterpret_borrow<py::tuple>(biases);
  ConditioningRequest<T> r{};
  r.features = pointer<T>(array<T>(op, features, "features", 2));
  r.rows = features.shape(0);
  r.inputs = features.shape(1);
  r.width = array<T>(op, matrices[0], "weights[0]", 2).shape(0);
  r.layers = static_cast<std::int64_t>(matrices.size() - 3) / 2;
  RH_CHECK(r.inputs >= 1 && r.width >= 1 && r.width < kSizeMax / 9,
           op << ": weights[0] must be a matrix of at least one element, got (" << r.width << ", " << r.inputs
              << "). Pass the first layer of the time embedding.");
  for (std::int64_t i = 0; i < 3 + 2 * r.layers; ++i) {
    const std::string place = "[" + std::to_string(i) + "]";
    const auto [outputs, inputs] = conditioning_layer(i, r.layers, r.width, r.inputs);
    const auto at = static_cast<std::size_t>(i);
    r.weights.push_back(pointer<T>(array<T>(op, matrices[at], "weights" + place, {outputs, inputs})));
    r.biases.push_back(pointer<T>(array<T>(op, offsets[at], "biases" + place, {outputs})));
  }
  const py::array condition = array<T>(op, encoded, "encoded", 3);
  r.encoded = pointer<T>(array<T>(op, encoded, "encoded", {condition.shape(0), condition.shape(1), r.width}));
  r.condition_rows = condition.shape(0) * condition.shape(1);
  return r;
}

template <class T>
void conditioning_of(const py::array& features, const py::object& encoded, const py::object& weights,
                     const py::object& biases, const py::object& blocks, const py::object& final,
                     const py::object& cond_kv, int threads) {
  constexpr const char* op = "conditioning";
  ConditioningRequest<T> r = read_request<T>(op, features, encoded, weights, biases);
  const py::array condition = py::reinterpret_borrow<py::array>(encoded);
  r.blocks = writeable_pointer<T>(writeable<T>(op, blocks, "blocks", {r.rows, r.layers, 9, r.width}));
  r.final = writeable_pointer<T>(writeable<T>(op, final, "final", {r.rows, 2, r.width}));
  r.cond_kv = writeable_pointer<T>(
      writeable<T>(op, cond_kv, "cond_kv", {r.layers, 2, condition.shape(0), condition.shape(1), r.width}));
  const Isa isa = selected_isa();
  const ReleasedGil released;
  run_conditioning(r, isa, threads);
}

// Which gradients are wanted, in the order of `features, encoded, *weights, *biases`, and their sizes.
std::vector<std::int64_t> wanted_sizes(const char* op, const py::object& wanted, const py::array& features,
                                       const py::object& encoded, const py::object& weights, const py::object& biases) {
  std::vector<py::object> inputs{features, encoded};
  for (const py::object& part : {weights, biases}) {
    for (const py::handle value : part) inputs.push_back(py::reinterpret_borrow<py::object>(value));
  }
  RH_CHECK(py::isinstance<py::tuple>(wanted) && py::len(wanted) == inputs.size(),
           op << ": wanted must be a tuple of " << inputs.size() << " booleans, got " << Py_TYPE(wanted.ptr())->tp_name
              << ". Pass one for features, encoded, and each of the weights and biases.");
  const auto flags = py::reinterpret_borrow<py::tuple>(wanted);
  std::vector<std::int64_t> sizes;
  for (std::size_t i = 0; i < inputs.size(); ++i) {
    sizes.push_back(boolean(op, flags[i], "wanted") ? py::reinterpret_borrow<py::array>(inputs[i]).size() : -1);
  }
  return sizes;
}

template <class T>
void conditioning_backward_of(const py::array& features, const py::object& encoded, const py::object& weights,
                              const py::object& biases, const py::object& blocks, const py::object& final,
                              const py::object& cond_kv, const py::object& wanted, const py::object& gradients,
                              int threads) {
  constexpr const char* op = "conditioning_backward";
  ConditioningBackwardRequest<T> r{};
  const ConditioningRequest<T>& f = r.forward = read_request<T>(op, features, encoded, weights, biases);
  const py::array condition = py::reinterpret_borrow<py::array>(encoded);
  r.blocks = pointer<T>(array<T>(op, blocks, "blocks_gradient", {f.rows, f.layers, 9, f.width}));
  r.final = pointer<T>(array<T>(op, final, "final_gradient", {f.rows, 2, f.width}));
  r.cond_kv = pointer<T>(
      array<T>(op, cond_kv, "cond_kv_gradient", {f.layers, 2, condition.shape(0), condition.shape(1), f.width}));
  const std::vector<std::int64_t> sizes = wanted_sizes(op, wanted, features, encoded, weights, biases);
  std::int64_t total = 0;
  for (const std::int64_t size : sizes) total += std::max<std::int64_t>(size, 0);
  T* next = writeable_pointer<T>(writeable<T>(op, gradients, "gradients", {total}));
  std::vector<T*> places;
  for (const std::int64_t size : sizes) places.push_back(size < 0 ? nullptr : std::exchange(next, next + size));
  r.features_gradient = places[0];
  r.encoded_gradient = places[1];
  const auto middle = places.begin() + 2 + static_cast<std::ptrdiff_t>(f.weights.size());
  r.weight_gradients.assign(places.begin() + 2, middle);
  r.bias_gradients.assign(middle, places.end());
  const Isa isa = selected_isa();
  const ReleasedGil released;
  run_conditioning_backward(r, isa, threads);
}

// Calls `run` with a number of the dtype of `features`.
template <class Run>
void by_dtype(const char* op, const py::object& features, const Run& run) {
  const py::array rows = contiguous(op, features, "features");
  RH_CHECK(rows.ndim() == 2, op << ": features must have 2 dimensions, got " << rows.ndim() << ". Reshape it.");
  has_dtype<double>(rows) ? run(rows, double{}) : run(rows, float{});
}

void conditioning(const py::object& features, const py::object& encoded, const py::object& weights,
                  const py::object& biases, const py::object& blocks, const py::object& final,
                  const py::object& cond_kv, const py::object& threads) {
  const int count = thread_count("conditioning", threads);
  by_dtype("conditioning", features, [&](const py::array& rows, auto number) {
    conditioning_of<decltype(number)>(rows, encoded, weights, biases, blocks, final, cond_kv, count);
  });
}

void conditioning_backward(const py::object& features, const py::object& encoded, const py::object& weights,
                           const py::object& biases, const py::object& blocks, const py::object& final,
                           const py::object& cond_kv, const py::object& wanted, const py::object& gradients,
                           const py::object& threads) {
  const int count = thread_count("conditioning_backward", threads);
  by_dtype("conditioning_backward", features, [&](const py::array& rows, auto number) {
    conditioning_backward_of<decltype(number)>(rows, encoded, weights, biases, blocks, final, cond_kv, wanted,
                                               gradients, count);
  });
}

}  // namespace

void bind_conditioning(py::module_& m) {
  m.def("conditioning", &conditioning, py::arg("features"), py::arg("encoded"), py::arg("weights"), py::arg("biases"),
        py::arg("blocks"), py::arg("final"), py::arg("cond_kv"), py::arg("threads"),
        "Shifts, scales and gates at some steps, and keys and values of the condition. Layers are the two of the time "
        "embedding, the blocks' modulations, the final one, the blocks' keys and values.");
  m.def("conditioning_backward", &conditioning_backward, py::arg("features"), py::arg("encoded"), py::arg("weights"),
        py::arg("biases"), py::arg("blocks_gradient"), py::arg("final_gradient"), py::arg("cond_kv_gradient"),
        py::arg("wanted"), py::arg("gradients"), py::arg("threads"),
        "Its way back: the wanted gradients of features, encoded, weights and biases, one after the other in a row.");
}

}  // namespace rohydr

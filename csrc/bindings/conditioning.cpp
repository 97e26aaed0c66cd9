// SPDX-License-Identifier: MIT
// Python's way to what blocks read of the steps and of the condition, and back.
#include <algorithm>
#include <memory>
#include <utility>

#include "conditioning_layers.h"
#include "packed.h"

namespace rohydr {
namespace {

template <class T>
std::unique_ptr<ConditioningLayers<T>> read_layers(const char* op, const LayersObject& object) {
  auto result = std::make_unique<ConditioningLayers<T>>();
  const std::int64_t count = 3 + 2 * object.layers;
  for (std::int64_t i = 0; i < 2 * count; ++i) {
    const auto [outputs, inputs] = conditioning_layer(i % count, object.layers, object.width, object.inputs);
    const auto at = static_cast<std::size_t>(i);
    const std::string name = "arrays[" + std::to_string(i) + "]";
    if (i < count) {
      result->weights.push_back(pointer<T>(array<T>(op, object.arrays[at], name, {outputs, inputs})));
    } else {
      result->biases.push_back(pointer<T>(array<T>(op, object.arrays[at], name, {outputs})));
    }
  }
  return result;
}

std::unique_ptr<LayersObject> pack_conditioning(const py::object& sequence) {
  constexpr const char* op = "pack_conditioning";
  RH_CHECK(py::isinstance<py::list>(sequence) || py::isinstance<py::tuple>(sequence),
           op << ": arrays must be a list, got " << Py_TYPE(sequence.ptr())->tp_name << ". Pass one.");
  auto result = std::make_unique<LayersObject>();
  result->arrays = py::tuple(sequence);
  const std::size_t count = result->arrays.size();
  RH_CHECK(count >= 6 && count % 4 == 2, op << ": arrays must be 3 + 2 L weights and as many biases for L blocks, got "
                                            << count << ". Pass one bias for each weight.");
  result->layers = static_cast<std::int64_t>(count - 6) / 4;
  const py::array first = contiguous(op, result->arrays[0], "arrays[0]");
  RH_CHECK(first.ndim() == 2 && first.size() >= 1 && first.shape(0) < kSizeMax / 9,
           op << ": arrays[0] must be a matrix of at least one element, got shape " << shape_text(first)
              << ". Pass the first layer of the time embedding.");
  result->width = first.shape(0);
  result->inputs = first.shape(1);
  if (has_dtype<double>(first)) {
    result->of_dtype = read_layers<double>(op, *result);
  } else {
    result->of_dtype = read_layers<float>(op, *result);
  }
  return result;
}

// Everything but the results.
template <class T>
ConditioningRequest<T> read_request(const char* op, const LayersObject& object, const py::object& features,
                                    const py::object& encoded) {
  ConditioningRequest<T> r{};
  const py::array rows = array<T>(op, features, "features", 2);
  r.rows = rows.shape(0);
  r.inputs = object.inputs;
  r.width = object.width;
  r.layers = object.layers;
  r.features = pointer<T>(array<T>(op, features, "features", {r.rows, r.inputs}));
  const ConditioningLayers<T>& layers = object.get<T>();
  r.weights = layers.weights;
  r.biases = layers.biases;
  const py::array condition = array<T>(op, encoded, "encoded", 3);
  r.encoded = pointer<T>(array<T>(op, encoded, "encoded", {condition.shape(0), condition.shape(1), r.width}));
  r.condition_rows = condition.shape(0) * condition.shape(1);
  return r;
}

template <class T>
void conditioning_of(const LayersObject& layers, const py::object& features, const py::object& encoded,
                     const py::object& blocks, const py::object& final, const py::object& cond_kv, int threads) {
  constexpr const char* op = "conditioning";
  ConditioningRequest<T> r = read_request<T>(op, layers, features, encoded);
  const py::array condition = py::reinterpret_borrow<py::array>(encoded);
  r.blocks = writeable_pointer<T>(writeable<T>(op, blocks, "blocks", {r.rows, r.layers, 9, r.width}));
  r.final = writeable_pointer<T>(writeable<T>(op, final, "final", {r.rows, 2, r.width}));
  r.cond_kv = writeable_pointer<T>(
      writeable<T>(op, cond_kv, "cond_kv", {r.layers, 2, condition.shape(0), condition.shape(1), r.width}));
  const Isa isa = selected_isa();
  const ReleasedGil released;
  run_conditioning(r, isa, threads, Threads::kOwn, &layers.get<T>().memo);
}

// Which gradients are wanted, in the order of `features, encoded, *weights, *biases`, and their sizes.
std::vector<std::int64_t> wanted_sizes(const char* op, const py::object& wanted, const LayersObject& layers,
                                       const py::object& features, const py::object& encoded) {
  std::vector<py::array> inputs;
  for (const py::object& value : {features, encoded}) inputs.push_back(py::reinterpret_borrow<py::array>(value));
  for (const py::handle value : layers.arrays) inputs.push_back(py::reinterpret_borrow<py::array>(value));
  RH_CHECK(py::isinstance<py::tuple>(wanted) && py::len(wanted) == inputs.size(),
           op << ": wanted must be a tuple of " << inputs.size() << " booleans, got " << Py_TYPE(wanted.ptr())->tp_name
              << ". Pass one for features, encoded, and each of the layers' arrays.");
  const auto flags = py::reinterpret_borrow<py::tuple>(wanted);
  std::vector<std::int64_t> sizes;
  for (std::size_t i = 0; i < inputs.size(); ++i) {
    sizes.push_back(boolean(op, flags[i], "wanted") ? inputs[i].size() : -1);
  }
  return sizes;
}

template <class T>
void conditioning_backward_of(const LayersObject& layers, const py::object& features, const py::object& encoded,
                              const py::object& blocks, const py::object& final, const py::object& cond_kv,
                              const py::object& wanted, const py::object& gradients, int threads) {
  constexpr const char* op = "conditioning_backward";
  ConditioningBackwardRequest<T> r{};
  const ConditioningRequest<T>& f = r.forward = read_request<T>(op, layers, features, encoded);
  const py::array condition = py::reinterpret_borrow<py::array>(encoded);
  r.blocks = pointer<T>(array<T>(op, blocks, "blocks_gradient", {f.rows, f.layers, 9, f.width}));
  r.final = pointer<T>(array<T>(op, final, "final_gradient", {f.rows, 2, f.width}));
  r.cond_kv = pointer<T>(
      array<T>(op, cond_kv, "cond_kv_gradient", {f.layers, 2, condition.shape(0), condition.shape(1), f.width}));
  const std::vector<std::int64_t> sizes = wanted_sizes(op, wanted, layers, features, encoded);
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

void conditioning(const py::object& layers, const py::object& features, const py::object& encoded,
                  const py::object& blocks, const py::object& final, const py::object& cond_kv,
                  const py::object& threads) {
  const int count = thread_count("conditioning", threads);
  const LayersObject& object = layers_of("conditioning", layers, "layers");
  const auto run = object.is_double() ? &conditioning_of<double> : &conditioning_of<float>;
  run(object, features, encoded, blocks, final, cond_kv, count);
}

void conditioning_backward(const py::object& layers, const py::object& features, const py::object& encoded,
                           const py::object& blocks, const py::object& final, const py::object& cond_kv,
                           const py::object& wanted, const py::object& gradients, const py::object& threads) {
  const int count = thread_count("conditioning_backward", threads);
  const LayersObject& object = layers_of("conditioning_backward", layers, "layers");
  const auto run = object.is_double() ? &conditioning_backward_of<double> : &conditioning_backward_of<float>;
  run(object, features, encoded, blocks, final, cond_kv, wanted, gradients, count);
}

std::size_t nbytes(const LayersObject& object) {
  return std::visit([](const auto& layers) { return layers->memo.bytes(); }, object.of_dtype);
}

}  // namespace

const LayersObject& layers_of(const char* op, const py::handle& value, const std::string& name) {
  RH_CHECK(py::isinstance<LayersObject>(value), op << ": " << name << " must be from pack_conditioning, got "
                                                   << Py_TYPE(value.ptr())->tp_name << ". Pass such layers.");
  return *py::cast<const LayersObject*>(value);
}

void bind_conditioning(py::module_& m) {
  py::class_<LayersObject> layers(m, "ConditioningLayers", py::is_final(),
                                  "Layers of a conditioning, and the modulation that they gave last.");
  reinterpret_cast<PyTypeObject*>(layers.ptr())->tp_new = nullptr;  // __new__ would give one with nothing in it
  layers.def_property_readonly("nbytes", &nbytes);
  m.def("pack_conditioning", &pack_conditioning, py::arg("arrays"),
        "Weights, then biases, of the two layers of the time embedding, the blocks' modulations, the final one, the "
        "blocks' keys and values.");
  m.def("conditioning", &conditioning, py::arg("layers"), py::arg("features"), py::arg("encoded"), py::arg("blocks"),
        py::arg("final"), py::arg("cond_kv"), py::arg("threads"),
        "Shifts, scales and gates at some steps, and keys and values of the condition. What the layers gave last is "
        "copied where features and parameters are the same.");
  m.def("conditioning_backward", &conditioning_backward, py::arg("layers"), py::arg("features"), py::arg("encoded"),
        py::arg("blocks_gradient"), py::arg("final_gradient"), py::arg("cond_kv_gradient"), py::arg("wanted"),
        py::arg("gradients"), py::arg("threads"),
        "Its way back: the wanted gradients of features, encoded, weights and biases, one after the other in a row.");
}

}  // namespace rohydr

// SPDX-License-Identifier: MIT
// Python's way to what blocks read of the steps and of the condition.
#include "packed.h"

namespace rohydr {
namespace {

constexpr const char* op = "conditioning";

template <class T>
void conditioning_of(const py::array& features, const py::object& encoded, const py::object& weights,
                     const py::object& biases, const py::object& blocks, const py::object& final,
                     const py::object& cond_kv, int threads) {
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
    const bool of_block = i > 1 && i < 2 + r.layers;
    const std::int64_t outputs = (i < 2 ? 1 : of_block ? 9 : 2) * r.width, inputs = i == 0 ? r.inputs : r.width;
    const auto at = static_cast<std::size_t>(i);
    r.weights.push_back(pointer<T>(array<T>(op, matrices[at], "weights" + place, {outputs, inputs})));
    r.biases.push_back(pointer<T>(array<T>(op, offsets[at], "biases" + place, {outputs})));
  }
  const py::array condition = array<T>(op, encoded, "encoded", 3);
  const std::int64_t samples = condition.shape(0), keys = condition.shape(1);
  r.encoded = pointer<T>(array<T>(op, encoded, "encoded", {samples, keys, r.width}));
  r.condition_rows = samples * keys;
  r.blocks = writeable_pointer<T>(writeable<T>(op, blocks, "blocks", {r.rows, r.layers, 9, r.width}));
  r.final = writeable_pointer<T>(writeable<T>(op, final, "final", {r.rows, 2, r.width}));
  r.cond_kv = writeable_pointer<T>(writeable<T>(op, cond_kv, "cond_kv", {r.layers, 2, samples, keys, r.width}));
  const Isa isa = selected_isa();
  const ReleasedGil released;
  run_conditioning(r, isa, threads);
}

void conditioning(const py::object& features, const py::object& encoded, const py::object& weights,
                  const py::object& biases, const py::object& blocks, const py::object& final,
                  const py::object& cond_kv, const py::object& threads) {
  const int count = thread_count(op, threads);
  const py::array rows = contiguous(op, features, "features");
  RH_CHECK(rows.ndim() == 2, op << ": features must have 2 dimensions, got " << rows.ndim() << ". Reshape it.");
  if (has_dtype<double>(rows)) {
    conditioning_of<double>(rows, encoded, weights, biases, blocks, final, cond_kv, count);
  } else {
    conditioning_of<float>(rows, encoded, weights, biases, blocks, final, cond_kv, count);
  }
}

}  // namespace

void bind_conditioning(py::module_& m) {
  m.def("conditioning", &conditioning, py::arg("features"), py::arg("encoded"), py::arg("weights"), py::arg("biases"),
        py::arg("blocks"), py::arg("final"), py::arg("cond_kv"), py::arg("threads"),
        "Shifts, scales and gates at some steps, and keys and values of the condition. Layers are the two of the time "
        "embedding, the blocks' modulations, the final one, the blocks' keys and values.");
}

}  // namespace rohydr

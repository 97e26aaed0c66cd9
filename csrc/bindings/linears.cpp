// SPDX-License-Identifier: MIT
// Python's way to several linear layers on the same rows.
#include "packed.h"

namespace rohydr {
namespace {

template <class T>
void linears_of(const py::array& x, const py::object& weights, const py::object& biases, std::int64_t parts,
                bool rows_first, const py::object& out, int threads) {
  constexpr const char* op = "linears";
  RH_CHECK(py::isinstance<py::tuple>(weights) && py::isinstance<py::tuple>(biases) &&
               py::len(weights) == py::len(biases) && py::len(weights) >= 1,
           op << ": weights and biases must be tuples of as many arrays, got " << Py_TYPE(weights.ptr())->tp_name
              << " and " << Py_TYPE(biases.ptr())->tp_name << ". Pass one bias for each weight.");
  const auto matrices = py::reinterpret_borrow<py::tuple>(weights), offsets = py::reinterpret_borrow<py::tuple>(biases);
  LinearsRequest<T> r{};
  r.x = pointer<T>(array<T>(op, x, "x", 2));
  r.rows = x.shape(0);
  r.depth = x.shape(1);
  const std::int64_t whole = array<T>(op, matrices[0], "weights[0]", 2).shape(0);
  RH_CHECK(r.depth >= 1 && whole >= 1 && parts >= 1 && whole % parts == 0,
           op << ": parts must divide the outputs of a layer, " << whole << ", got " << parts << ". Choose a divisor.");
  r.columns = whole / parts;
  for (std::size_t i = 0; i < matrices.size(); ++i) {
    const std::string place = "[" + std::to_string(i) + "]";
    const T* const weight = pointer<T>(array<T>(op, matrices[i], "weights" + place, {whole, r.depth}));
    const T* const bias = pointer<T>(array<T>(op, offsets[i], "biases" + place, {whole}));
    for (std::int64_t part = 0; part < parts; ++part) {
      r.weights.push_back(weight + part * r.columns * r.depth);
      r.biases.push_back(bias + part * r.columns);
    }
  }
  const auto count = static_cast<std::int64_t>(r.weights.size());
  if (rows_first) {
    r.out = writeable_pointer<T>(writeable<T>(op, out, "out", {r.rows, count, r.columns}));
    r.matrix_stride = r.columns;
    r.row_stride = count * r.columns;
  } else {
    r.out = writeable_pointer<T>(writeable<T>(op, out, "out", {count, r.rows, r.columns}));
    r.matrix_stride = r.rows * r.columns;
    r.row_stride = r.columns;
  }
  if (r.rows == 0) return;
  const Isa isa = selected_isa();
  const ReleasedGil released;
  run_linears(r, isa, threads);
}

void linears(const py::object& x, const py::object& weights, const py::object& biases, const py::object& parts,
             const py::object& rows_first, const py::object& out, const py::object& threads) {
  constexpr const char* op = "linears";
  const int count = thread_count(op, threads);
  const auto pieces = static_cast<std::int64_t>(integer(op, parts, "parts", kSizeMax - 1));
  const bool first = boolean(op, rows_first, "rows_first");
  const py::array rows = contiguous(op, x, "x");
  RH_CHECK(rows.ndim() == 2, op << ": x must have 2 dimensions, got " << rows.ndim() << ". Reshape it.");
  if (has_dtype<double>(rows)) {
    linears_of<double>(rows, weights, biases, pieces, first, out, count);
  } else {
    linears_of<float>(rows, weights, biases, pieces, first, out, count);
  }
}

}  // namespace

void bind_linears(py::module_& m) {
  m.def("linears", &linears, py::arg("x"), py::arg("weights"), py::arg("biases"), py::arg("parts"),
        py::arg("rows_first"), py::arg("out"), py::arg("threads"), "Linear layers of equal shape on the same rows.");
}

}  // namespace rohydr

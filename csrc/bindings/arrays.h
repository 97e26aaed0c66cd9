// SPDX-License-Identifier: MIT
// What Python passes, checked before anything is read: nothing is converted, because it is read or filled in place.
#pragma once

#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>

#include <cstdint>
#include <initializer_list>
#include <string>

#include "gil.h"
#include "rohydr/check.h"

namespace rohydr {

namespace py = pybind11;

template <typename T>
const char* dtype_name() {
  return std::string(py::str(py::dtype::of<T>())) == "bool" ? "bool"
         : sizeof(T) == 2                                   ? "uint16"
         : std::is_integral_v<T>                            ? "int64"
         : sizeof(T) == 8                                   ? "float64"
                                                            : "float32";
}

// What an error message shows of a value, also of one that cannot be shown.
inline std::string text_of(py::handle value) {
  try {
    return py::repr(value);
  } catch (py::error_already_set&) {
    return std::string("an object of type ") + Py_TYPE(value.ptr())->tp_name;
  }
}

inline std::uint64_t integer(const char* op, py::handle value, const char* name, std::uint64_t max) {
  const py::object index = py::reinterpret_steal<py::object>(PyNumber_Index(value.ptr()));
  std::uint64_t number = index ? PyLong_AsUnsignedLongLong(index.ptr()) : 0;
  const bool is_integer = !PyErr_Occurred();
  PyErr_Clear();
  RH_CHECK(is_integer && number <= max, op << ": " << name << " must be an integer in [0, " << max << "], got "
                                           << text_of(value) << ". Pass such an integer.");
  return number;
}

template <typename T>
bool has_dtype(const py::array& value) {
  return value.dtype().is(py::dtype::of<T>()) || value.dtype().equal(py::dtype::of<T>());
}

// A C-contiguous numpy array, aligned for its elements.
inline py::array contiguous(const char* op, const py::object& value, const std::string& name) {
  RH_CHECK(py::isinstance<py::array>(value), op << ": " << name << " must be a numpy array, got "
                                                << Py_TYPE(value.ptr())->tp_name << ". Pass one.");
  py::array result = py::reinterpret_borrow<py::array>(value);
  RH_CHECK((result.flags() & py::array::c_style) != 0,
           op << ": " << name << " must be C-contiguous, got strides that are not. Make it contiguous.");
  const auto address = reinterpret_cast<std::uintptr_t>(result.data());
  RH_CHECK(result.itemsize() == 0 || address % static_cast<std::uintptr_t>(result.itemsize()) == 0,
           op << ": " << name << " must be aligned to its elements, got address " << address << ". Copy it.");
  return result;
}

inline std::string shape_text(const py::array& value) { return std::string(py::str(value.attr("shape"))); }

// ... of dtype T and this rank.
template <typename T>
py::array array(const char* op, const py::object& value, const std::string& name, py::ssize_t rank) {
  py::array result = contiguous(op, value, name);
  RH_CHECK(has_dtype<T>(result), op << ": " << name << " must have dtype " << dtype_name<T>() << ", got "
                                    << std::string(py::str(result.dtype())) << ". Convert it.");
  RH_CHECK(result.ndim() == rank, op << ": " << name << " must have " << rank << " dimensions, got " << result.ndim()
                                     << ". Reshape it.");
  return result;
}

// ... of exactly this shape.
template <typename T>
py::array array(const char* op, const py::object& value, const std::string& name,
                std::initializer_list<std::int64_t> shape) {
  py::array result = array<T>(op, value, name, static_cast<py::ssize_t>(shape.size()));
  std::string wanted;
  bool fits = true;
  py::ssize_t axis = 0;
  for (const std::int64_t size : shape) {
    fits = fits && result.shape(axis++) == size;
    wanted += (wanted.empty() ? "" : ", ") + std::to_string(size);
  }
  RH_CHECK(fits, op << ": " << name << " must have shape (" << wanted << "), got " << shape_text(result)
                    << ". Pass what the other arguments imply.");
  return result;
}

template <typename T>
py::array writeable(const char* op, const py::object& value, const std::string& name,
                    std::initializer_list<std::int64_t> shape) {
  py::array result = array<T>(op, value, name, shape);
  RH_CHECK(result.writeable(), op << ": " << name << " must be writeable, got a read-only array. Pass another.");
  return result;
}

template <typename T>
const T* pointer(const py::array& value) {
  return static_cast<const T*>(value.data());
}

// Adds what the files of this folder offer to the module.
void bind_philox(py::module_& m);
void bind_cuda_loops(py::module_& m);  // only with CUDA
void bind_cuda_gradients(py::module_& m);
void bind_cpu(py::module_& m);
void bind_signature(py::module_& m);

}  // namespace rohydr

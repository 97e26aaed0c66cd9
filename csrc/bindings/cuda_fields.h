// SPDX-License-Identifier: MIT
// What the kernels on CUDA are given by Python: a dict of sizes and of device addresses, which are integers.
#pragma once

#include <string>
#include <vector>

#include "../cuda/reverse_loop.h"
#include "arrays.h"
#include "rohydr/launch.h"

namespace rohydr {

constexpr std::uint64_t kCountMax = 1u << 20;

// The entries of a dict, each of which must be there.
class Fields {
 public:
  Fields(const char* op, const char* what, const py::handle& value) : op_(op), what_(what) {
    RH_CHECK(py::isinstance<py::dict>(value), op << ": " << what << " must be a dict, got "
                                                 << Py_TYPE(value.ptr())->tp_name << ". Pass its fields by name.");
    fields_ = py::reinterpret_borrow<py::dict>(value);
  }

  const char* op() const { return op_; }
  py::object get(const char* name) const {
    RH_CHECK(fields_.contains(name), op_ << ": " << what_ << " must have the field " << name << ". Pass it.");
    return fields_[name];
  }
  int size(const char* name) const { return static_cast<int>(integer(op_, get(name), name, kCountMax)); }
  std::int64_t samples() const {
    return static_cast<std::int64_t>(integer(op_, get("samples"), "samples", INT32_MAX));
  }
  template <class T>
  T* pointer(const char* name, bool needed) const {
    const std::uint64_t address = integer(op_, get(name), name, UINTPTR_MAX);
    RH_CHECK(address != 0 || !needed, op_ << ": " << name << " must not be null, got 0. Pass device memory.");
    return reinterpret_cast<T*>(address);
  }
  std::vector<const void*> addresses(const char* name, std::size_t count, bool needed) const {
    const py::object list = get(name);
    RH_CHECK(py::isinstance<py::list>(list) && py::len(list) == count,
             op_ << ": " << name << " must be a list of " << count << " addresses, got " << text_of(list)
                 << ". Pass those of one network, in order of use.");
    std::vector<const void*> found;
    for (const py::handle value : list) {
      const std::uint64_t address = integer(op_, value, name, UINTPTR_MAX);
      RH_CHECK(address != 0 || !needed, op_ << ": " << name << " must not be null, got 0. Pass device memory.");
      found.push_back(reinterpret_cast<const void*>(address));
    }
    return found;
  }

 private:
  const char *op_, *what_;
  py::dict fields_;
};

inline CudaType cuda_type_of(const char* op, const py::object& bfloat16) {
  RH_CHECK(PyBool_Check(bfloat16.ptr()),
           op << ": bfloat16 must be True or False, got " << text_of(bfloat16) << ". Pass one.");
  return bfloat16.ptr() == Py_True ? CudaType::kBfloat16 : CudaType::kFloat32;
}

// A reverse loop's; `weights` keeps the addresses that it points to.
CudaLoopModality modality_of(const Fields& fields, std::vector<const void*>& weights);

inline void check_cuda_refusal(const char* op, const std::string& text) {
  RH_CHECK(text.empty(), op << ": " << text << ". Take another backend.");
}

inline void check_cuda_launch(const char* op, int device, int error) {
  if (error == 0) return;
  throw std::runtime_error(std::string(op) + ": the CUDA launch failed on device " + std::to_string(device) + ": " +
                           cuda_error_text(error) + " (cudaError " + std::to_string(error) + ").");
}

inline py::object text_or_none(const std::string& text) {
  return text.empty() ? py::object(py::none()) : py::object(py::str(text));
}

}  // namespace rohydr

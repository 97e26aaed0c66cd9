// SPDX-License-Identifier: MIT
// Where tensors lie and how, as bytes: two lists with the same signature are the same memory read in the same way. Every
// call asks for that of a hundred parameters, so torch is asked through DLPack's C interface (version 1), in a fifth of
// the time that Python's attributes take.
#include "arrays.h"

namespace rohydr {
namespace {

struct DlDevice {
  std::int32_t type, id;
};
struct DlType {
  std::uint8_t code, bits;
  std::uint16_t lanes;
};
struct DlTensor {
  void* data;
  DlDevice device;
  std::int32_t dimensions;
  DlType type;
  std::int64_t *shape, *strides;  // strides in elements
  std::uint64_t byte_offset;
};
struct DlExchange {  // the order of DLPackExchangeAPI
  std::uint32_t major, minor;
  void* older;
  void *allocate, *managed_from_object, *managed_to_object;
  int (*tensor_from_object)(void* object, DlTensor* out);
  void* current_stream;
};

// What torch offers; `exchange` is null where it is not there, or speaks another version.
struct Torch {
  PyTypeObject *tensor = nullptr, *parameter = nullptr;
  const DlExchange* exchange = nullptr;
};

// Keeps what it finds: modules stay.
const Torch& torch_of_process() {
  static Torch torch;
  if (torch.exchange != nullptr) return torch;
  const auto module = py::reinterpret_steal<py::object>(PyImport_GetModule(py::str("torch").ptr()));
  if (!module) {
    PyErr_Clear();
    return torch;
  }
  const py::object tensor = py::getattr(module, "Tensor", py::none());
  const py::object parameter = py::getattr(py::getattr(module, "nn", py::none()), "Parameter", py::none());
  const py::object capsule = py::getattr(tensor, "__dlpack_c_exchange_api__", py::none());
  constexpr const char* name = "dlpack_exchange_api";
  const bool types = PyType_Check(tensor.ptr()) && PyType_Check(parameter.ptr());
  if (!types || !PyCapsule_IsValid(capsule.ptr(), name)) return torch;
  const auto* exchange = static_cast<const DlExchange*>(PyCapsule_GetPointer(capsule.ptr(), name));
  if (exchange->major != 1 || exchange->tensor_from_object == nullptr) return torch;
  // Never given back.
  torch = {reinterpret_cast<PyTypeObject*>(tensor.inc_ref().ptr()),
           reinterpret_cast<PyTypeObject*>(parameter.inc_ref().ptr()), exchange};
  return torch;
}

bool is_contiguous(const DlTensor& tensor) {
  std::int64_t expected = 1;
  for (std::int32_t i = tensor.dimensions - 1; i >= 0; --i) {
    if (tensor.shape[i] != 1 && tensor.strides[i] != expected) return false;
    expected *= tensor.shape[i];
  }
  return true;
}

template <class T>
void append(std::string& text, const T* values, std::int32_t count) {
  text.append(reinterpret_cast<const char*>(values), static_cast<std::size_t>(count) * sizeof(T));
}

py::object signature(const py::object& tensors) {
  const Torch& torch = torch_of_process();
  if (torch.exchange == nullptr || !PyList_CheckExact(tensors.ptr())) return py::none();
  std::string text;
  text.reserve(static_cast<std::size_t>(PyList_GET_SIZE(tensors.ptr())) * 48);
  for (Py_ssize_t i = 0; i < PyList_GET_SIZE(tensors.ptr()); ++i) {
    PyObject* const object = PyList_GET_ITEM(tensors.ptr(), i);
    if (Py_TYPE(object) != torch.tensor && Py_TYPE(object) != torch.parameter) return py::none();
    DlTensor tensor;
    if (torch.exchange->tensor_from_object(object, &tensor) != 0) {
      PyErr_Clear();
      return py::none();
    }
    const bool contiguous = is_contiguous(tensor);
    const auto address = reinterpret_cast<std::uintptr_t>(tensor.data) + tensor.byte_offset;
    append(text, &address, 1);
    append(text, &tensor.device, 1);
    append(text, &tensor.type, 1);
    const std::int32_t layout = 2 * tensor.dimensions + (contiguous ? 0 : 1);
    append(text, &layout, 1);
    append(text, tensor.shape, tensor.dimensions);
    if (!contiguous) append(text, tensor.strides, tensor.dimensions);
  }
  return py::bytes(text);
}

}  // namespace

void bind_signature(py::module_& m) {
  m.def("signature", &signature, py::arg("tensors"),
        "Where the tensors of a list lie and how, as bytes, or None where torch does not say it for one of them.");
}

}  // namespace rohydr

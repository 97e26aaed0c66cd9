// SPDX-License-Identifier: MIT
// rohydr_fast._C: checks what Python passes, releases the GIL, launches. Importing it calls no CUDA function.
#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>

#include <array>
#include <cstdint>
#include <string>

#include "rohydr/box_muller.h"
#include "rohydr/check.h"
#include "rohydr/launch.h"
#include "rohydr/philox.h"

namespace py = pybind11;

namespace {

constexpr int kInterface = 1;  // must equal INTERFACE in rohydr_fast/_native.py: raise both when a signature changes
constexpr std::uint64_t kWordMax = 0xFFFFFFFFu;
constexpr std::int64_t kCountMax = std::int64_t{1} << 34;
constexpr std::int64_t kSampleIdEnd = std::int64_t{1} << 48;

std::uint64_t integer(py::handle value, const char* name, std::uint64_t max) {
  const py::object index = py::reinterpret_steal<py::object>(PyNumber_Index(value.ptr()));
  std::uint64_t number = index ? PyLong_AsUnsignedLongLong(index.ptr()) : 0;
  const bool is_integer = !PyErr_Occurred();
  PyErr_Clear();
  RH_CHECK(is_integer && number <= max, "philox: " << name << " must be an integer in [0, " << max << "], got "
                                                   << std::string(py::str(value)) << ". Pass such an integer.");
  return number;
}

// A C-contiguous numpy array of exactly this dtype and rank: nothing is converted, because it is read or filled in place.
template <typename T>
py::array array(const py::object& value, const char* name, const char* dtype, py::ssize_t rank) {
  RH_CHECK(py::isinstance<py::array>(value), "philox: " << name << " must be a numpy array, got "
                                                         << Py_TYPE(value.ptr())->tp_name << ". Pass one.");
  py::array result = py::reinterpret_borrow<py::array>(value);
  RH_CHECK(py::dtype::of<T>().is(result.dtype()) || result.dtype().equal(py::dtype::of<T>()),
           "philox: " << name << " must have dtype " << dtype << ", got " << std::string(py::str(result.dtype()))
                      << ". Convert it.");
  RH_CHECK(result.ndim() == rank, "philox: " << name << " must have " << rank << " dimensions, got " << result.ndim()
                                             << ". Reshape it.");
  RH_CHECK((result.flags() & py::array::c_style) != 0,
           "philox: " << name << " must be C-contiguous, got strides that are not. Make it contiguous.");
  return result;
}

rohydr::PhiloxRequest request_scalars(py::handle seed, py::handle modality, py::handle step, py::handle stream) {
  rohydr::PhiloxRequest request{};
  request.seed = integer(seed, "seed", UINT64_MAX);
  request.modality = static_cast<std::uint32_t>(integer(modality, "modality", 255));
  request.step = static_cast<std::uint32_t>(integer(step, "step", kWordMax));
  request.stream = static_cast<std::uint32_t>(integer(stream, "stream", 255));
  return request;
}

template <typename T, void (*launch)(const rohydr::PhiloxRequest&, T*)>
void philox_cpu(const py::object& seed, const py::object& sample_ids, const py::object& modality,
                const py::object& step, const py::object& stream, const py::object& out) {
  rohydr::PhiloxRequest request = request_scalars(seed, modality, step, stream);
  const py::array ids = array<std::int64_t>(sample_ids, "sample_ids", "int64", 1);
  py::array result = array<T>(out, "out", sizeof(T) == 8 ? "int64" : "float32", 2);
  RH_CHECK(result.writeable(), "philox: out must be writeable, got a read-only array. Pass one that can be filled.");
  request.sample_ids = static_cast<const std::int64_t*>(ids.data());
  request.samples = ids.shape(0);
  request.count = result.shape(1);
  RH_CHECK(result.shape(0) == request.samples, "philox: out must have one row per sample id, got "
                                                   << result.shape(0) << " rows for " << request.samples
                                                   << " ids. Allocate (len(sample_ids), count).");
  RH_CHECK(request.count <= kCountMax, "philox: out must have at most " << kCountMax << " columns, got "
                                                                        << request.count << ". Draw fewer.");
  for (std::int64_t i = 0; i < request.samples; ++i) {
    const std::int64_t id = request.sample_ids[i];
    RH_CHECK(id >= 0 && id < kSampleIdEnd,
             "philox: sample_ids must be in [0, " << kSampleIdEnd << "), got " << id << ". Use 48-bit ids.");
  }
  T* target = static_cast<T*>(result.mutable_data());
  const py::gil_scoped_release released;
  launch(request, target);
}

template <std::size_t N>
std::array<std::uint32_t, N> word_list(const py::object& value, const char* name) {
  RH_CHECK(py::isinstance<py::sequence>(value) && py::len(value) == N,
           "philox: " << name << " must be a sequence of " << N << " words, got "
                      << std::string(py::str(value)) << ". Pass a tuple of integers.");
  std::array<std::uint32_t, N> result;
  for (std::size_t i = 0; i < N; ++i) {
    result[i] = static_cast<std::uint32_t>(integer(value[py::int_(i)], name, kWordMax));
  }
  return result;
}

py::tuple philox4x32(const py::object& counter, const py::object& key) {
  const auto c = word_list<4>(counter, "counter");
  const auto k = word_list<2>(key, "key");
  const rohydr::PhiloxBlock block = rohydr::philox4x32({{c[0], c[1], c[2], c[3]}}, k[0], k[1]);
  return py::make_tuple(block.word[0], block.word[1], block.word[2], block.word[3]);
}

py::tuple normal_pair(const py::object& words) {
  const auto word = word_list<2>(words, "words");
  const rohydr::NormalPair pair = rohydr::normal_pair(word[0], word[1]);
  return py::make_tuple(pair.first, pair.second);
}

#if defined(ROHYDR_WITH_CUDA)
template <typename T, int (*launch)(const rohydr::PhiloxRequest&, T*, int, void*)>
void philox_cuda(const py::object& seed, const py::object& ids_pointer, const py::object& samples,
                 const py::object& modality, const py::object& step, const py::object& stream,
                 const py::object& out_pointer, const py::object& count, const py::object& device,
                 const py::object& cuda_stream) {
  rohydr::PhiloxRequest request = request_scalars(seed, modality, step, stream);
  request.sample_ids = reinterpret_cast<const std::int64_t*>(integer(ids_pointer, "ids_pointer", UINTPTR_MAX));
  request.samples = static_cast<std::int64_t>(integer(samples, "samples", INT64_MAX / kCountMax));
  request.count = static_cast<std::int64_t>(integer(count, "count", kCountMax));
  T* target = reinterpret_cast<T*>(integer(out_pointer, "out_pointer", UINTPTR_MAX));
  void* queue = reinterpret_cast<void*>(integer(cuda_stream, "cuda_stream", UINTPTR_MAX));
  const int number = static_cast<int>(integer(device, "device", INT32_MAX));
  const bool empty = request.samples == 0 || request.count == 0;
  RH_CHECK(empty || request.sample_ids != nullptr, "philox: ids_pointer must not be null, got 0. Pass device memory.");
  RH_CHECK(empty || target != nullptr, "philox: out_pointer must not be null, got 0. Pass device memory.");
  int error = 0;
  {
    const py::gil_scoped_release released;
    error = launch(request, target, number, queue);
  }
  if (error != 0) {
    throw std::runtime_error("philox: the CUDA launch failed on device " + std::to_string(number) + ": " +
                             rohydr::cuda_error_text(error) + " (cudaError " + std::to_string(error) + ").");
  }
}
#endif

py::dict build_info() {
  py::dict info;
  info["interface"] = kInterface;
  info["version"] = ROHYDR_VERSION;
  info["compiler"] = ROHYDR_COMPILER;
#if defined(ROHYDR_WITH_CUDA)
  info["cuda"] = true;
#else
  info["cuda"] = false;
#endif
  info["cuda_version"] = ROHYDR_CUDA_VERSION;
  info["cuda_architectures"] = ROHYDR_CUDA_ARCHITECTURES;
  return info;
}

}  // namespace

PYBIND11_MODULE(_C, m) {
  m.doc() = "Native core of rohydr_fast; use rohydr_fast.ops instead.";
  m.def("build_info", &build_info, "What this module was built from and with.");

  const auto cpu = [&m](const char* name, auto function) {
    m.def(name, function, py::arg("seed"), py::arg("sample_ids"), py::arg("modality"), py::arg("step"),
          py::arg("stream"), py::arg("out"), "Fill out, a (B, count) array, with Philox numbers.");
  };
  cpu("philox_bits", &philox_cpu<std::int64_t, rohydr::launch_philox_bits_cpu>);
  cpu("philox_uniform", &philox_cpu<float, rohydr::launch_philox_uniform_cpu>);
  cpu("philox_normal", &philox_cpu<float, rohydr::launch_philox_normal_cpu>);
  m.def("philox4x32", &philox4x32, py::arg("counter"), py::arg("key"), "One block of Philox4x32-10.");
  m.def("normal_pair", &normal_pair, py::arg("words"), "Two standard normals from two Philox words.");

#if defined(ROHYDR_WITH_CUDA)
  m.def("cuda_device_count", &rohydr::cuda_device_count, "Devices that the driver shows; 0 without a driver.");
  const auto cuda = [&m](const char* name, auto function) {
    m.def(name, function, py::arg("seed"), py::arg("ids_pointer"), py::arg("samples"), py::arg("modality"),
          py::arg("step"), py::arg("stream"), py::arg("out_pointer"), py::arg("count"), py::arg("device"),
          py::arg("cuda_stream"), "Fill device memory with (samples, count) Philox numbers.");
  };
  cuda("philox_bits_cuda", &philox_cuda<std::int64_t, rohydr::launch_philox_bits_cuda>);
  cuda("philox_uniform_cuda", &philox_cuda<float, rohydr::launch_philox_uniform_cuda>);
  cuda("philox_normal_cuda", &philox_cuda<float, rohydr::launch_philox_normal_cuda>);
#endif
}

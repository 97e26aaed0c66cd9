// SPDX-License-Identifier: MIT
// Python's way to the noise.
#include <array>

#include "../cpu/noise.h"
#include "arrays.h"
#include "rohydr/box_muller.h"
#include "rohydr/launch.h"
#include "rohydr/philox.h"

namespace rohydr {
namespace {

constexpr std::uint64_t kWordMax = 0xFFFFFFFFu;
constexpr std::int64_t kColumnsMax = std::int64_t{1} << 34;

PhiloxRequest request_scalars(py::handle seed, py::handle modality, py::handle step, py::handle stream) {
  PhiloxRequest request{};
  request.seed = integer("philox", seed, "seed", UINT64_MAX);
  request.modality = static_cast<std::uint32_t>(integer("philox", modality, "modality", 255));
  request.step = static_cast<std::uint32_t>(integer("philox", step, "step", kWordMax));
  request.stream = static_cast<std::uint32_t>(integer("philox", stream, "stream", 255));
  return request;
}

template <typename T, typename Launch>
void philox_cpu(const Launch& launch, const py::object& seed, const py::object& sample_ids, const py::object& modality,
                const py::object& step, const py::object& stream, const py::object& out) {
  PhiloxRequest request = request_scalars(seed, modality, step, stream);
  const py::array ids = array<std::int64_t>("philox", sample_ids, "sample_ids", 1);
  py::array result = array<T>("philox", out, "out", 2);
  RH_CHECK(result.writeable(), "philox: out must be writeable, got a read-only array. Pass one that can be filled.");
  request.sample_ids = static_cast<const std::int64_t*>(ids.data());
  request.samples = ids.shape(0);
  request.count = result.shape(1);
  RH_CHECK(result.shape(0) == request.samples, "philox: out must have one row per sample id, got "
                                                   << result.shape(0) << " rows for " << request.samples
                                                   << " ids. Allocate (len(sample_ids), count).");
  RH_CHECK(request.count <= kColumnsMax, "philox: out must have at most " << kColumnsMax << " columns, got "
                                                                          << request.count << ". Draw fewer.");
  for (std::int64_t i = 0; i < request.samples; ++i) {
    const std::int64_t id = request.sample_ids[i];
    RH_CHECK(id >= 0 && id < kSampleIdEnd,
             "philox: sample_ids must be in [0, " << kSampleIdEnd << "), got " << id << ". Use 48-bit ids.");
  }
  T* target = static_cast<T*>(result.mutable_data());
  const ReleasedGil released;
  launch(request, target);
}

template <std::size_t N>
std::array<std::uint32_t, N> word_list(const py::object& value, const char* name) {
  RH_CHECK(py::isinstance<py::sequence>(value) && py::len(value) == N,
           "philox: " << name << " must be a sequence of " << N << " words, got "
                      << std::string(py::str(value)) << ". Pass a tuple of integers.");
  std::array<std::uint32_t, N> result;
  for (std::size_t i = 0; i < N; ++i) {
    result[i] = static_cast<std::uint32_t>(integer("philox", value[py::int_(i)], name, kWordMax));
  }
  return result;
}

py::tuple block_of_words(const py::object& counter, const py::object& key) {
  const auto c = word_list<4>(counter, "counter");
  const auto k = word_list<2>(key, "key");
  const PhiloxBlock block = philox4x32({{c[0], c[1], c[2], c[3]}}, k[0], k[1]);
  return py::make_tuple(block.word[0], block.word[1], block.word[2], block.word[3]);
}

py::tuple pair_of_words(const py::object& words) {
  const auto word = word_list<2>(words, "words");
  const NormalPair pair = normal_pair(word[0], word[1]);
  return py::make_tuple(pair.first, pair.second);
}

#if defined(ROHYDR_WITH_CUDA)
template <typename T, int (*launch)(const PhiloxRequest&, T*, int, void*)>
void philox_cuda(const py::object& seed, const py::object& ids_pointer, const py::object& samples,
                 const py::object& modality, const py::object& step, const py::object& stream,
                 const py::object& out_pointer, const py::object& count, const py::object& device,
                 const py::object& cuda_stream) {
  PhiloxRequest request = request_scalars(seed, modality, step, stream);
  const std::uint64_t ids = integer("philox", ids_pointer, "ids_pointer", UINTPTR_MAX);
  request.sample_ids = reinterpret_cast<const std::int64_t*>(ids);
  request.samples = static_cast<std::int64_t>(integer("philox", samples, "samples", INT64_MAX / kColumnsMax));
  request.count = static_cast<std::int64_t>(integer("philox", count, "count", kColumnsMax));
  T* target = reinterpret_cast<T*>(integer("philox", out_pointer, "out_pointer", UINTPTR_MAX));
  void* queue = reinterpret_cast<void*>(integer("philox", cuda_stream, "cuda_stream", UINTPTR_MAX));
  const int number = static_cast<int>(integer("philox", device, "device", INT32_MAX));
  const bool empty = request.samples == 0 || request.count == 0;
  RH_CHECK(empty || request.sample_ids != nullptr, "philox: ids_pointer must not be null, got 0. Pass device memory.");
  RH_CHECK(empty || target != nullptr, "philox: out_pointer must not be null, got 0. Pass device memory.");
  int error = 0;
  {
    const ReleasedGil released;
    error = launch(request, target, number, queue);
  }
  if (error != 0) {
    throw std::runtime_error("philox: the CUDA launch failed on device " + std::to_string(number) + ": " +
                             cuda_error_text(error) + " (cudaError " + std::to_string(error) + ").");
  }
}
#endif

}  // namespace

void bind_philox(py::module_& m) {
  const auto cpu = [&m](const char* name, auto function) {
    m.def(name, function, py::arg("seed"), py::arg("sample_ids"), py::arg("modality"), py::arg("step"),
          py::arg("stream"), py::arg("out"), "Fill out, a (B, count) array, with Philox numbers.");
  };
  using Object = const py::object&;
  cpu("philox_bits", [](Object seed, Object ids, Object modality, Object step, Object stream, Object out) {
    philox_cpu<std::int64_t>(launch_philox_bits_cpu, seed, ids, modality, step, stream, out);
  });
  cpu("philox_uniform", [](Object seed, Object ids, Object modality, Object step, Object stream, Object out) {
    philox_cpu<float>(launch_philox_uniform_cpu, seed, ids, modality, step, stream, out);
  });
  cpu("philox_normal", [](Object seed, Object ids, Object modality, Object step, Object stream, Object out) {
    const NormalKernel normals = normal_kernel(selected_isa());  // while the GIL keeps the environment from changing
    const auto launch = [normals](const PhiloxRequest& request, float* target) {
      launch_philox_normal_cpu(request, normals, target);
    };
    philox_cpu<float>(launch, seed, ids, modality, step, stream, out);
  });
  m.def("philox4x32", &block_of_words, py::arg("counter"), py::arg("key"), "One block of Philox4x32-10.");
  m.def("normal_pair", &pair_of_words, py::arg("words"), "Two standard normals from two Philox words.");

#if defined(ROHYDR_WITH_CUDA)
  m.def("cuda_device_count", &cuda_device_count, "Devices that the driver shows; 0 without a driver.");
  const auto cuda = [&m](const char* name, auto function) {
    m.def(name, function, py::arg("seed"), py::arg("ids_pointer"), py::arg("samples"), py::arg("modality"),
          py::arg("step"), py::arg("stream"), py::arg("out_pointer"), py::arg("count"), py::arg("device"),
          py::arg("cuda_stream"), "Fill device memory with (samples, count) Philox numbers.");
  };
  cuda("philox_bits_cuda", &philox_cuda<std::int64_t, launch_philox_bits_cuda>);
  cuda("philox_uniform_cuda", &philox_cuda<float, launch_philox_uniform_cuda>);
  cuda("philox_normal_cuda", &philox_cuda<float, launch_philox_normal_cuda>);
#endif
}

}  // namespace rohydr

// SPDX-License-Identifier: MIT
// Python's way to the reverse loop on CUDA: device memory as integers, sizes, and a stream.
#include "cuda_fields.h"

namespace rohydr {
CudaLoopModality modality_of(const Fields& fields, std::vector<const void*>& weights) {
  const char* const op = fields.op();
  CudaLoopModality m{};
  m.samples = fields.samples();
  m.tokens = fields.size("tokens");
  m.keys = fields.size("keys");
  m.channels = fields.size("channels");
  m.layers = fields.size("layers");
  m.hidden = fields.size("hidden");
  m.steps = fields.size("steps");
  RH_CHECK(m.tokens >= 1 && m.channels >= 1 && m.hidden >= 1 && m.keys >= 1,
           op << ": tokens, channels, hidden and keys must be 1 or more, got " << m.tokens << ", " << m.channels
              << ", " << m.hidden << " and " << m.keys << ". Leave empty problems out.");
  const bool any = m.samples > 0;
  m.x = fields.pointer<const float>("x", any);
  m.out = fields.pointer<float>("out", any);
  m.position = fields.pointer<const float>("position", any);
  m.block_modulation = fields.pointer<const float>("block_modulation", any && m.layers > 0 && m.steps > 0);
  m.final_modulation = fields.pointer<const float>("final_modulation", any && m.steps > 0);
  m.coefficients = fields.pointer<const float>("coefficients", any && m.steps > 0);
  m.token_mask = fields.pointer<const std::uint8_t>("token_mask", false);
  m.key_mask = fields.pointer<const std::uint8_t>("key_mask", false);
  m.cond_kv = fields.pointer<const void>("cond_kv", any && m.layers > 0);
  m.sample_ids = fields.pointer<const std::int64_t>("sample_ids", any);
  m.seed = integer(op, fields.get("seed"), "seed", UINT64_MAX);
  m.modality = static_cast<std::uint32_t>(integer(op, fields.get("modality"), "modality", 255));
  m.scratch = fields.pointer<void>("scratch", any);
  m.kept_steps = fields.size("kept_steps");
  m.states = fields.pointer<float>("states", any && m.kept_steps > 0);
  weights = fields.addresses("weights", 4 + 12 * static_cast<std::size_t>(m.layers), any);
  m.weights = weights.data();
  return m;
}

namespace {

constexpr const char* kLoopOp = "reverse_loop";

// Sizes alone, as far as a kernel's limits depend on them.
struct Sizes {
  CudaLoopModality modality{};
  CudaLoopRequest request{};

  Sizes(const py::object& tokens, const py::object& channels, const py::object& hidden, const py::object& width,
        const py::object& heads, CudaType type) {
    modality.samples = 1;
    modality.tokens = static_cast<int>(integer(kLoopOp, tokens, "tokens", INT32_MAX));
    modality.channels = static_cast<int>(integer(kLoopOp, channels, "channels", kCountMax));
    modality.hidden = static_cast<int>(integer(kLoopOp, hidden, "hidden", kCountMax));
    request = {&modality, 1, static_cast<int>(integer(kLoopOp, width, "width", kCountMax)),
               static_cast<int>(integer(kLoopOp, heads, "num_heads", kCountMax)), type, 0, nullptr};
  }
  Sizes(const Sizes&) = delete;
};

py::object refusal(const py::object& tokens, const py::object& channels, const py::object& hidden,
                   const py::object& width, const py::object& heads, const py::object& bfloat16) {
  const Sizes sizes(tokens, channels, hidden, width, heads, cuda_type_of(kLoopOp, bfloat16));
  return text_or_none(reverse_loop_cuda_refusal(sizes.request));
}

int shared_bytes(const py::object& tokens, const py::object& channels, const py::object& hidden,
                 const py::object& width, const py::object& heads, const py::object& bfloat16) {
  const Sizes sizes(tokens, channels, hidden, width, heads, cuda_type_of(kLoopOp, bfloat16));
  check_cuda_refusal(kLoopOp, reverse_loop_cuda_refusal(sizes.request));
  return reverse_loop_cuda_shared_bytes(sizes.request);
}

std::int64_t scratch_bytes(const py::object& samples, const py::object& keys, const py::object& channels,
                           const py::object& layers, const py::object& hidden, const py::object& width,
                           const py::object& bfloat16) {
  CudaLoopModality m{};
  m.samples = static_cast<std::int64_t>(integer(kLoopOp, samples, "samples", INT32_MAX));
  m.keys = static_cast<int>(integer(kLoopOp, keys, "keys", kCountMax));
  m.channels = static_cast<int>(integer(kLoopOp, channels, "channels", kCountMax));
  m.layers = static_cast<int>(integer(kLoopOp, layers, "layers", kCountMax));
  m.hidden = static_cast<int>(integer(kLoopOp, hidden, "hidden", kCountMax));
  const int columns = static_cast<int>(integer(kLoopOp, width, "width", kCountMax));
  return reverse_loop_cuda_scratch(m, columns, cuda_type_of(kLoopOp, bfloat16));
}

void run(const py::object& modalities, const py::object& width, const py::object& heads, const py::object& bfloat16,
         const py::object& device, const py::object& cuda_stream) {
  RH_CHECK(py::isinstance<py::list>(modalities) && py::len(modalities) >= 1 &&
               py::len(modalities) <= kLoopModalitiesMax,
           kLoopOp << ": modalities must be a list of one to three, got " << text_of(modalities)
                   << ". Make several calls.");
  std::vector<std::vector<const void*>> weights(py::len(modalities));
  std::vector<CudaLoopModality> loops;
  for (std::size_t i = 0; i < weights.size(); ++i) {
    loops.push_back(modality_of(Fields(kLoopOp, "a modality", modalities[py::int_(i)]), weights[i]));
  }
  CudaLoopRequest request{loops.data(), static_cast<int>(loops.size()),
                          static_cast<int>(integer(kLoopOp, width, "width", kCountMax)),
                          static_cast<int>(integer(kLoopOp, heads, "num_heads", kCountMax)),
                          cuda_type_of(kLoopOp, bfloat16),
                          static_cast<int>(integer(kLoopOp, device, "device", INT32_MAX)),
                          reinterpret_cast<void*>(integer(kLoopOp, cuda_stream, "cuda_stream", UINTPTR_MAX))};
  check_cuda_refusal(kLoopOp, reverse_loop_cuda_refusal(request));
  int error = 0;
  {
    const ReleasedGil released;
    error = launch_reverse_loop_cuda(request);
  }
  check_cuda_launch(kLoopOp, request.device, error);
}

}  // namespace

void bind_cuda_loops(py::module_& m) {
  m.def("reverse_loop_cuda", &run, py::arg("modalities"), py::arg("width"), py::arg("num_heads"), py::arg("bfloat16"),
        py::arg("device"), py::arg("cuda_stream"),
        "All steps of Eq. 2 for one to three modalities in one launch; each is a dict of sizes and device addresses.");
  m.def("reverse_loop_cuda_refusal", &refusal, py::arg("tokens"), py::arg("channels"), py::arg("hidden"),
        py::arg("width"), py::arg("num_heads"), py::arg("bfloat16"),
        "What no kernel takes of these sizes, as a part of a sentence, or None.");
  m.def("reverse_loop_cuda_shared_bytes", &shared_bytes, py::arg("tokens"), py::arg("channels"), py::arg("hidden"),
        py::arg("width"), py::arg("num_heads"), py::arg("bfloat16"),
        "Shared memory that a block needs; the device must have it.");
  m.def("reverse_loop_cuda_scratch", &scratch_bytes, py::arg("samples"), py::arg("keys"), py::arg("channels"),
        py::arg("layers"), py::arg("hidden"), py::arg("width"), py::arg("bfloat16"),
        "Bytes of device memory that a modality needs beside its arguments.");
}

}  // namespace rohydr

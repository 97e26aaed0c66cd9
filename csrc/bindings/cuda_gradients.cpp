// SPDX-License-Identifier: MIT
// Python's way to one block of the denoiser on CUDA, and to the ways back through it and through the reverse loop.
#include "../cuda/denoiser_block.h"
#include "../cuda/reverse_loop_backward.h"
#include "cuda_fields.h"

namespace rohydr {
namespace {

constexpr const char *block = "denoiser_block", *loop = "reverse_loop";

int count_of(const char* op, const py::object& value, const char* name) {
  return static_cast<int>(integer(op, value, name, kCountMax));
}

CudaBlockRequest block_sizes(const py::object& samples, const py::object& tokens, const py::object& keys,
                             const py::object& hidden, const py::object& width, const py::object& heads,
                             const py::object& bfloat16) {
  CudaBlockRequest r{};
  r.samples = static_cast<std::int64_t>(integer(block, samples, "samples", INT32_MAX));
  r.tokens = count_of(block, tokens, "tokens");
  r.keys = count_of(block, keys, "keys");
  r.hidden = count_of(block, hidden, "hidden");
  r.width = count_of(block, width, "width");
  r.heads = count_of(block, heads, "num_heads");
  r.type = cuda_type_of(block, bfloat16);
  return r;
}

py::object block_refusal(const py::object& tokens, const py::object& hidden, const py::object& width,
                         const py::object& heads, const py::object& bfloat16) {
  const py::int_ one(1);
  return text_or_none(denoiser_block_cuda_refusal(block_sizes(one, tokens, one, hidden, width, heads, bfloat16)));
}

int block_shared_bytes(const py::object& tokens, const py::object& hidden, const py::object& width,
                       const py::object& heads, const py::object& bfloat16) {
  const py::int_ one(1);
  const CudaBlockRequest r = block_sizes(one, tokens, one, hidden, width, heads, bfloat16);
  check_cuda_refusal(block, denoiser_block_cuda_refusal(r));
  return denoiser_block_cuda_shared_bytes(r);
}

std::int64_t block_scratch(const py::object& samples, const py::object& tokens, const py::object& keys,
                           const py::object& hidden, const py::object& width, const py::object& heads,
                           const py::object& bfloat16, bool backward) {
  const CudaBlockRequest r = block_sizes(samples, tokens, keys, hidden, width, heads, bfloat16);
  check_cuda_refusal(block, denoiser_block_cuda_refusal(r));
  return denoiser_block_cuda_scratch(r, backward);
}

void run_block(const py::object& arguments, const py::object& bfloat16, const py::object& device,
               const py::object& cuda_stream, bool backward) {
  const Fields fields(block, "the arguments", arguments);
  const py::object samples = fields.get("samples"), tokens = fields.get("tokens"), keys = fields.get("keys");
  const py::object hidden = fields.get("hidden"), width = fields.get("width"), heads = fields.get("num_heads");
  CudaBlockRequest r = block_sizes(samples, tokens, keys, hidden, width, heads, bfloat16);
  RH_CHECK(r.samples >= 1 && r.tokens >= 1 && r.keys >= 1 && r.hidden >= 1,
           block << ": samples, tokens, keys and hidden must be 1 or more, got " << r.samples << ", " << r.tokens
                 << ", " << r.keys << " and " << r.hidden << ". Leave empty problems out.");
  r.modulation_rows = fields.size("modulation_rows");
  RH_CHECK(r.modulation_rows == 1 || r.modulation_rows == r.samples,
           block << ": modulation_rows must be 1 or the number of samples, got " << r.modulation_rows
                 << ". Pass a row for all or one for each.");
  r.x = fields.pointer<const float>("x", true);
  r.modulation = fields.pointer<const float>("modulation", true);
  r.cond_kv = fields.pointer<const void>("cond_kv", true);
  r.token_mask = fields.pointer<const std::uint8_t>("token_mask", false);
  r.key_mask = fields.pointer<const std::uint8_t>("key_mask", false);
  r.scratch = fields.pointer<void>("scratch", true);
  const std::vector<const void*> weights = fields.addresses("weights", 12, true);
  r.weights = weights.data();
  if (backward) {
    r.out_gradient = fields.pointer<const float>("out_gradient", true);
    r.x_gradient = fields.pointer<float>("x_gradient", true);
    r.modulation_gradient = fields.pointer<float>("modulation_gradient", true);
    r.cond_gradient = fields.pointer<float>("cond_gradient", true);
    r.weight_gradients = fields.pointer<float>("weight_gradients", true);
  } else {
    r.out = fields.pointer<float>("out", true);
  }
  r.device = static_cast<int>(integer(block, device, "device", INT32_MAX));
  r.stream = reinterpret_cast<void*>(integer(block, cuda_stream, "cuda_stream", UINTPTR_MAX));
  check_cuda_refusal(block, denoiser_block_cuda_refusal(r));
  int error = 0;
  {
    const ReleasedGil released;
    error = launch_denoiser_block_cuda(r, backward);
  }
  check_cuda_launch(block, r.device, error);
}

CudaLoopGradient loop_sizes(const py::object& tokens, const py::object& channels, const py::object& hidden,
                            const py::object& width, const py::object& heads, const py::object& bfloat16) {
  CudaLoopGradient r{};
  r.loop.samples = r.loop.steps = r.loop.keys = 1;
  r.loop.tokens = count_of(loop, tokens, "tokens");
  r.loop.channels = count_of(loop, channels, "channels");
  r.loop.hidden = count_of(loop, hidden, "hidden");
  r.width = count_of(loop, width, "width");
  r.heads = count_of(loop, heads, "num_heads");
  r.type = cuda_type_of(loop, bfloat16);
  return r;
}

py::object loop_refusal(const py::object& tokens, const py::object& channels, const py::object& hidden,
                        const py::object& width, const py::object& heads, const py::object& bfloat16) {
  return text_or_none(
      reverse_loop_backward_cuda_refusal(loop_sizes(tokens, channels, hidden, width, heads, bfloat16)));
}

int loop_shared_bytes(const py::object& tokens, const py::object& channels, const py::object& hidden,
                      const py::object& width, const py::object& heads, const py::object& bfloat16) {
  const CudaLoopGradient r = loop_sizes(tokens, channels, hidden, width, heads, bfloat16);
  check_cuda_refusal(loop, reverse_loop_backward_cuda_refusal(r));
  return reverse_loop_backward_cuda_shared_bytes(r);
}

std::int64_t loop_scratch(const py::object& samples, const py::object& steps, const py::object& tokens,
                          const py::object& keys, const py::object& channels, const py::object& layers,
                          const py::object& hidden, const py::object& width, const py::object& heads,
                          const py::object& bfloat16) {
  CudaLoopGradient r = loop_sizes(tokens, channels, hidden, width, heads, bfloat16);
  r.loop.samples = static_cast<std::int64_t>(integer(loop, samples, "samples", INT32_MAX));
  r.loop.steps = count_of(loop, steps, "steps");
  r.loop.keys = count_of(loop, keys, "keys");
  r.loop.layers = count_of(loop, layers, "layers");
  check_cuda_refusal(loop, reverse_loop_backward_cuda_refusal(r));
  return reverse_loop_backward_cuda_scratch(r);
}

void run_loop_backward(const py::object& chain, const py::object& width, const py::object& heads,
                       const py::object& bfloat16, const py::object& device, const py::object& cuda_stream) {
  const Fields fields(loop, "a modality", chain);
  std::vector<const void*> weights;
  CudaLoopGradient r{};
  r.loop = modality_of(fields, weights);
  r.width = count_of(loop, width, "width");
  r.heads = count_of(loop, heads, "num_heads");
  r.type = cuda_type_of(loop, bfloat16);
  const bool any = r.loop.samples > 0 && r.loop.steps > 0;
  r.block_modulation = fields.pointer<float>("block_modulation_gradient", any && r.loop.layers > 0);
  r.final_modulation = fields.pointer<float>("final_modulation_gradient", any);
  r.cond_kv = fields.pointer<float>("cond_gradient", any && r.loop.layers > 0);
  r.weights = fields.pointer<float>("weight_gradients", any);
  r.device = static_cast<int>(integer(loop, device, "device", INT32_MAX));
  r.stream = reinterpret_cast<void*>(integer(loop, cuda_stream, "cuda_stream", UINTPTR_MAX));
  check_cuda_refusal(loop, reverse_loop_backward_cuda_refusal(r));
  int error = 0;
  {
    const ReleasedGil released;
    error = launch_reverse_loop_backward_cuda(r);
  }
  check_cuda_launch(loop, r.device, error);
}

}  // namespace

void bind_cuda_gradients(py::module_& m) {
  const auto a = [](const char* name) { return py::arg(name); };
  m.def("denoiser_block_cuda", &run_block, a("arguments"), a("bfloat16"), a("device"), a("cuda_stream"), a("backward"),
        "One block, or its way back; the arguments are a dict of sizes and device addresses.");
  m.def("denoiser_block_cuda_refusal", &block_refusal, a("tokens"), a("hidden"), a("width"), a("num_heads"),
        a("bfloat16"), "What no kernel takes of these sizes, as a part of a sentence, or None.");
  m.def("denoiser_block_cuda_shared_bytes", &block_shared_bytes, a("tokens"), a("hidden"), a("width"), a("num_heads"),
        a("bfloat16"), "Shared memory that a block of threads needs; the device must have it.");
  m.def("denoiser_block_cuda_scratch", &block_scratch, a("samples"), a("tokens"), a("keys"), a("hidden"), a("width"),
        a("num_heads"), a("bfloat16"), a("backward"), "Bytes of device memory needed beside the arguments.");
  m.def("reverse_loop_backward_cuda", &run_loop_backward, a("modality"), a("width"), a("num_heads"), a("bfloat16"),
        a("device"), a("cuda_stream"),
        "The way back through steps of Eq. 2 from x_t of each; a dict as in the forward.");
  m.def("reverse_loop_backward_cuda_refusal", &loop_refusal, a("tokens"), a("channels"), a("hidden"), a("width"),
        a("num_heads"), a("bfloat16"), "What no kernel takes of these sizes, as a part of a sentence, or None.");
  m.def("reverse_loop_backward_cuda_shared_bytes", &loop_shared_bytes, a("tokens"), a("channels"), a("hidden"),
        a("width"), a("num_heads"), a("bfloat16"), "Shared memory that a block of threads needs.");
  m.def("reverse_loop_backward_cuda_scratch", &loop_scratch, a("samples"), a("steps"), a("tokens"), a("keys"),
        a("channels"), a("layers"), a("hidden"), a("width"), a("num_heads"), a("bfloat16"),
        "Bytes of device memory needed beside the arguments.");
}

}  // namespace rohydr

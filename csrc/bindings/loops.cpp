// SPDX-License-Identifier: MIT
// Python's way to the reverse loops.
#include <algorithm>
#include <cmath>

#include "packed.h"

namespace rohydr {
namespace {

// What forward and backward have in common, from a tuple that starts with: packed, x or states, position,
// modulation_blocks, modulation_final, cond_kv, coefficients, seed, sample_ids, modality, token_mask, key_mask.
template <class T>
ReverseLoopRequest<T> loop_request(const char* op, const PackedObject& object, const py::tuple& chain,
                                   const std::string& prefix, std::int64_t samples, std::int64_t tokens) {
  const auto name = [&](const char* part) { return prefix + part; };
  ReverseLoopRequest<T> r{};
  r.weights = object.get<T>();
  const DenoiserShape& shape = r.weights->shape();
  const py::array cond = array<T>(op, chain[5], name("cond_kv"), 5);
  const py::array coefficients = array<T>(op, chain[6], name("coefficients"), 2);
  const std::int64_t keys = cond.shape(3), steps = coefficients.shape(0);
  check_keys(op, keys);
  RH_CHECK(steps >= 1, op << ": " << name("coefficients") << " must have at least one row, got 0. Use Schedule.table.");
  RH_CHECK(tokens < kSizeMax && keys < kSizeMax && steps < kSizeMax,
           op << ": sizes must be below 2^31, got " << tokens << " tokens, " << keys << " keys. Shorten them.");
  array<T>(op, chain[5], name("cond_kv"), {shape.layers, 2, samples, keys, shape.width});
  r.columns = coefficients.shape(1) == 8 ? 8 : 4;  // with a history, or without
  array<T>(op, chain[6], name("coefficients"), {steps, r.columns});
  r.coefficients = pointer<T>(coefficients);
  for (std::int64_t i = 0; i < r.columns * steps; ++i) {
    RH_CHECK(std::isfinite(r.coefficients[i]), op << ": " << name("coefficients") << " must be finite, got "
                                                  << r.coefficients[i] << " in row " << i / r.columns
                                                  << ". Use Schedule.table.");
  }
  r.position = pointer<T>(array<T>(op, chain[2], name("position"), {tokens, shape.width}));
  r.block_modulation =
      pointer<T>(array<T>(op, chain[3], name("modulation_blocks"), {steps, shape.layers, 9, shape.width}));
  r.final_modulation = pointer<T>(array<T>(op, chain[4], name("modulation_final"), {steps, 2, shape.width}));
  r.seed = integer(op, chain[7], name("seed").c_str(), UINT64_MAX);
  r.sample_ids = sample_ids_of(op, chain[8], name("sample_ids"), samples);
  r.modality = static_cast<std::uint32_t>(integer(op, chain[9], name("modality").c_str(), 255));
  r.batch = {samples, tokens, keys, mask(op, chain[10], name("token_mask"), samples, tokens),
             mask(op, chain[11], name("key_mask"), samples, keys)};
  r.cond_kv = pointer<T>(cond);
  r.steps = steps;
  return r;
}

template <class T>
ReverseLoopRequest<T> forward_request(const PackedObject& object, const py::tuple& chain, const std::string& prefix,
                                      Isa isa) {
  constexpr const char* op = "reverse_loop";
  const py::array x = array<T>(op, chain[1], prefix + "x", 3);
  const std::int64_t samples = x.shape(0), tokens = x.shape(1), channels = object.shape().channels;
  array<T>(op, chain[1], prefix + "x", {samples, tokens, channels});
  ReverseLoopRequest<T> r = loop_request<T>(op, object, chain, prefix, samples, tokens);
  r.x = pointer<T>(x);
  r.out = writeable_pointer<T>(writeable<T>(op, chain[12], prefix + "out", {samples, tokens, channels}));
  if (!chain[13].is_none()) {
    r.kept_steps = std::min<std::int64_t>(r.steps, array<T>(op, chain[13], prefix + "states", 4).shape(0));
    r.states = writeable_pointer<T>(
        writeable<T>(op, chain[13], prefix + "states", {r.kept_steps, samples, tokens, channels}));
  }
  if (!chain[14].is_none()) {
    const std::int64_t size = kept_elements<T>(r.weights->shape(), r.batch, r.kept_steps, isa);
    r.kept = writeable_pointer<T>(writeable<T>(op, chain[14], prefix + "tape", {size}));
  }
  return r;
}

template <class T>
ReverseLoopBackwardRequest<T> backward_request(const PackedObject& object, const py::tuple& chain,
                                               const std::string& prefix, Isa isa) {
  constexpr const char* op = "reverse_loop_backward";
  const auto name = [&](const char* part) { return prefix + part; };
  const py::array states = array<T>(op, chain[1], name("states"), 4);
  const std::int64_t samples = states.shape(1), tokens = states.shape(2);
  const auto [layers, channels, width, heads, hidden] = object.shape();
  ReverseLoopBackwardRequest<T> r{};
  r.forward = loop_request<T>(op, object, chain, prefix, samples, tokens);
  const std::int64_t steps = r.forward.steps, keys = r.forward.batch.keys;
  array<T>(op, chain[1], name("states"), {steps, samples, tokens, channels});
  r.forward.states = const_cast<T*>(pointer<T>(states));  // only read on the way back
  r.out_gradient = pointer<T>(array<T>(op, chain[12], name("out_gradient"), {samples, tokens, channels}));
  const auto target = [&](int i, const char* part, std::initializer_list<std::int64_t> shape) {
    return writeable_pointer<T>(writeable<T>(op, chain[static_cast<std::size_t>(i)], name(part), shape));
  };
  r.x_gradient = target(13, "x_gradient", {samples, tokens, channels});
  r.block_modulation_gradient = target(14, "modulation_blocks_gradient", {steps, layers, 9, width});
  r.final_modulation_gradient = target(15, "modulation_final_gradient", {steps, 2, width});
  r.condition_gradient = target(16, "cond_kv_gradient", {layers, 2, samples, keys, width});
  r.weight_gradients = weight_gradients<T>(op, object, chain[17], name("weight_gradients"));
  r.forward.kept_steps = steps;
  if (!chain[18].is_none()) {
    const std::int64_t size = kept_elements<T>(r.forward.weights->shape(), r.forward.batch, steps, isa);
    r.forward.kept = const_cast<T*>(pointer<T>(array<T>(op, chain[18], name("tape"), {size})));  // only read
  }
  return r;
}

// Chains sorted by dtype: `make_floats(object, tuple, prefix)` and `make_doubles` read one.
template <class Floats, class Doubles>
void read_chains(const char* op, const py::object& chains, std::size_t size, const Floats& make_floats,
                 const Doubles& make_doubles) {
  const py::tuple list = tuples_of(op, chains, "chains", size);
  for (std::size_t i = 0; i < list.size(); ++i) {
    const std::string prefix = "chains[" + std::to_string(i) + "].";
    const py::tuple chain = list[i];
    const PackedObject& object = *packed_of(op, chain[0], prefix + "packed", Packing::kDenoiser);
    if (object.is_double()) {
      make_doubles(object, chain, prefix);
    } else {
      make_floats(object, chain, prefix);
    }
  }
}

void reverse_loop(const py::object& chains, const py::object& threads) {
  constexpr const char* op = "reverse_loop";
  const int count = thread_count(op, threads);
  const Isa isa = selected_isa();  // once: an argument's conversion may change the environment
  std::vector<ReverseLoopRequest<float>> floats;
  std::vector<ReverseLoopRequest<double>> doubles;
  read_chains(
      op, chains, 15,
      [&](auto&... chain) { floats.push_back(forward_request<float>(chain..., isa)); },
      [&](auto&... chain) { doubles.push_back(forward_request<double>(chain..., isa)); });
  const ReleasedGil released;
  run_reverse_loops(floats, isa, count);
  run_reverse_loops(doubles, isa, count);
}

std::int64_t reverse_loop_tape_size(const py::object& packed, const py::object& samples, const py::object& tokens,
                                    const py::object& token_mask, const py::object& steps) {
  constexpr const char* op = "reverse_loop_tape_size";
  const PackedObject& object = *packed_of(op, packed, "packed", Packing::kDenoiser);
  const auto size = [&](const py::object& value, const char* name) {
    return static_cast<std::int64_t>(integer(op, value, name, kSizeMax - 1));
  };
  Batch batch{size(samples, "samples"), size(tokens, "tokens"), 1, nullptr, nullptr};
  batch.token_mask = mask(op, token_mask, "token_mask", batch.samples, batch.tokens);
  const std::int64_t count = size(steps, "steps");
  const Isa isa = selected_isa();
  return object.is_double() ? kept_elements<double>(object.shape(), batch, count, isa)
                            : kept_elements<float>(object.shape(), batch, count, isa);
}

void reverse_loop_backward(const py::object& chains, const py::object& threads) {
  constexpr const char* op = "reverse_loop_backward";
  const int count = thread_count(op, threads);
  const Isa isa = selected_isa();
  std::vector<ReverseLoopBackwardRequest<float>> floats;
  std::vector<ReverseLoopBackwardRequest<double>> doubles;
  read_chains(
      op, chains, 19,
      [&](auto&... chain) { floats.push_back(backward_request<float>(chain..., isa)); },
      [&](auto&... chain) { doubles.push_back(backward_request<double>(chain..., isa)); });
  const ReleasedGil released;
  run_reverse_loops_backward(floats, isa, count);
  run_reverse_loops_backward(doubles, isa, count);
}

}  // namespace

void bind_loops(py::module_& m) {
  m.def("reverse_loop", &reverse_loop, py::arg("chains"), py::arg("threads"), "All steps of Eq. 2 of every chain.");
  m.def("reverse_loop_tape_size", &reverse_loop_tape_size, py::arg("packed"), py::arg("samples"), py::arg("tokens"),
        py::arg("token_mask"), py::arg("steps"), "Elements of the activations that a backward pass can use.");
  m.def("reverse_loop_backward", &reverse_loop_backward, py::arg("chains"), py::arg("threads"),
        "Gradients through all steps of every chain.");
}

}  // namespace rohydr

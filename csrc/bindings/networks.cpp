// SPDX-License-Identifier: MIT
// Python's way to the network once, to one of its blocks, and to attention.
#include "packed.h"

namespace rohydr {
namespace {

// x, cond_kv and the masks of a pass through a network with `columns` channels; M from the modulation's first size.
struct PassArrays {
  Batch batch;
  std::int64_t modulations;
};

template <class T>
PassArrays check_pass(const char* op, const py::object& x, std::int64_t columns, const py::object& modulation,
                      py::ssize_t modulation_rank, const py::object& cond_kv, bool layers, const DenoiserShape& shape,
                      const py::object& token_mask, const py::object& key_mask) {
  const py::array tokens = array<T>(op, x, "x", 3), cond = array<T>(op, cond_kv, "cond_kv", layers ? 5 : 4);
  const py::array rows = array<T>(op, modulation, layers ? "modulation_blocks" : "modulation", modulation_rank);
  PassArrays result{{tokens.shape(0), tokens.shape(1), cond.shape(layers ? 3 : 2), nullptr, nullptr}, 1};
  Batch& batch = result.batch;
  check_keys(op, batch.keys);
  RH_CHECK(batch.tokens < kSizeMax && batch.keys < kSizeMax,
           op << ": sizes must be below 2^31, got " << batch.tokens << " tokens, " << batch.keys
              << " keys. Shorten them.");
  array<T>(op, x, "x", {batch.samples, batch.tokens, columns});
  if (layers) {
    array<T>(op, cond_kv, "cond_kv", {shape.layers, 2, batch.samples, batch.keys, shape.width});
  } else {
    array<T>(op, cond_kv, "cond_kv", {2, batch.samples, batch.keys, shape.width});
  }
  result.modulations = rows.shape(0) == 1 ? 1 : batch.samples;
  batch.token_mask = mask(op, token_mask, "token_mask", batch.samples, batch.tokens);
  batch.key_mask = mask(op, key_mask, "key_mask", batch.samples, batch.keys);
  return result;
}

template <class T>
T* target(const char* op, const py::object& value, const char* name, std::initializer_list<std::int64_t> shape) {
  return writeable_pointer<T>(writeable<T>(op, value, name, shape));
}

template <class T>
DenoiserRequest<T> denoiser_request(const char* op, const PackedObject& object, const py::object& x,
                                    const py::object& position, const py::object& blocks, const py::object& last,
                                    const py::object& cond_kv, const py::object& token_mask,
                                    const py::object& key_mask) {
  const DenoiserShape& shape = object.shape();
  const PassArrays pass =
      check_pass<T>(op, x, shape.channels, blocks, 4, cond_kv, true, shape, token_mask, key_mask);
  DenoiserRequest<T> r{};
  r.weights = object.get<T>();
  r.batch = pass.batch;
  r.modulations = pass.modulations;
  r.x = pointer<T>(x);
  r.cond_kv = pointer<T>(cond_kv);
  r.position = pointer<T>(array<T>(op, position, "position", {r.batch.tokens, shape.width}));
  r.block_modulation =
      pointer<T>(array<T>(op, blocks, "modulation_blocks", {r.modulations, shape.layers, 9, shape.width}));
  r.final_modulation = pointer<T>(array<T>(op, last, "modulation_final", {r.modulations, 2, shape.width}));
  return r;
}

template <class T>
std::int64_t tape_size(const DenoiserRequest<T>& r, Isa isa) {
  return kept_elements<T>(r.weights->shape(), r.batch, 1, isa);
}

template <class T>
void denoiser_of(const PackedObject& object, const py::object& x, const py::object& position, const py::object& blocks,
                 const py::object& last, const py::object& cond_kv, const py::object& token_mask,
                 const py::object& key_mask, const py::object& out, int threads, const py::object& tape) {
  constexpr const char* op = "denoiser";
  DenoiserRequest<T> r = denoiser_request<T>(op, object, x, position, blocks, last, cond_kv, token_mask, key_mask);
  r.out = target<T>(op, out, "out", {r.batch.samples, r.batch.tokens, 2 * object.shape().channels});
  const Isa isa = selected_isa();
  if (!tape.is_none()) r.kept = target<T>(op, tape, "tape", {tape_size(r, isa)});
  const ReleasedGil released;
  run_denoiser(r, isa, threads);
}

void denoiser(const py::object& packed, const py::object& x, const py::object& position, const py::object& blocks,
              const py::object& last, const py::object& cond_kv, const py::object& token_mask,
              const py::object& key_mask, const py::object& out, const py::object& threads, const py::object& tape) {
  const PackedObject& object = *packed_of("denoiser", packed, "packed", Packing::kDenoiser);
  const int count = thread_count("denoiser", threads);
  if (object.is_double()) {
    denoiser_of<double>(object, x, position, blocks, last, cond_kv, token_mask, key_mask, out, count, tape);
  } else {
    denoiser_of<float>(object, x, position, blocks, last, cond_kv, token_mask, key_mask, out, count, tape);
  }
}

template <class T>
void denoiser_backward_of(const PackedObject& object, const py::object& x, const py::object& position,
                          const py::object& blocks, const py::object& last, const py::object& cond_kv,
                          const py::object& token_mask, const py::object& key_mask, const py::object& out_gradient,
                          const py::object& x_gradient, const py::object& blocks_gradient,
                          const py::object& last_gradient, const py::object& cond_gradient,
                          const py::object& gradients, int threads, const py::object& tape) {
  constexpr const char* op = "denoiser_backward";
  const auto [layers, channels, width, heads, hidden] = object.shape();
  DenoiserBackwardRequest<T> r{};
  r.forward = denoiser_request<T>(op, object, x, position, blocks, last, cond_kv, token_mask, key_mask);
  const auto [samples, tokens, keys, tokens_mask, keys_mask] = r.forward.batch;
  const std::int64_t modulations = r.forward.modulations;
  r.out_gradient = pointer<T>(array<T>(op, out_gradient, "out_gradient", {samples, tokens, 2 * channels}));
  r.x_gradient = target<T>(op, x_gradient, "x_gradient", {samples, tokens, channels});
  r.block_modulation_gradient =
      target<T>(op, blocks_gradient, "modulation_blocks_gradient", {modulations, layers, 9, width});
  r.final_modulation_gradient = target<T>(op, last_gradient, "modulation_final_gradient", {modulations, 2, width});
  r.condition_gradient = target<T>(op, cond_gradient, "cond_kv_gradient", {layers, 2, samples, keys, width});
  r.weight_gradients = weight_gradients<T>(op, object, gradients, "weight_gradients");
  const Isa isa = selected_isa();
  if (!tape.is_none()) {
    const py::array kept = array<T>(op, tape, "tape", {tape_size(r.forward, isa)});
    r.forward.kept = const_cast<T*>(pointer<T>(kept));  // only read on the way back
  }
  const ReleasedGil released;
  run_denoiser_backward(r, isa, threads);
}

void denoiser_backward(const py::object& packed, const py::object& x, const py::object& position,
                       const py::object& blocks, const py::object& last, const py::object& cond_kv,
                       const py::object& token_mask, const py::object& key_mask, const py::object& out_gradient,
                       const py::object& x_gradient, const py::object& blocks_gradient,
                       const py::object& last_gradient, const py::object& cond_gradient, const py::object& gradients,
                       const py::object& threads, const py::object& tape) {
  const PackedObject& object = *packed_of("denoiser_backward", packed, "packed", Packing::kDenoiser);
  const int count = thread_count("denoiser_backward", threads);
  const auto run = [&](auto function) {
    function(object, x, position, blocks, last, cond_kv, token_mask, key_mask, out_gradient, x_gradient,
             blocks_gradient, last_gradient, cond_gradient, gradients, count, tape);
  };
  object.is_double() ? run(&denoiser_backward_of<double>) : run(&denoiser_backward_of<float>);
}

template <class T>
DenoiserBlockRequest<T> block_request(const char* op, const PackedObject& object, const py::object& x,
                                      const py::object& modulation, const py::object& cond_kv,
                                      const py::object& token_mask, const py::object& key_mask) {
  const DenoiserShape& shape = object.shape();
  const PassArrays pass =
      check_pass<T>(op, x, shape.width, modulation, 3, cond_kv, false, shape, token_mask, key_mask);
  DenoiserBlockRequest<T> r{};
  r.weights = object.get<T>();
  r.batch = pass.batch;
  r.modulations = pass.modulations;
  r.x = pointer<T>(x);
  r.cond_kv = pointer<T>(cond_kv);
  r.modulation = pointer<T>(array<T>(op, modulation, "modulation", {r.modulations, 9, shape.width}));
  return r;
}

template <class T>
void denoiser_block_of(const PackedObject& object, const py::object& x, const py::object& modulation,
                       const py::object& cond_kv, const py::object& token_mask, const py::object& key_mask,
                       const py::object& out, int threads) {
  constexpr const char* op = "denoiser_block";
  DenoiserBlockRequest<T> r = block_request<T>(op, object, x, modulation, cond_kv, token_mask, key_mask);
  r.out = target<T>(op, out, "out", {r.batch.samples, r.batch.tokens, object.shape().width});
  const Isa isa = selected_isa();
  const ReleasedGil released;
  run_denoiser_block(r, isa, threads);
}

void denoiser_block(const py::object& packed, const py::object& x, const py::object& modulation,
                    const py::object& cond_kv, const py::object& token_mask, const py::object& key_mask,
                    const py::object& out, const py::object& threads) {
  const PackedObject& object = *packed_of("denoiser_block", packed, "packed", Packing::kBlock);
  const int count = thread_count("denoiser_block", threads);
  if (object.is_double()) {
    denoiser_block_of<double>(object, x, modulation, cond_kv, token_mask, key_mask, out, count);
  } else {
    denoiser_block_of<float>(object, x, modulation, cond_kv, token_mask, key_mask, out, count);
  }
}

template <class T>
void denoiser_block_backward_of(const PackedObject& object, const py::object& x, const py::object& modulation,
                                const py::object& cond_kv, const py::object& token_mask, const py::object& key_mask,
                                const py::object& out_gradient, const py::object& x_gradient,
                                const py::object& modulation_gradient, const py::object& cond_gradient,
                                const py::object& gradients, int threads) {
  constexpr const char* op = "denoiser_block_backward";
  const std::int64_t width = object.shape().width;
  DenoiserBlockBackwardRequest<T> r{};
  r.forward = block_request<T>(op, object, x, modulation, cond_kv, token_mask, key_mask);
  const auto [samples, tokens, keys, tokens_mask, keys_mask] = r.forward.batch;
  r.out_gradient = pointer<T>(array<T>(op, out_gradient, "out_gradient", {samples, tokens, width}));
  r.x_gradient = target<T>(op, x_gradient, "x_gradient", {samples, tokens, width});
  r.modulation_gradient =
      target<T>(op, modulation_gradient, "modulation_gradient", {r.forward.modulations, 9, width});
  r.condition_gradient = target<T>(op, cond_gradient, "cond_kv_gradient", {2, samples, keys, width});
  r.weight_gradients = weight_gradients<T>(op, object, gradients, "weight_gradients");
  const Isa isa = selected_isa();
  const ReleasedGil released;
  run_denoiser_block_backward(r, isa, threads);
}

void denoiser_block_backward(const py::object& packed, const py::object& x, const py::object& modulation,
                             const py::object& cond_kv, const py::object& token_mask, const py::object& key_mask,
                             const py::object& out_gradient, const py::object& x_gradient,
                             const py::object& modulation_gradient, const py::object& cond_gradient,
                             const py::object& gradients, const py::object& threads) {
  const PackedObject& object = *packed_of("denoiser_block_backward", packed, "packed", Packing::kBlock);
  const int count = thread_count("denoiser_block_backward", threads);
  const auto run = [&](auto function) {
    function(object, x, modulation, cond_kv, token_mask, key_mask, out_gradient, x_gradient, modulation_gradient,
             cond_gradient, gradients, count);
  };
  object.is_double() ? run(&denoiser_block_backward_of<double>) : run(&denoiser_block_backward_of<float>);
}

template <class T>
void cross_attention_of(const py::object& q, const py::object& k, const py::object& v, const py::object& num_heads,
                        const py::object& key_mask, const py::object& out, int threads) {
  constexpr const char* op = "cross_attention";
  CrossAttentionRequest<T> r{};
  const py::array queries = array<T>(op, q, "q", 3), keys = array<T>(op, k, "k", 3);
  r.batch = {queries.shape(0), queries.shape(1), keys.shape(1), nullptr, nullptr};
  r.width = queries.shape(2);
  r.heads = static_cast<std::int64_t>(integer(op, num_heads, "num_heads", kSizeMax - 1));
  RH_CHECK(r.width >= 1 && r.heads >= 1 && r.width % r.heads == 0,
           op << ": num_heads must divide the width " << r.width << ", got " << r.heads << ". Choose a divisor.");
  check_keys(op, r.batch.keys);
  r.q = pointer<T>(queries);
  r.k = pointer<T>(array<T>(op, k, "k", {r.batch.samples, r.batch.keys, r.width}));
  r.v = pointer<T>(array<T>(op, v, "v", {r.batch.samples, r.batch.keys, r.width}));
  r.batch.key_mask = mask(op, key_mask, "key_mask", r.batch.samples, r.batch.keys);
  r.out = writeable_pointer<T>(writeable<T>(op, out, "out", {r.batch.samples, r.batch.tokens, r.width}));
  const Isa isa = selected_isa();
  const ReleasedGil released;
  run_cross_attention(r, isa, threads);
}

void cross_attention(const py::object& q, const py::object& k, const py::object& v, const py::object& num_heads,
                     const py::object& key_mask, const py::object& out, const py::object& threads) {
  const int count = thread_count("cross_attention", threads);
  if (has_dtype<double>(contiguous("cross_attention", q, "q"))) {
    cross_attention_of<double>(q, k, v, num_heads, key_mask, out, count);
  } else {
    cross_attention_of<float>(q, k, v, num_heads, key_mask, out, count);
  }
}

}  // namespace

void bind_networks(py::module_& m) {
  m.def("denoiser", &denoiser, py::arg("packed"), py::arg("x"), py::arg("position"), py::arg("modulation_blocks"),
        py::arg("modulation_final"), py::arg("cond_kv"), py::arg("token_mask"), py::arg("key_mask"), py::arg("out"),
        py::arg("threads"), py::arg("tape") = py::none(),
        "The network of Eq. 2 once. A tape of `reverse_loop_tape_size` for one step is written for the way back.");
  m.def("denoiser_backward", &denoiser_backward, py::arg("packed"), py::arg("x"), py::arg("position"),
        py::arg("modulation_blocks"), py::arg("modulation_final"), py::arg("cond_kv"), py::arg("token_mask"),
        py::arg("key_mask"), py::arg("out_gradient"), py::arg("x_gradient"), py::arg("modulation_blocks_gradient"),
        py::arg("modulation_final_gradient"), py::arg("cond_kv_gradient"), py::arg("weight_gradients"),
        py::arg("threads"), py::arg("tape") = py::none(), "Its gradients.");
  m.def("denoiser_block", &denoiser_block, py::arg("packed"), py::arg("x"), py::arg("modulation"), py::arg("cond_kv"),
        py::arg("token_mask"), py::arg("key_mask"), py::arg("out"), py::arg("threads"), "One block of the denoiser.");
  m.def("denoiser_block_backward", &denoiser_block_backward, py::arg("packed"), py::arg("x"), py::arg("modulation"),
        py::arg("cond_kv"), py::arg("token_mask"), py::arg("key_mask"), py::arg("out_gradient"), py::arg("x_gradient"),
        py::arg("modulation_gradient"), py::arg("cond_kv_gradient"), py::arg("weight_gradients"), py::arg("threads"),
        "The gradients of one block.");
  m.def("cross_attention", &cross_attention, py::arg("q"), py::arg("k"), py::arg("v"), py::arg("num_heads"),
        py::arg("key_mask"), py::arg("out"), py::arg("threads"), "Multi-head attention.");
}

}  // namespace rohydr

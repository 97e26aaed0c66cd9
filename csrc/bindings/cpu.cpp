// SPDX-License-Identifier: MIT
// Python's way to the CPU kernels.
#include <chrono>
#include <memory>
#include <variant>
#include <vector>

#include "../cpu/calls.h"
#include "arrays.h"

namespace rohydr {
namespace {

constexpr std::int64_t kSampleIdEnd = std::int64_t{1} << 48;
constexpr std::int64_t kSizeMax = std::int64_t{1} << 31;  // lists of tokens and keys are 32-bit

// The packed weights together with the arrays that they came from.
struct PackedObject {
  py::list arrays;
  std::variant<std::unique_ptr<PackedWeights<float>>, std::unique_ptr<PackedWeights<double>>> weights;

  bool is_double() const { return weights.index() == 1; }
  template <class T>
  PackedWeights<T>* get() const {
    return std::get<std::unique_ptr<PackedWeights<T>>>(weights).get();
  }
  const DenoiserShape& shape() const {
    return is_double() ? get<double>()->shape() : get<float>()->shape();
  }
};

class ArrayReader {
 public:
  ArrayReader(const char* op, const py::list& arrays, bool doubles) : op_(op), arrays_(arrays), doubles_(doubles) {}

  // Takes the next array; a size of -1 is free. Returns its first size.
  std::int64_t take(const char* name, std::vector<std::int64_t> shape) {
    const std::string full = "arrays[" + std::to_string(next_) + "] (" + name + ")";
    const py::array value = contiguous(op_, arrays_[next_++], full);
    const bool known = has_dtype<float>(value) || has_dtype<double>(value) || has_dtype<std::uint16_t>(value);
    RH_CHECK(known && (doubles_ || !has_dtype<double>(value)),
             op_ << ": " << full << " must have dtype " << (doubles_ ? "float64, " : "") << "float32 or uint16, got "
                 << std::string(py::str(value.dtype())) << ". Convert it.");
    bool fits = value.ndim() == static_cast<py::ssize_t>(shape.size());
    for (std::size_t i = 0; fits && i < shape.size(); ++i) {
      const std::int64_t size = value.shape(static_cast<py::ssize_t>(i));
      fits = (shape[i] == -1 || size == shape[i]) && size >= 1 && size < kSizeMax;
    }
    std::string wanted;
    for (const std::int64_t size : shape) {
      wanted += (wanted.empty() ? "" : ", ") + (size == -1 ? std::string("any") : std::to_string(size));
    }
    RH_CHECK(fits, op_ << ": " << full << " must have shape (" << wanted << "), got " << shape_text(value)
                       << ". Pass the weights of one denoiser.");
    const WeightType type = has_dtype<float>(value)    ? WeightType::kFloat32
                            : has_dtype<double>(value) ? WeightType::kFloat64
                                                       : WeightType::kBfloat16;
    taken_.push_back({value.data(), type, value.size()});
    return value.shape(0);
  }

  void take_block(std::int64_t width, std::int64_t& hidden) {
    take("qkv_weight", {3 * width, width});
    take("qkv_bias", {3 * width});
    take("self_out_weight", {width, width});
    take("self_out_bias", {width});
    take("q_weight", {width, width});
    take("q_bias", {width});
    take("cross_out_weight", {width, width});
    take("cross_out_bias", {width});
    hidden = take("fc1_weight", {hidden, width});
    take("fc1_bias", {hidden});
    take("fc2_weight", {width, hidden});
    take("fc2_bias", {width});
  }

  std::vector<WeightArray> taken() { return std::move(taken_); }

 private:
  const char* op_;
  const py::list& arrays_;
  const bool doubles_;
  std::size_t next_ = 0;
  std::vector<WeightArray> taken_;
};

std::int64_t second_size(const char* op, const py::list& arrays, std::size_t index) {
  const py::array value = contiguous(op, arrays[index], "arrays[" + std::to_string(index) + "]");
  RH_CHECK(value.ndim() == 2 && value.shape(1) >= 1, op << ": arrays[" << index << "] must be a matrix, got shape "
                                                         << shape_text(value) << ". Pass weights in order of use.");
  return value.shape(1);
}

std::unique_ptr<PackedObject> packed(const char* op, const py::object& sequence, const py::object& num_heads,
                                     bool doubles, bool whole) {
  RH_CHECK(py::isinstance<py::list>(sequence) || py::isinstance<py::tuple>(sequence),
           op << ": arrays must be a list, got " << Py_TYPE(sequence.ptr())->tp_name << ". Pass one.");
  auto result = std::make_unique<PackedObject>();
  result->arrays = py::list(py::tuple(sequence));  // a new list: the caller's may change
  const std::size_t count = result->arrays.size(), ends = whole ? 4 : 0;
  RH_CHECK(count >= ends + 12 && (count - ends) % 12 == 0 && (whole || count == 12),
           op << ": arrays must be " << (whole ? "4 and 12 for each block" : "12") << ", got " << count
              << ". Pass weights in order of use.");
  DenoiserShape shape{};
  shape.layers = static_cast<std::int64_t>((count - ends) / 12);
  shape.heads = static_cast<std::int64_t>(integer(op, num_heads, "num_heads", kSizeMax - 1));
  shape.hidden = -1;
  ArrayReader reader(op, result->arrays, doubles);
  if (whole) {
    shape.channels = second_size(op, result->arrays, 0);
    shape.width = reader.take("in_weight", {-1, shape.channels});
    reader.take("in_bias", {shape.width});
  } else {
    shape.width = second_size(op, result->arrays, 0);
  }
  RH_CHECK(shape.heads >= 1 && shape.width % shape.heads == 0,
           op << ": num_heads must divide the width " << shape.width << ", got " << shape.heads
              << ". Choose a divisor.");
  for (std::int64_t layer = 0; layer < shape.layers; ++layer) reader.take_block(shape.width, shape.hidden);
  if (whole) {
    reader.take("out_weight", {2 * shape.channels, shape.width});
    reader.take("out_bias", {2 * shape.channels});
  }
  if (doubles) {
    result->weights = std::make_unique<PackedWeights<double>>(shape, reader.taken());
  } else {
    result->weights = std::make_unique<PackedWeights<float>>(shape, reader.taken());
  }
  return result;
}

bool refresh(PackedObject& object) {
  const auto ask = [](auto* weights, const auto& kernels) {
    const std::int64_t before = weights->packs();
    const ReleasedGil released;
    weights->current(kernels);
    return weights->packs() != before;
  };
  if (object.is_double()) return ask(object.get<double>(), kernels_of<double>(selected_isa()));
  return ask(object.get<float>(), kernels_of<float>(selected_isa()));
}

const bool* mask(const char* op, const py::object& value, const std::string& name, std::int64_t rows,
                 std::int64_t columns) {
  if (value.is_none()) return nullptr;
  return pointer<bool>(array<bool>(op, value, name, {rows, columns}));
}

int thread_count(const char* op, const py::object& threads) {
  const std::uint64_t count = integer(op, threads, "threads", 256);
  RH_CHECK(count >= 1, op << ": threads must be 1 or more, got 0. Pass torch.get_num_threads().");
  return static_cast<int>(count);
}

bool boolean(const char* op, const py::object& value, const char* name) {
  RH_CHECK(PyBool_Check(value.ptr()), op << ": " << name << " must be True or False, got " << text_of(value)
                                         << ". Pass one.");
  return value.ptr() == Py_True;
}

void check_keys(const char* op, std::int64_t keys) {
  RH_CHECK(keys >= 1, op << ": the condition must have at least one key, got 0. Give it an available modality.");
}

template <class T>
T* writeable_pointer(py::array value) {
  return static_cast<T*>(value.mutable_data());
}

template <class T>
ReverseLoopRequest<T> loop_request(const PackedObject& object, const py::tuple& chain, const std::string& prefix) {
  constexpr const char* op = "reverse_loop";
  const auto name = [&](const char* part) { return prefix + part; };
  ReverseLoopRequest<T> r{};
  r.weights = object.get<T>();
  const DenoiserShape& shape = r.weights->shape();
  const py::array x = array<T>(op, chain[1], name("x"), 3);
  const py::array cond = array<T>(op, chain[5], name("cond_kv"), 5);
  const py::array coefficients = array<T>(op, chain[6], name("coefficients"), 2);
  const std::int64_t samples = x.shape(0), tokens = x.shape(1), keys = cond.shape(3), steps = coefficients.shape(0);
  check_keys(op, keys);
  RH_CHECK(steps >= 1, op << ": " << name("coefficients") << " must have at least one row, got 0. Use Schedule.table.");
  RH_CHECK(tokens < kSizeMax && keys < kSizeMax && steps < kSizeMax,
           op << ": sizes must be below 2^31, got " << tokens << " tokens, " << keys << " keys. Shorten them.");
  array<T>(op, chain[1], name("x"), {samples, tokens, shape.channels});
  array<T>(op, chain[5], name("cond_kv"), {shape.layers, 2, samples, keys, shape.width});
  array<T>(op, chain[6], name("coefficients"), {steps, 4});
  r.coefficients = pointer<T>(coefficients);
  for (std::int64_t i = 0; i < 4 * steps; ++i) {
    RH_CHECK(std::isfinite(r.coefficients[i]), op << ": " << name("coefficients") << " must be finite, got "
                                                  << r.coefficients[i] << " in row " << i / 4
                                                  << ". Use Schedule.table.");
  }
  r.position = pointer<T>(array<T>(op, chain[2], name("position"), {tokens, shape.width}));
  r.block_modulation =
      pointer<T>(array<T>(op, chain[3], name("modulation_blocks"), {steps, shape.layers, 9, shape.width}));
  r.final_modulation = pointer<T>(array<T>(op, chain[4], name("modulation_final"), {steps, 2, shape.width}));
  r.seed = integer(op, chain[7], name("seed").c_str(), UINT64_MAX);
  r.sample_ids = pointer<std::int64_t>(array<std::int64_t>(op, chain[8], name("sample_ids"), {samples}));
  for (std::int64_t i = 0; i < samples; ++i) {
    RH_CHECK(r.sample_ids[i] >= 0 && r.sample_ids[i] < kSampleIdEnd,
             op << ": " << name("sample_ids") << " must be in [0, " << kSampleIdEnd << "), got " << r.sample_ids[i]
                << ". Use 48-bit ids.");
  }
  r.modality = static_cast<std::uint32_t>(integer(op, chain[9], name("modality").c_str(), 255));
  r.batch = {samples, tokens, keys, mask(op, chain[10], name("token_mask"), samples, tokens),
             mask(op, chain[11], name("key_mask"), samples, keys)};
  r.x = pointer<T>(x);
  r.cond_kv = pointer<T>(cond);
  r.steps = steps;
  r.out = writeable_pointer<T>(writeable<T>(op, chain[12], name("out"), {samples, tokens, shape.channels}));
  return r;
}

void reverse_loop(const py::object& chains, const py::object& threads) {
  constexpr const char* op = "reverse_loop";
  RH_CHECK(py::isinstance<py::list>(chains) || py::isinstance<py::tuple>(chains),
           op << ": chains must be a list, got " << Py_TYPE(chains.ptr())->tp_name << ". Pass one.");
  const py::tuple list(chains);  // holds the chains, whatever becomes of the caller's list meanwhile
  const int count = thread_count(op, threads);
  std::vector<ReverseLoopRequest<float>> floats;
  std::vector<ReverseLoopRequest<double>> doubles;
  for (std::size_t i = 0; i < list.size(); ++i) {
    const std::string prefix = "chains[" + std::to_string(i) + "].";
    RH_CHECK(py::isinstance<py::tuple>(list[i]) && py::len(list[i]) == 13,
             op << ": chains[" << i << "] must be a tuple of 13, got " << std::string(py::str(py::type::of(list[i])))
                << ". See rohydr_fast.ops.library.");
    const py::tuple chain = list[i];
    RH_CHECK(py::isinstance<PackedObject>(chain[0]),
             op << ": " << prefix << "packed must be from pack_denoiser, got " << Py_TYPE(chain[0].ptr())->tp_name
                << ". Pack the weights first.");
    const PackedObject& object = chain[0].cast<const PackedObject&>();
    RH_CHECK(object.shape().channels > 0, op << ": " << prefix
                                             << "packed must be a whole denoiser, got a block. Use pack_denoiser.");
    if (object.is_double()) {
      doubles.push_back(loop_request<double>(object, chain, prefix));
    } else {
      floats.push_back(loop_request<float>(object, chain, prefix));
    }
  }
  const Isa isa = selected_isa();  // while the GIL keeps the environment from changing
  const ReleasedGil released;
  run_reverse_loops(floats, isa, count);
  run_reverse_loops(doubles, isa, count);
}

template <class T>
void denoiser_block_of(const PackedObject& object, const py::object& x, const py::object& modulation,
                       const py::object& cond_kv, const py::object& token_mask, const py::object& key_mask,
                       const py::object& out, int threads) {
  constexpr const char* op = "denoiser_block";
  DenoiserBlockRequest<T> r{};
  r.weights = object.get<T>();
  const std::int64_t width = object.shape().width;
  const py::array tokens = array<T>(op, x, "x", 3), cond = array<T>(op, cond_kv, "cond_kv", 4);
  const py::array rows = array<T>(op, modulation, "modulation", 3);
  r.batch = {tokens.shape(0), tokens.shape(1), cond.shape(2), nullptr, nullptr};
  check_keys(op, r.batch.keys);
  array<T>(op, x, "x", {r.batch.samples, r.batch.tokens, width});
  array<T>(op, cond_kv, "cond_kv", {2, r.batch.samples, r.batch.keys, width});
  r.modulations = rows.shape(0) == 1 ? 1 : r.batch.samples;
  array<T>(op, modulation, "modulation", {r.modulations, 9, width});
  r.batch.token_mask = mask(op, token_mask, "token_mask", r.batch.samples, r.batch.tokens);
  r.batch.key_mask = mask(op, key_mask, "key_mask", r.batch.samples, r.batch.keys);
  r.x = pointer<T>(tokens);
  r.modulation = pointer<T>(rows);
  r.cond_kv = pointer<T>(cond);
  r.out = writeable_pointer<T>(writeable<T>(op, out, "out", {r.batch.samples, r.batch.tokens, width}));
  const Isa isa = selected_isa();
  const ReleasedGil released;
  run_denoiser_block(r, isa, threads);
}

void denoiser_block(const py::object& packed_block, const py::object& x, const py::object& modulation,
                    const py::object& cond_kv, const py::object& token_mask, const py::object& key_mask,
                    const py::object& out, const py::object& threads) {
  constexpr const char* op = "denoiser_block";
  RH_CHECK(py::isinstance<PackedObject>(packed_block), op << ": packed must be from pack_block, got "
                                                          << Py_TYPE(packed_block.ptr())->tp_name
                                                          << ". Pack the weights first.");
  const PackedObject& object = packed_block.cast<const PackedObject&>();
  RH_CHECK(object.shape().channels == 0, op << ": packed must be one block, got a whole denoiser. Use pack_block.");
  const int count = thread_count(op, threads);
  if (object.is_double()) {
    denoiser_block_of<double>(object, x, modulation, cond_kv, token_mask, key_mask, out, count);
  } else {
    denoiser_block_of<float>(object, x, modulation, cond_kv, token_mask, key_mask, out, count);
  }
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

py::list isa_names() {
  py::list names;
  for (const Isa isa : usable_isas()) names.append(isa_name(isa));
  return names;
}

// GFLOP/s of multiply-adds on the calling thread, over about this time.
double fma_peak(const py::object& name, const py::object& time) {
  RH_CHECK(py::isinstance<py::str>(name), "fma_peak: isa must be a name, got " << text_of(name)
                                              << ". Pass one of cpu_isas().");
  const std::string isa = py::cast<std::string>(name);
  const double milliseconds = PyFloat_AsDouble(time.ptr());
  const bool is_number = !PyErr_Occurred();
  PyErr_Clear();
  RH_CHECK(is_number, "fma_peak: milliseconds must be a number, got " << text_of(time) << ". Choose for example 20.");
  RH_CHECK(milliseconds > 0 && milliseconds <= 60000,
           "fma_peak: milliseconds must be in (0, 60000], got " << milliseconds << ". Choose for example 20.");
  const Kernels<float>& kernels = kernels_of<float>(isa_by_name(isa));
  const ReleasedGil released;
  using Clock = std::chrono::steady_clock;
  const auto start = Clock::now();
  double flop = 0, seconds = 0;
  do {
    flop += kernels.fma_peak(20000);
    seconds = std::chrono::duration<double>(Clock::now() - start).count();
  } while (seconds < milliseconds * 1e-3);
  return flop / seconds * 1e-9;
}

}  // namespace

void bind_cpu(py::module_& m) {
  py::class_<PackedObject> weights(m, "PackedWeights", py::is_final(),
                                   "Weights in the kernels' layout, and the arrays that they came from.");
  reinterpret_cast<PyTypeObject*>(weights.ptr())->tp_new = nullptr;  // __new__ would give one with nothing in it
  weights
      .def("refresh", &refresh, "Pack again if an array changed; whether it was.")
      .def_property_readonly("nbytes",
                             [](const PackedObject& object) {
                               return object.is_double() ? object.get<double>()->bytes() : object.get<float>()->bytes();
                             })
      .def_property_readonly("packs", [](const PackedObject& object) {
        return object.is_double() ? object.get<double>()->packs() : object.get<float>()->packs();
      });
  m.def(
      "pack_denoiser",
      [](const py::object& arrays, const py::object& num_heads, const py::object& doubles) {
        return packed("pack_denoiser", arrays, num_heads, boolean("pack_denoiser", doubles, "double"), true);
      },
      py::arg("arrays"), py::arg("num_heads"), py::arg("double"), "Weights of a denoiser, in order of use.");
  m.def(
      "pack_block",
      [](const py::object& arrays, const py::object& num_heads, const py::object& doubles) {
        return packed("pack_block", arrays, num_heads, boolean("pack_block", doubles, "double"), false);
      },
      py::arg("arrays"), py::arg("num_heads"), py::arg("double"), "Weights of one block, in order of use.");
  m.def("reverse_loop", &reverse_loop, py::arg("chains"), py::arg("threads"), "All steps of Eq. 2 of every chain.");
  m.def("denoiser_block", &denoiser_block, py::arg("packed"), py::arg("x"), py::arg("modulation"), py::arg("cond_kv"),
        py::arg("token_mask"), py::arg("key_mask"), py::arg("out"), py::arg("threads"), "One block of the denoiser.");
  m.def("cross_attention", &cross_attention, py::arg("q"), py::arg("k"), py::arg("v"), py::arg("num_heads"),
        py::arg("key_mask"), py::arg("out"), py::arg("threads"), "Multi-head attention.");
  m.def("cpu_isas", &isa_names, "Instruction sets that can be used here, best first.");
  m.def("cpu_isa", [] { return isa_name(selected_isa()); }, "The instruction set in use.");
  m.def("fma_peak", &fma_peak, py::arg("isa"), py::arg("milliseconds"), "GFLOP/s of multiply-adds, one thread.");
  m.def("softmax_range_hits", &softmax_range_hits, "Softmax rows that left the cheap path so far.");
}

}  // namespace rohydr

// SPDX-License-Identifier: MIT
#include "packed.h"

#include "rohydr/philox.h"

namespace rohydr {
namespace {

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

  // K and V of a layer, which come as one matrix, as two.
  void take_condition(std::int64_t width) {
    take("kv_weight", {2 * width, width});
    take("kv_bias", {2 * width});
    const WeightArray bias = taken_.back(), weight = taken_[taken_.size() - 2];
    taken_.resize(taken_.size() - 2);
    for (int half = 0; half < 2; ++half) {
      for (const WeightArray& both : {weight, bias}) {
        WeightArray one{both.data, both.type, both.count / 2};
        one.data = static_cast<const char*>(both.data) + half * one.bytes();
        taken_.push_back(one);
      }
    }
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
                                     bool doubles, Packing kind) {
  const bool whole = kind != Packing::kBlock, condition = kind == Packing::kDiffusionLoss;
  RH_CHECK(py::isinstance<py::list>(sequence) || py::isinstance<py::tuple>(sequence),
           op << ": arrays must be a list, got " << Py_TYPE(sequence.ptr())->tp_name << ". Pass one.");
  auto result = std::make_unique<PackedObject>();
  result->kind = kind;
  result->arrays = py::list(py::tuple(sequence));  // a new list: the caller's may change
  const std::size_t count = result->arrays.size(), ends = whole ? 4 : 0, of_block = condition ? 14 : 12;
  RH_CHECK(count >= ends + of_block && (count - ends) % of_block == 0 && (whole || count == of_block),
           op << ": arrays must be " << (whole ? "4 and " : "") << of_block << (whole ? " for each block" : "")
              << ", got " << count << ". Pass weights in order of use.");
  DenoiserShape shape{};
  shape.layers = static_cast<std::int64_t>((count - ends) / of_block);
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
  for (std::int64_t layer = 0; condition && layer < shape.layers; ++layer) reader.take_condition(shape.width);
  if (doubles) {
    result->weights = std::make_unique<PackedWeights<double>>(shape, reader.taken(), condition);
  } else {
    result->weights = std::make_unique<PackedWeights<float>>(shape, reader.taken(), condition);
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

}  // namespace

const PackedObject* packed_of(const char* op, const py::handle& value, const std::string& name, Packing kind) {
  struct Name {
    const char *what, *function;
  };
  const auto name_of = [](Packing which) -> Name {
    if (which == Packing::kBlock) return {"one block", "pack_block"};
    if (which == Packing::kDenoiser) return {"a whole denoiser", "pack_denoiser"};
    return {"a denoiser with K and V of the condition", "pack_diffusion_loss"};
  };
  const Name wanted = name_of(kind);
  RH_CHECK(py::isinstance<PackedObject>(value), op << ": " << name << " must be from " << wanted.function << ", got "
                                                   << Py_TYPE(value.ptr())->tp_name << ". Pack the weights first.");
  const PackedObject* object = value.cast<const PackedObject*>();
  RH_CHECK(object->kind == kind, op << ": " << name << " must be " << wanted.what << ", got "
                                    << name_of(object->kind).what << ". Use " << wanted.function << ".");
  return object;
}

const std::int64_t* sample_ids_of(const char* op, const py::object& value, const std::string& name,
                                  std::int64_t samples) {
  const auto* const ids = pointer<std::int64_t>(array<std::int64_t>(op, value, name, {samples}));
  for (std::int64_t i = 0; i < samples; ++i) {
    RH_CHECK(ids[i] >= 0 && ids[i] < kSampleIdEnd,
             op << ": " << name << " must be in [0, " << kSampleIdEnd << "), got " << ids[i] << ". Use 48-bit ids.");
  }
  return ids;
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

py::tuple tuples_of(const char* op, const py::object& value, const std::string& name, std::size_t size) {
  RH_CHECK(py::isinstance<py::list>(value) || py::isinstance<py::tuple>(value),
           op << ": " << name << " must be a list, got " << Py_TYPE(value.ptr())->tp_name << ". Pass one.");
  py::tuple list(value);
  for (std::size_t i = 0; i < list.size(); ++i) {
    RH_CHECK(py::isinstance<py::tuple>(list[i]) && py::len(list[i]) == size,
             op << ": " << name << "[" << i << "] must be a tuple of " << size << ", got "
                << std::string(py::str(py::type::of(list[i]))) << ". See rohydr_fast.ops.library.");
  }
  return list;
}

void bind_packed(py::module_& m) {
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
  const auto define = [&m](const char* name, Packing kind, const char* what) {
    m.def(
        name,
        [name, kind](const py::object& arrays, const py::object& num_heads, const py::object& doubles) {
          return packed(name, arrays, num_heads, boolean(name, doubles, "double"), kind);
        },
        py::arg("arrays"), py::arg("num_heads"), py::arg("double"), what);
  };
  define("pack_denoiser", Packing::kDenoiser, "Weights of a denoiser, in order of use.");
  define("pack_block", Packing::kBlock, "Weights of one block, in order of use.");
  define("pack_diffusion_loss", Packing::kDiffusionLoss,
         "Weights of a denoiser, in order of use, and then of K and V of each layer.");
}

}  // namespace rohydr

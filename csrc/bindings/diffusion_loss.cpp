// SPDX-License-Identifier: MIT
// Python's way to Eq. 3.
#include <numeric>
#include <utility>

#include "packed.h"

namespace rohydr {
namespace {

constexpr const char* op = "diffusion_loss";

Loss loss_of(const py::object& name) {
  const std::string text = py::isinstance<py::str>(name) ? std::string(py::str(name)) : "";
  RH_CHECK(text == "nll" || text == "kl" || text == "hybrid",
           op << ": loss must be nll, kl or hybrid, got " << text_of(name) << ". Choose one of these.");
  return text == "nll" ? Loss::kNll : text == "kl" ? Loss::kKl : Loss::kHybrid;
}

// One row, or None: the gradients of modulation_blocks, modulation_final, encoded and the weights, one after the other.
template <class T>
void read_gradients(DiffusionLossRequest<T>& r, const PackedObject& object, const py::object& gradients) {
  if (gradients.is_none()) return;
  const std::int64_t layers = object.shape().layers, width = object.shape().width;
  const std::int64_t tables = r.modulations * width, keys = r.batch.samples * r.batch.keys * width;
  std::vector<std::int64_t> sizes;
  for (const py::handle weight : object.arrays) sizes.push_back(py::reinterpret_borrow<py::array>(weight).size());
  const std::int64_t size = std::accumulate(sizes.begin(), sizes.end(), tables * (layers * 9 + 2) + keys);
  T* next = writeable_pointer<T>(writeable<T>(op, gradients, "gradients", {size}));
  const auto take = [&](std::int64_t count) { return std::exchange(next, next + count); };
  r.block_modulation_gradient = take(tables * layers * 9);
  r.final_modulation_gradient = take(tables * 2);
  r.encoded_gradient = take(keys);
  const auto whole = static_cast<std::size_t>(4 + 12 * layers);
  for (std::size_t i = 0; i < whole; ++i) r.weight_gradients.push_back(take(sizes[i]));
  for (std::size_t i = whole; i < sizes.size(); i += 2) {  // K and V by themselves
    T* const weight = take(sizes[i]);
    T* const bias = take(sizes[i + 1]);
    for (const std::int64_t half : {std::int64_t{0}, width}) {
      r.weight_gradients.push_back(weight + half * width);
      r.weight_gradients.push_back(bias + half);
    }
  }
}

template <class T>
void diffusion_loss_of(const PackedObject& object, const py::object& x_0, const py::object& rows,
                       const py::object& loss, const py::object& position, const py::object& blocks,
                       const py::object& last, const py::object& encoded, const py::object& seed,
                       const py::object& sample_ids, const py::object& modality, const py::object& token_mask,
                       const py::object& key_mask, const py::object& out, const py::object& gradients, int threads) {
  const DenoiserShape& shape = object.shape();
  const py::array tokens = array<T>(op, x_0, "x_0", 3), condition = array<T>(op, encoded, "encoded", 3);
  DiffusionLossRequest<T> r{};
  r.weights = object.get<T>();
  r.batch = {tokens.shape(0), tokens.shape(1), condition.shape(1), nullptr, nullptr};
  const std::int64_t samples = r.batch.samples;
  check_keys(op, r.batch.keys);
  RH_CHECK(r.batch.tokens < kSizeMax && r.batch.keys < kSizeMax,
           op << ": sizes must be below 2^31, got " << r.batch.tokens << " tokens, " << r.batch.keys
              << " keys. Shorten them.");
  r.x_0 = pointer<T>(array<T>(op, x_0, "x_0", {samples, r.batch.tokens, shape.channels}));
  r.encoded = pointer<T>(array<T>(op, encoded, "encoded", {samples, r.batch.keys, shape.width}));
  r.rows = pointer<T>(array<T>(op, rows, "rows", {samples, kLossColumns}));
  r.loss = loss_of(loss);
  r.position = pointer<T>(array<T>(op, position, "position", {r.batch.tokens, shape.width}));
  r.modulations = array<T>(op, blocks, "modulation_blocks", 4).shape(0) == 1 ? 1 : samples;
  r.block_modulation =
      pointer<T>(array<T>(op, blocks, "modulation_blocks", {r.modulations, shape.layers, 9, shape.width}));
  r.final_modulation = pointer<T>(array<T>(op, last, "modulation_final", {r.modulations, 2, shape.width}));
  r.seed = integer(op, seed, "seed", UINT64_MAX);
  r.sample_ids = sample_ids_of(op, sample_ids, "sample_ids", samples);
  r.modality = static_cast<std::uint32_t>(integer(op, modality, "modality", 255));
  r.batch.token_mask = mask(op, token_mask, "token_mask", samples, r.batch.tokens);
  r.batch.key_mask = mask(op, key_mask, "key_mask", samples, r.batch.keys);
  r.out = writeable_pointer<T>(writeable<T>(op, out, "out", {1}));
  read_gradients(r, object, gradients);
  const Isa isa = selected_isa();
  const ReleasedGil released;
  run_diffusion_loss(r, isa, threads);
}

void diffusion_loss(const py::object& packed, const py::object& x_0, const py::object& rows, const py::object& loss,
                    const py::object& position, const py::object& blocks, const py::object& last,
                    const py::object& encoded, const py::object& seed, const py::object& sample_ids,
                    const py::object& modality, const py::object& token_mask, const py::object& key_mask,
                    const py::object& out, const py::object& gradients, const py::object& threads) {
  const PackedObject& object = *packed_of(op, packed, "packed", Packing::kDiffusionLoss);
  const int count = thread_count(op, threads);
  const auto run = [&](auto function) {
    function(object, x_0, rows, loss, position, blocks, last, encoded, seed, sample_ids, modality, token_mask,
             key_mask, out, gradients, count);
  };
  object.is_double() ? run(&diffusion_loss_of<double>) : run(&diffusion_loss_of<float>);
}

}  // namespace

void bind_diffusion_loss(py::module_& m) {
  m.def("diffusion_loss", &diffusion_loss, py::arg("packed"), py::arg("x_0"), py::arg("rows"), py::arg("loss"),
        py::arg("position"), py::arg("modulation_blocks"), py::arg("modulation_final"), py::arg("encoded"),
        py::arg("seed"), py::arg("sample_ids"), py::arg("modality"), py::arg("token_mask"), py::arg("key_mask"),
        py::arg("out"), py::arg("gradients"), py::arg("threads"),
        "Eq. 3 at each sample's step, and its gradients where there is room for them: a row of those of "
        "modulation_blocks, modulation_final, encoded and the weights, one after the other.");
}

}  // namespace rohydr

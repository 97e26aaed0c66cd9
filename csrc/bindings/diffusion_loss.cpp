// SPDX-License-Identifier: MIT
// Python's way to Eq. 3.
#include <numeric>
#include <utility>

#include "conditioning_layers.h"
#include "packed.h"

namespace rohydr {
namespace {

constexpr const char* kLossOp = "diffusion_loss";

Loss loss_of(const py::object& name, const std::string& argument) {
  const std::string text = py::isinstance<py::str>(name) ? std::string(py::str(name)) : "";
  RH_CHECK(text == "nll" || text == "kl" || text == "hybrid",
           kLossOp << ": " << argument << " must be nll, kl or hybrid, got " << text_of(name)
                   << ". Choose one of these.");
  return text == "nll" ? Loss::kNll : text == "kl" ? Loss::kKl : Loss::kHybrid;
}

// The places of one term in its tuple.
enum Place : std::size_t {
  kPacked, kX0, kRows, kPosition, kFeatures, kEncoded, kLayers, kSeed, kSampleIds, kModality, kLossName, kTokenMask,
  kKeyMask, kOut, kGradients, kPlaces
};

// The time embedding and the modulation; returns the sizes of their weights and biases, in turn.
template <class T>
std::vector<std::int64_t> read_layers(DiffusionLossRequest<T>& r, const DenoiserShape& shape, const py::object& value,
                                      const std::string& name) {
  const LayersObject& object = layers_of(kLossOp, value, name);
  const bool fits = object.is_double() == std::is_same_v<T, double> && object.width == shape.width &&
                    object.layers == shape.layers && object.inputs == r.inputs;
  RH_CHECK(fits, kLossOp << ": " << name << " must be those of " << shape.layers << " blocks of width " << shape.width
                         << " that read " << r.inputs << " features of " << dtype_name<T>() << ", got layers of "
                         << object.layers << ", " << object.width << " and " << object.inputs << " of "
                         << (object.is_double() ? "float64" : "float32") << ". Pass those of the network.");
  const ConditioningLayers<T>& layers = object.get<T>();
  const auto count = static_cast<std::ptrdiff_t>(3 + shape.layers);
  r.layers.assign(layers.weights.begin(), layers.weights.begin() + count);
  r.layer_biases.assign(layers.biases.begin(), layers.biases.begin() + count);
  std::vector<std::int64_t> sizes;
  for (std::int64_t i = 0; i < count; ++i) {
    const auto [outputs, inputs] = conditioning_layer(i, shape.layers, shape.width, r.inputs);
    sizes.push_back(outputs * inputs);
    sizes.push_back(outputs);
  }
  return sizes;
}

// One row, or None: the gradients of encoded, of the network, of the layers, and of K and V, one after the other.
template <class T>
void read_gradients(DiffusionLossRequest<T>& r, const PackedObject& object, const std::vector<std::int64_t>& layers,
                    const py::object& gradients, const std::string& name) {
  if (gradients.is_none()) return;
  const std::int64_t width = object.shape().width, keys = r.batch.samples * r.batch.keys * width;
  std::vector<std::int64_t> sizes;
  for (const py::handle weight : object.arrays) sizes.push_back(py::reinterpret_borrow<py::array>(weight).size());
  const std::int64_t own = std::accumulate(layers.begin(), layers.end(), keys);
  T* next = writeable_pointer<T>(
      writeable<T>(kLossOp, gradients, name, {std::accumulate(sizes.begin(), sizes.end(), own)}));
  const auto take = [&](std::int64_t count) { return std::exchange(next, next + count); };
  r.encoded_gradient = take(keys);
  const auto network = static_cast<std::size_t>(4 + 12 * object.shape().layers);
  for (std::size_t i = 0; i < network; ++i) r.weight_gradients.push_back(take(sizes[i]));
  for (std::size_t i = 0; i < layers.size(); i += 2) {
    r.layer_gradients.push_back(take(layers[i]));
    r.layer_bias_gradients.push_back(take(layers[i + 1]));
  }
  for (std::size_t i = network; i < sizes.size(); i += 2) {  // K and V by themselves
    T* const weight = take(sizes[i]);
    T* const bias = take(sizes[i + 1]);
    for (const std::int64_t half : {std::int64_t{0}, width}) {
      r.weight_gradients.push_back(weight + half * width);
      r.weight_gradients.push_back(bias + half);
    }
  }
}

template <class T>
DiffusionLossRequest<T> read_term(const PackedObject& object, const py::tuple& term, const std::string& prefix) {
  const auto name = [&](const char* part) { return prefix + part; };
  const DenoiserShape& shape = object.shape();
  const py::array tokens = array<T>(kLossOp, term[kX0], name("x_0"), 3);
  const py::array condition = array<T>(kLossOp, term[kEncoded], name("encoded"), 3);
  DiffusionLossRequest<T> r{};
  r.weights = object.get<T>();
  r.batch = {tokens.shape(0), tokens.shape(1), condition.shape(1), nullptr, nullptr};
  const std::int64_t samples = r.batch.samples;
  check_keys(kLossOp, r.batch.keys);
  RH_CHECK(r.batch.tokens < kSizeMax && r.batch.keys < kSizeMax,
           kLossOp << ": sizes must be below 2^31, got " << r.batch.tokens << " tokens, " << r.batch.keys
                   << " keys. Shorten them.");
  r.x_0 = pointer<T>(array<T>(kLossOp, term[kX0], name("x_0"), {samples, r.batch.tokens, shape.channels}));
  r.encoded = pointer<T>(array<T>(kLossOp, term[kEncoded], name("encoded"), {samples, r.batch.keys, shape.width}));
  r.rows = pointer<T>(array<T>(kLossOp, term[kRows], name("rows"), {samples, kLossColumns}));
  r.loss = loss_of(term[kLossName], name("loss"));
  r.position = pointer<T>(array<T>(kLossOp, term[kPosition], name("position"), {r.batch.tokens, shape.width}));
  const py::array features = array<T>(kLossOp, term[kFeatures], name("features"), 2);
  r.modulations = features.shape(0) == 1 ? 1 : samples;
  r.inputs = features.shape(1);
  RH_CHECK(r.inputs >= 1 && r.inputs < kSizeMax,
           kLossOp << ": " << name("features") << " must have at least one column, got " << r.inputs << ". Pass some.");
  r.features = pointer<T>(array<T>(kLossOp, term[kFeatures], name("features"), {r.modulations, r.inputs}));
  const std::vector<std::int64_t> layers = read_layers(r, shape, term[kLayers], name("layers"));
  r.seed = integer(kLossOp, term[kSeed], name("seed").c_str(), UINT64_MAX);
  r.sample_ids = sample_ids_of(kLossOp, term[kSampleIds], name("sample_ids"), samples);
  r.modality = static_cast<std::uint32_t>(integer(kLossOp, term[kModality], name("modality").c_str(), 255));
  r.batch.token_mask = mask(kLossOp, term[kTokenMask], name("token_mask"), samples, r.batch.tokens);
  r.batch.key_mask = mask(kLossOp, term[kKeyMask], name("key_mask"), samples, r.batch.keys);
  r.out = writeable_pointer<T>(writeable<T>(kLossOp, term[kOut], name("out"), {1}));
  read_gradients(r, object, layers, term[kGradients], name("gradients"));
  return r;
}

void diffusion_loss(const py::object& terms, const py::object& threads) {
  const int count = thread_count(kLossOp, threads);
  const Isa isa = selected_isa();  // once: an argument's conversion may change the environment
  std::vector<DiffusionLossRequest<float>> floats;
  std::vector<DiffusionLossRequest<double>> doubles;
  const py::tuple list = tuples_of(kLossOp, terms, "terms", kPlaces);
  for (std::size_t i = 0; i < list.size(); ++i) {
    const std::string prefix = "terms[" + std::to_string(i) + "].";
    const py::tuple term = list[i];
    const PackedObject& object = *packed_of(kLossOp, term[kPacked], prefix + "packed", Packing::kDiffusionLoss);
    if (object.is_double()) {
      doubles.push_back(read_term<double>(object, term, prefix));
    } else {
      floats.push_back(read_term<float>(object, term, prefix));
    }
  }
  const ReleasedGil released;
  run_diffusion_losses(floats, isa, count);
  run_diffusion_losses(doubles, isa, count);
}

}  // namespace

void bind_diffusion_loss(py::module_& m) {
  m.def("diffusion_loss", &diffusion_loss, py::arg("terms"), py::arg("threads"),
        "Eq. 3 of every term, each sample at its own step, and its gradients where there is room for them: a row of "
        "those of encoded, of the network, of the layers, and of K and V, one after the other.");
}

}  // namespace rohydr

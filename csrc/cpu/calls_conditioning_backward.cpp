// SPDX-License-Identifier: MIT
#include <algorithm>
#include <functional>
#include <utility>
#include <vector>

#include "share_out.h"
#include "unit_sums.h"

namespace rohydr {
namespace {

// Pieces of work of any kind.
class Pieces {
 public:
  void add(double flop, std::function<void()> piece) {
    flop_ += flop;
    pieces_.push_back(std::move(piece));
  }

  void run(int threads) const {
    const auto count = static_cast<std::int64_t>(pieces_.size());
    share_out(count, useful_threads(count, flop_, threads), Threads::kOfOpenMp,
              [&](std::int64_t piece, int) { pieces_[static_cast<std::size_t>(piece)](); });
  }

 private:
  std::vector<std::function<void()>> pieces_;
  double flop_ = 0;
};

// What comes back through a layer y = x W' + b.
template <class T>
struct Output {
  std::int64_t rows, outputs;
  const T* dy;
  std::int64_t stride;
};

// The way back of one call. Rows that kernels read are `stride_` apart, padded with 0 where W is no whole vectors.
template <class T>
class ConditioningBackward {
 public:
  ConditioningBackward(const ConditioningBackwardRequest<T>& r, Isa isa, int threads)
      : r_(r), f_(r.forward), kernels_(kernels_of<T>(isa)), isa_(isa), threads_(threads), stride_(padded(f_.width)) {}

  void run() {
    const Activation hidden = embed(0, f_.features, f_.inputs), time = embed(1, hidden.value.data(), f_.width);
    std::vector<Output<T>> tables;
    for (std::int64_t i = 0; i <= f_.layers; ++i) tables.push_back(table(i));
    const std::vector<T> second = through(time, input_gradient(tables, 2, f_.rows, f_.width));
    const Output<T> of_second{f_.rows, f_.width, second.data(), stride_};
    const std::vector<T> first = through(hidden, input_gradient({of_second}, 1, f_.rows, f_.width));
    const Output<T> of_first{f_.rows, f_.width, first.data(), stride_};
    weight_gradients({of_first}, 0, f_.features, f_.inputs);
    weight_gradients({of_second}, 1, hidden.value.data(), f_.width);
    weight_gradients(tables, 2, time.value.data(), f_.width);
    if (r_.features_gradient != nullptr) {
      const std::vector<T> lines = input_gradient({of_first}, 0, f_.rows, f_.inputs);
      export_rows(lines.data(), f_.rows, f_.inputs, padded(f_.inputs), r_.features_gradient);
    }
    if (f_.weights.size() < static_cast<std::size_t>(3 + 2 * f_.layers)) return;  // the modulation alone
    std::vector<Output<T>> pairs;  // K and V, side by side in the layer, each by itself in what comes back
    const std::int64_t size = f_.condition_rows * f_.width;
    for (std::int64_t i = 0; i < 2 * f_.layers; ++i) {
      pairs.push_back({f_.condition_rows, f_.width, r_.cond_kv + i * size, f_.width});
    }
    weight_gradients(pairs, 3 + f_.layers, f_.encoded, f_.width, 2);
    if (r_.encoded_gradient != nullptr) {
      const std::vector<T> lines = input_gradient(pairs, 3 + f_.layers, f_.condition_rows, f_.width, 2);
      export_rows(lines.data(), f_.condition_rows, f_.width, stride_, r_.encoded_gradient);
    }
  }

 private:
  // SiLU of a layer, and its slope there: (rows, W), dense.
  struct Activation {
    std::vector<T> value, slope;
  };

  std::int64_t padded(std::int64_t inputs) const { return round_up(inputs, kernels_.lanes); }

  Activation embed(std::size_t layer, const T* x, std::int64_t inputs) const {
    const auto size = static_cast<std::size_t>(padded(f_.rows * f_.width));
    std::vector<T> before(size);
    Activation result{std::vector<T>(size), std::vector<T>(size)};
    if (f_.rows == 0) return result;
    run_linears<T>({{f_.weights[layer]}, {f_.biases[layer]}, f_.rows, inputs, f_.width, x, before.data(), 0, f_.width,
                    false},
                   isa_, threads_, Threads::kOfOpenMp);
    kernels_.silu_and_slope(before.data(), static_cast<std::int64_t>(size), result.value.data(), result.slope.data());
    return result;
  }

  Output<T> table(std::int64_t i) const {
    if (i == f_.layers) return {f_.rows, 2 * f_.width, r_.final, 2 * f_.width};
    return {f_.rows, 9 * f_.width, r_.blocks + i * 9 * f_.width, f_.layers * 9 * f_.width};
  }

  // Rows of `gradient` times the slope.
  std::vector<T> through(const Activation& at, std::vector<T> gradient) const {
    for (std::int64_t row = 0; row < f_.rows; ++row) {
      for (std::int64_t c = 0; c < f_.width; ++c) {
        gradient[static_cast<std::size_t>(row * stride_ + c)] *= at.slope[static_cast<std::size_t>(row * f_.width + c)];
      }
    }
    return gradient;
  }

  // The sum of dy W over layers from number `first` on, of which `parts` neighbours share a weight, in padded rows.
  std::vector<T> input_gradient(const std::vector<Output<T>>& layers, std::int64_t first, std::int64_t rows,
                                std::int64_t inputs, std::int64_t parts = 1) const {
    const std::int64_t stride = padded(inputs);
    std::vector<T> result(static_cast<std::size_t>(rows * stride));
    std::vector<PaddedRows<T>> weights;
    std::vector<LinearBackwardCall<T>> calls;
    double flop = 0;
    weights.reserve(layers.size());
    for (const Output<T>& layer : layers) {
      const auto i = static_cast<std::int64_t>(calls.size());
      const T* const weight = f_.weights[static_cast<std::size_t>(first + i / parts)];
      weights.emplace_back(weight + i % parts * layer.outputs * inputs, layer.outputs, inputs, stride);
      calls.push_back({rows, inputs, layer.outputs, stride, layer.dy, layer.stride, nullptr, nullptr, nullptr,
                       weights.back().data(), result.data()});
      flop += 2.0 * static_cast<double>(layer.outputs * inputs);
    }
    const std::int64_t run = std::clamp<std::int64_t>((rows + threads_ - 1) / threads_, 8, 64);
    Pieces pieces;
    for (std::int64_t row = 0; row < rows; row += run) {
      const std::int64_t count = std::min(run, rows - row);
      pieces.add(flop * static_cast<double>(count), [&, row, count] {
        for (const LinearBackwardCall<T>& call : calls) kernels_.linear_input_gradient(call, row, count);
      });
    }
    pieces.run(threads_);
    return result;
  }

  // dW = dy' x and db of such layers, on the same rows x of `inputs`.
  void weight_gradients(const std::vector<Output<T>>& layers, std::int64_t first, const T* x, std::int64_t inputs,
                        std::int64_t parts = 1) const {
    if (layers.empty()) return;
    const std::int64_t stride = padded(inputs);
    const PaddedRows<T> lines(x, layers[0].rows, inputs, stride);
    Pieces pieces;
    for (std::size_t i = 0; i < layers.size(); ++i) {
      const Output<T>& layer = layers[i];
      const auto place = static_cast<std::size_t>(first) + i / static_cast<std::size_t>(parts);
      const std::int64_t part = static_cast<std::int64_t>(i) % parts * layer.outputs;
      T* const weight = r_.weight_gradients[place] == nullptr ? nullptr : r_.weight_gradients[place] + part * inputs;
      T* const bias = r_.bias_gradients[place] == nullptr ? nullptr : r_.bias_gradients[place] + part;
      const LinearBackwardCall<T> call{layer.rows, inputs, layer.outputs, stride, layer.dy, layer.stride, lines.data(),
                                       weight, bias, nullptr, nullptr};
      for (std::int64_t column = 0; column < layer.outputs; column += kLinearColumns) {
        const std::int64_t count = std::min(kLinearColumns, layer.outputs - column);
        const double flop = 2.0 * static_cast<double>(layer.rows * count * inputs);
        if (weight != nullptr) pieces.add(flop, [=, this] { kernels_.linear_weight_gradient(call, column, count); });
        if (bias != nullptr) pieces.add(0, [=, this] { kernels_.linear_bias_gradient(call, column, count); });
      }
    }
    pieces.run(threads_);
  }

  const ConditioningBackwardRequest<T>& r_;
  const ConditioningRequest<T>& f_;
  const Kernels<T>& kernels_;
  const Isa isa_;
  const int threads_;
  const std::int64_t stride_;
};

}  // namespace

template <class T>
void run_conditioning_backward(const ConditioningBackwardRequest<T>& r, Isa isa, int threads) {
  ConditioningBackward<T>(r, isa, threads).run();
}

template void run_conditioning_backward<float>(const ConditioningBackwardRequest<float>&, Isa, int);
template void run_conditioning_backward<double>(const ConditioningBackwardRequest<double>&, Isa, int);

}  // namespace rohydr

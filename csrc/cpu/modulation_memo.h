// SPDX-License-Identifier: MIT
// The modulation that the layers of a denoiser gave last. Whoever samples asks for the same steps again and again, of the
// same parameters: then it is copied. Parameters are compared, byte by byte, as those that are packed.
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstring>
#include <memory>
#include <mutex>
#include <vector>

#include "calls.h"

namespace rohydr {

// Safe for several threads.
template <class T>
class ModulationMemo {
 public:
  // Fills r.blocks and r.final; `compute` does so for a request with other addresses. Features that were not those of
  // the last call, such as random steps, are only noted: nothing is copied for what may never come again.
  template <class Compute>
  void run(const ConditioningRequest<T>& r, Isa isa, const Compute& compute) {
    const std::shared_ptr<const Tables> last = tables();
    const auto inputs = static_cast<std::size_t>(r.rows * r.inputs);
    const bool again = last != nullptr && same(last->features, r.features, inputs);
    if (again && last->isa == isa && !last->final.empty() && same_layers(last->layers, r)) {
      std::copy(last->blocks.begin(), last->blocks.end(), r.blocks);
      std::copy(last->final.begin(), last->final.end(), r.final);
      return;
    }
    const auto fresh = std::make_shared<Tables>();
    fresh->isa = isa;
    fresh->features.assign(r.features, r.features + inputs);
    if (again) {
      // From the copy: the parameters may be changing just now, and what is kept must be what is compared with.
      compute(copied(r, fresh->layers));
      fresh->blocks.assign(r.blocks, r.blocks + r.rows * r.layers * 9 * r.width);
      fresh->final.assign(r.final, r.final + r.rows * 2 * r.width);
    } else {
      compute(r);
    }
    const std::lock_guard<std::mutex> lock(mutex_);
    tables_ = fresh;
  }

  std::size_t bytes() const {
    const std::shared_ptr<const Tables> kept = tables();
    if (kept == nullptr) return 0;
    return (kept->features.size() + kept->layers.size() + kept->blocks.size() + kept->final.size()) * sizeof(T);
  }

 private:
  struct Tables {
    Isa isa;
    std::vector<T> features, layers, blocks, final;  // the last three are empty where only features were noted
  };

  std::shared_ptr<const Tables> tables() const {
    const std::lock_guard<std::mutex> lock(mutex_);
    return tables_;
  }

  static bool same(const std::vector<T>& kept, const T* data, std::size_t count) {
    return kept.size() == count && (count == 0 || std::memcmp(kept.data(), data, count * sizeof(T)) == 0);
  }

  // Calls visit(data, count) for the parameters of the time embedding and of the modulation, until one gives false.
  template <class Request, class Visit>
  static bool each_layer(Request& r, const Visit& visit) {
    for (std::int64_t i = 0; i < 3 + r.layers; ++i) {
      const auto [outputs, inputs] = conditioning_layer(i, r.layers, r.width, r.inputs);
      const auto at = static_cast<std::size_t>(i);
      if (!visit(r.weights[at], outputs * inputs) || !visit(r.biases[at], outputs)) return false;
    }
    return true;
  }

  static bool same_layers(const std::vector<T>& kept, const ConditioningRequest<T>& r) {
    const T* next = kept.data();
    return each_layer(r, [&](const T* data, std::int64_t count) {
      const T* const place = next;
      next += count;
      return std::memcmp(place, data, static_cast<std::size_t>(count) * sizeof(T)) == 0;
    });
  }

  static ConditioningRequest<T> copied(const ConditioningRequest<T>& r, std::vector<T>& layers) {
    std::int64_t size = 0;
    each_layer(r, [&](const T*, std::int64_t count) { return (size += count, true); });
    layers.reserve(static_cast<std::size_t>(size));  // so that addresses stay
    ConditioningRequest<T> copy = r;
    each_layer(copy, [&](const T*& data, std::int64_t count) {
      const T* const place = layers.data() + layers.size();
      layers.insert(layers.end(), data, data + count);
      data = place;
      return true;
    });
    return copy;
  }

  mutable std::mutex mutex_;  // of what follows
  std::shared_ptr<const Tables> tables_;
};

}  // namespace rohydr

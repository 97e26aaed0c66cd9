// SPDX-License-Identifier: MIT
// Barriers and warp-wide functions of CUDA C++, with the checks that a device does not make. The place of the call
// arrives as a default argument, so that messages name it.
#pragma once

#include <type_traits>

#include "block.h"

#define threadIdx (::rohydr::sim::running_block()->current().index)
#define blockIdx (::rohydr::sim::running_block()->index())
#define blockDim (::rohydr::sim::running_block()->block())
#define gridDim (::rohydr::sim::running_block()->grid())
#define warpSize 32

namespace rohydr::sim {

// What the lanes of a meeting brought.
template <typename T>
class Exchange {
 public:
  Exchange(std::uint32_t mask, const T& value, const char* kind, const Location& at) : kind_(kind), at_(at) {
    static_assert(std::is_trivially_copyable_v<T> && sizeof(T) <= Meeting::kPayload);
    meeting_ = &running_block()->meet(mask, &value, sizeof(T), kind, at, phase_);
    lanes_ = meeting_->took_part[phase_];
  }

  std::uint32_t lanes() const { return lanes_; }

  T operator[](unsigned lane) const {
    if ((lanes_ >> lane & 1u) == 0) {
      running_block()->fail(format("%s at %s: it reads lane %u, which took no part", kind_, text_of(at_).c_str(), lane));
    }
    T value;
    std::memcpy(&value, meeting_->slots[phase_][lane], sizeof(T));
    return value;
  }

 private:
  const Meeting* meeting_;
  unsigned phase_ = 0;
  std::uint32_t lanes_;
  const char* kind_;
  Location at_;
};

// A meeting of instructions that PTX calls .aligned: the whole warp, none exited.
template <typename T>
Exchange<T> whole_warp(const T& value, const char* kind, const Location& at) {
  const Exchange<T> exchange(kFullMask, value, kind, at);
  if (exchange.lanes() != kFullMask) {
    running_block()->fail(format("%s at %s: only lanes 0x%08x of the warp are there", kind, text_of(at).c_str(),
                                 exchange.lanes()));
  }
  return exchange;
}

inline unsigned lane() { return running_block()->current().lane; }

}  // namespace rohydr::sim

inline void __syncthreads(const rohydr::sim::Location& at = rohydr::sim::Location::current()) {
  rohydr::sim::running_block()->barrier(false, at);
}
inline int __syncthreads_count(int predicate, const rohydr::sim::Location& at = rohydr::sim::Location::current()) {
  return rohydr::sim::running_block()->barrier(predicate != 0, at);
}
inline int __syncthreads_or(int predicate, const rohydr::sim::Location& at = rohydr::sim::Location::current()) {
  return rohydr::sim::running_block()->barrier(predicate != 0, at) != 0;
}
inline int __syncthreads_and(int predicate, const rohydr::sim::Location& at = rohydr::sim::Location::current()) {
  return rohydr::sim::running_block()->barrier(predicate == 0, at) == 0;
}
inline void __syncwarp(unsigned mask = rohydr::sim::kFullMask,
                       const rohydr::sim::Location& at = rohydr::sim::Location::current()) {
  rohydr::sim::Exchange<char>(mask, 0, "__syncwarp", at);
}

template <typename T>
T __shfl_sync(unsigned mask, T value, int source, int width = 32,
              const rohydr::sim::Location& at = rohydr::sim::Location::current()) {
  const rohydr::sim::Exchange<T> lanes(mask, value, "__shfl_sync", at);
  const unsigned segment = rohydr::sim::lane() & ~(width - 1u);
  return lanes[segment | (static_cast<unsigned>(source) & (width - 1u))];
}
template <typename T>
T __shfl_xor_sync(unsigned mask, T value, int bits, int width = 32,
                  const rohydr::sim::Location& at = rohydr::sim::Location::current()) {
  const rohydr::sim::Exchange<T> lanes(mask, value, "__shfl_xor_sync", at);
  const unsigned source = rohydr::sim::lane() ^ static_cast<unsigned>(bits);
  const unsigned last = rohydr::sim::lane() | (width - 1u);  // of the segment
  return source <= last ? lanes[source] : value;
}
template <typename T>
T __shfl_down_sync(unsigned mask, T value, unsigned distance, int width = 32,
                   const rohydr::sim::Location& at = rohydr::sim::Location::current()) {
  const rohydr::sim::Exchange<T> lanes(mask, value, "__shfl_down_sync", at);
  const unsigned source = rohydr::sim::lane() + distance;
  return source <= (rohydr::sim::lane() | (width - 1u)) ? lanes[source] : value;
}
template <typename T>
T __shfl_up_sync(unsigned mask, T value, unsigned distance, int width = 32,
                 const rohydr::sim::Location& at = rohydr::sim::Location::current()) {
  const rohydr::sim::Exchange<T> lanes(mask, value, "__shfl_up_sync", at);
  const unsigned first = rohydr::sim::lane() & ~(width - 1u);  // of the segment
  return rohydr::sim::lane() >= first + distance ? lanes[rohydr::sim::lane() - distance] : value;
}

inline unsigned __ballot_sync(unsigned mask, int predicate,
                              const rohydr::sim::Location& at = rohydr::sim::Location::current()) {
  const rohydr::sim::Exchange<int> lanes(mask, predicate, "__ballot_sync", at);
  unsigned votes = 0;
  for (unsigned i = 0; i < rohydr::sim::kWarpSize; ++i) {
    if ((lanes.lanes() >> i & 1u) != 0 && lanes[i] != 0) votes |= 1u << i;
  }
  return votes;
}
inline int __any_sync(unsigned mask, int predicate,
                      const rohydr::sim::Location& at = rohydr::sim::Location::current()) {
  return __ballot_sync(mask, predicate, at) != 0;
}
inline int __all_sync(unsigned mask, int predicate,
                      const rohydr::sim::Location& at = rohydr::sim::Location::current()) {
  return __ballot_sync(mask, predicate == 0, at) == 0;
}

namespace rohydr::sim {

template <typename T>
T reduce(unsigned mask, T value, const char* kind, const Location& at, auto combine) {
  const Exchange<T> lanes(mask, value, kind, at);
  T result = value;
  for (unsigned i = 0; i < kWarpSize; ++i) {
    if ((lanes.lanes() >> i & 1u) != 0 && i != lane()) result = combine(result, lanes[i]);
  }
  return result;
}

}  // namespace rohydr::sim

// Integers only, as on a device: the order of the terms does not matter.
template <typename T>
T __reduce_add_sync(unsigned mask, T value, const rohydr::sim::Location& at = rohydr::sim::Location::current()) {
  static_assert(std::is_integral_v<T> && sizeof(T) == 4);
  const auto add = [](T a, T b) { return static_cast<T>(static_cast<unsigned>(a) + static_cast<unsigned>(b)); };
  return rohydr::sim::reduce(mask, value, "__reduce_add_sync", at, add);
}
template <typename T>
T __reduce_max_sync(unsigned mask, T value, const rohydr::sim::Location& at = rohydr::sim::Location::current()) {
  static_assert(std::is_integral_v<T> && sizeof(T) == 4);
  return rohydr::sim::reduce(mask, value, "__reduce_max_sync", at, [](T a, T b) { return a < b ? b : a; });
}
template <typename T>
T __reduce_min_sync(unsigned mask, T value, const rohydr::sim::Location& at = rohydr::sim::Location::current()) {
  static_assert(std::is_integral_v<T> && sizeof(T) == 4);
  return rohydr::sim::reduce(mask, value, "__reduce_min_sync", at, [](T a, T b) { return b < a ? b : a; });
}

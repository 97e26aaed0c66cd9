// SPDX-License-Identifier: MIT
// Memory that shows wrong accesses. Device memory: each allocation ends where 64 MiB that cannot be touched begin, starts
// after as many, and is filled with 0xFF, which is NaN in every floating-point type. Between its end and those lie at most
// 15 bytes (an allocation is 16-byte aligned), which are compared after each launch. Shared memory is the same, for each
// block.
#pragma once

#include <cstdio>
#include <cstring>
#include <string>
#include <vector>

#include "fiber.h"

namespace rohydr::sim {

constexpr unsigned char kPoison = 0xFF;
constexpr std::size_t kGuard = std::size_t{64} << 20;  // address space only; a multiple of every page size

inline std::string format(const char* pattern, auto... values) {
  char text[512];
  std::snprintf(text, sizeof(text), pattern, values...);
  return text;
}

// `bytes` of memory at an alignment, as far to the right as that allows, between two guards.
class GuardedRegion {
 public:
  GuardedRegion(std::size_t bytes, std::size_t alignment)
      : bytes_(bytes), inside_(round_up(bytes + alignment, page_size())), memory_(reserve(inside_ + 2 * kGuard)) {
    mprotect(memory_ + kGuard, inside_, PROT_READ | PROT_WRITE);
    start_ = memory_ + kGuard + inside_ - round_up(bytes, alignment);
    std::memset(memory_ + kGuard, kPoison, inside_);
  }
  ~GuardedRegion() {
    if (memory_ != nullptr) munmap(memory_, inside_ + 2 * kGuard);
  }
  GuardedRegion(GuardedRegion&& other) noexcept { *this = static_cast<GuardedRegion&&>(other); }
  GuardedRegion& operator=(GuardedRegion&& other) noexcept {
    std::swap(bytes_, other.bytes_);
    std::swap(inside_, other.inside_);
    std::swap(memory_, other.memory_);
    std::swap(start_, other.start_);
    return *this;
  }

  unsigned char* start() const { return start_; }
  std::size_t bytes() const { return bytes_; }

  void poison() { std::memset(start_, kPoison, bytes_); }

  // Whether [address, address + bytes) lies inside.
  bool holds(const void* address, std::size_t bytes) const {
    const auto* place = static_cast<const unsigned char*>(address);
    return place >= start_ && place + bytes <= start_ + bytes_;
  }

  bool maps(const void* address) const {
    const auto* place = static_cast<const unsigned char*>(address);
    return place >= memory_ && place < memory_ + inside_ + 2 * kGuard;
  }

  // How far an address is from the memory; for example "12 bytes past the end of its 400".
  std::string place_of(const void* address) const {
    const auto* place = static_cast<const unsigned char*>(address);
    if (place < start_) return format("%zd bytes before its %zu", start_ - place, bytes_);
    return format("%zd bytes past the end of its %zu", place - (start_ + bytes_), bytes_);
  }

  // What was written beside the memory, without reaching a guard; empty when nothing was.
  std::string damage() const {
    const unsigned char* end = memory_ + kGuard + inside_;
    for (const unsigned char* p = memory_ + kGuard; p != end; ++p) {
      if (p == start_) p += bytes_;
      if (p == end) break;
      if (*p != kPoison) return place_of(p);
    }
    return "";
  }

 private:
  std::size_t bytes_ = 0;
  std::size_t inside_ = 0;
  unsigned char* memory_ = nullptr;
  unsigned char* start_ = nullptr;
};

// What cudaMalloc is on a device.
class DeviceMemory {
 public:
  static constexpr std::size_t kAlignment = 16;

  void* allocate(std::size_t bytes) {
    regions_.emplace_back(bytes, kAlignment);
    return regions_.back().start();
  }

  void release_all() { regions_.clear(); }

  const GuardedRegion* find(const void* address) const {
    for (const GuardedRegion& region : regions_) {
      if (region.maps(address)) return &region;
    }
    return nullptr;
  }

  bool holds(const void* address, std::size_t bytes) const {
    const GuardedRegion* region = find(address);
    return region != nullptr && region->holds(address, bytes);
  }

  int index_of(const GuardedRegion& region) const { return static_cast<int>(&region - regions_.data()); }

  std::string damage() const {
    for (const GuardedRegion& region : regions_) {
      const std::string found = region.damage();
      if (!found.empty()) return format("device allocation %d: a store %s", index_of(region), found.c_str());
    }
    return "";
  }

 private:
  std::vector<GuardedRegion> regions_;
};

inline DeviceMemory& device_memory() {
  static DeviceMemory memory;
  return memory;
}

}  // namespace rohydr::sim

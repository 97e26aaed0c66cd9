// SPDX-License-Identifier: MIT
// The instructions of csrc/cuda/device.cuh. Fragments follow the PTX ISA. A matrix product adds as the tensor cores of
// sm_80 do (Fasi et al., "Numerical behavior of NVIDIA tensor cores", PeerJ CS 2021): products are exact, groups of 8
// (bfloat16) or 4 (tf32) of them and the accumulator are aligned to the largest, cut to 24 bits, and added; the sum is
// cut, not rounded. No bit below those 24 is kept, so a device is at least as accurate.
#pragma once

#include "intrinsics.h"
#include "warp.h"

namespace rohydr::sim {

inline float block_sum(float c, const double* products, int count) {
  bool finite = std::isfinite(c);
  double largest = std::fabs(static_cast<double>(c));
  for (int i = 0; i < count; ++i) {
    finite = finite && std::isfinite(products[i]);
    largest = std::fmax(largest, std::fabs(products[i]));
  }
  if (!finite) {
    float sum = c;
    for (int i = 0; i < count; ++i) sum += static_cast<float>(products[i]);
    return sum;
  }
  if (largest == 0.0) return 0.0f;
  constexpr int kBits = 24;
  const int unit = std::ilogb(largest) - (kBits - 1);
  const double scale = std::ldexp(1.0, -unit);
  std::int64_t sum = static_cast<std::int64_t>(c * scale);  // a conversion cuts towards zero
  for (int i = 0; i < count; ++i) sum += static_cast<std::int64_t>(products[i] * scale);
  const std::uint64_t magnitude = sum < 0 ? 0 - static_cast<std::uint64_t>(sum) : static_cast<std::uint64_t>(sum);
  const int excess = std::max(0, static_cast<int>(std::bit_width(magnitude)) - kBits);
  const double cut = std::ldexp(static_cast<double>(magnitude >> excess), unit + excess);
  return static_cast<float>(sum < 0 ? -cut : cut);
}

inline double bf16_half(std::uint32_t word, unsigned half) {
  return std::bit_cast<float>(half == 0 ? word << 16 : word & 0xFFFF0000u);
}

inline double tf32_value(std::uint32_t word) { return std::bit_cast<float>(word & 0xFFFFE000u); }

struct Operands {
  std::uint32_t a[4];
  std::uint32_t b[2];
};

template <int kMatrices, bool kTransposed>
void load_matrices(std::uint32_t (&r)[kMatrices], const void* row, const char* kind, const Location& at) {
  Block& block = *running_block();
  if (lane() < 8 * kMatrices) {
    if (reinterpret_cast<std::uintptr_t>(row) % 16 != 0) {
      block.fail(format("%s at %s: the row must be 16-byte aligned, got %p", kind, text_of(at).c_str(), row));
    }
    if (!block.shared().holds(row, 16)) {
      block.fail(format("%s at %s: the row lies outside of shared memory, %s", kind, text_of(at).c_str(),
                        block.shared().place_of(row).c_str()));
    }
  }
  struct Row {
    std::uint16_t element[8];
  };
  // Rows travel by value: a lane may overwrite its row as soon as it goes on.
  Row mine{};
  if (lane() < 8 * kMatrices) std::memcpy(&mine, row, sizeof(mine));
  const Exchange<Row> rows = whole_warp(mine, kind, at);
  const unsigned outer = lane() / 4;
  const unsigned inner = 2 * (lane() % 4);
  for (unsigned m = 0; m < kMatrices; ++m) {
    const auto element = [&](unsigned i) -> std::uint32_t {
      return kTransposed ? rows[8 * m + inner + i].element[outer] : rows[8 * m + outer].element[inner + i];
    };
    r[m] = element(0) | element(1) << 16;
  }
}

inline void issue_copy(void* shared, const void* global, bool valid, const Location& at) {
  Block& block = *running_block();
  if ((reinterpret_cast<std::uintptr_t>(shared) | reinterpret_cast<std::uintptr_t>(global)) % 16 != 0) {
    block.fail(format("cp.async at %s: both addresses must be 16-byte aligned, got %p and %p", text_of(at).c_str(),
                      shared, global));
  }
  if (!block.shared().holds(shared, 16)) {
    block.fail(format("cp.async at %s: the target lies outside of shared memory, %s", text_of(at).c_str(),
                      block.shared().place_of(shared).c_str()));
  }
  if (valid && !device_memory().holds(global, 16)) {
    const GuardedRegion* region = device_memory().find(global);
    block.fail(format("cp.async at %s: the source lies outside of any device allocation%s%s", text_of(at).c_str(),
                      region == nullptr ? "" : ", ", region == nullptr ? "" : region->place_of(global).c_str()));
  }
  auto* target = static_cast<unsigned char*>(shared);
  std::memset(target, kPoison, 16);  // whoever reads before the wait, or still reads what was there, gets NaN
  block.current().open_copies.push_back({target, valid ? static_cast<const unsigned char*>(global) : nullptr});
}

inline float flush_subnormal(float x) {
  return std::fpclassify(x) == FP_SUBNORMAL ? std::copysign(0.0f, x) : x;
}

}  // namespace rohydr::sim

namespace rohydr::ptx {

using sim::Location;

inline void mma_bf16(float (&d)[4], const std::uint32_t (&a)[4], std::uint32_t b0, std::uint32_t b1,
                     const Location& at = Location::current()) {
  const sim::Operands mine = {{a[0], a[1], a[2], a[3]}, {b0, b1}};
  const sim::Exchange<sim::Operands> lanes = sim::whole_warp(mine, "mma.m16n8k16", at);
  constexpr unsigned kDepth = 16;
  constexpr unsigned kGroup = 8;
  for (unsigned i = 0; i < 4; ++i) {
    const unsigned row = sim::lane() / 4 + 8 * (i / 2);
    const unsigned column = 2 * (sim::lane() % 4) + i % 2;
    double products[kDepth];
    for (unsigned k = 0; k < kDepth; ++k) {
      const sim::Operands left = lanes[4 * (row % 8) + k % 8 / 2];
      const sim::Operands right = lanes[4 * column + k % 8 / 2];
      products[k] = sim::bf16_half(left.a[row / 8 + 2 * (k / 8)], k % 2) * sim::bf16_half(right.b[k / 8], k % 2);
    }
    for (unsigned k = 0; k < kDepth; k += kGroup) d[i] = sim::block_sum(d[i], products + k, kGroup);
  }
}

inline void mma_bf16_first(float (&d)[4], const std::uint32_t (&a)[4], std::uint32_t b0, std::uint32_t b1,
                           const Location& at = Location::current()) {
  for (float& sum : d) sum = 0.0f;
  mma_bf16(d, a, b0, b1, at);
}

inline void mma_tf32(float (&d)[4], const std::uint32_t (&a)[4], std::uint32_t b0, std::uint32_t b1,
                     const Location& at = Location::current()) {
  const sim::Operands mine = {{a[0], a[1], a[2], a[3]}, {b0, b1}};
  const sim::Exchange<sim::Operands> lanes = sim::whole_warp(mine, "mma.m16n8k8", at);
  constexpr unsigned kDepth = 8;
  constexpr unsigned kGroup = 4;
  for (unsigned i = 0; i < 4; ++i) {
    const unsigned row = sim::lane() / 4 + 8 * (i / 2);
    const unsigned column = 2 * (sim::lane() % 4) + i % 2;
    double products[kDepth];
    for (unsigned k = 0; k < kDepth; ++k) {
      const sim::Operands left = lanes[4 * (row % 8) + k % 4];
      const sim::Operands right = lanes[4 * column + k % 4];
      products[k] = sim::tf32_value(left.a[row / 8 + 2 * (k / 4)]) * sim::tf32_value(right.b[k / 4]);
    }
    for (unsigned k = 0; k < kDepth; k += kGroup) d[i] = sim::block_sum(d[i], products + k, kGroup);
  }
}

inline void ldmatrix_x2(std::uint32_t (&r)[2], const void* row, const Location& at = Location::current()) {
  sim::load_matrices<2, false>(r, row, "ldmatrix.x2", at);
}
inline void ldmatrix_x2_trans(std::uint32_t (&r)[2], const void* row, const Location& at = Location::current()) {
  sim::load_matrices<2, true>(r, row, "ldmatrix.x2.trans", at);
}
inline void ldmatrix_x4(std::uint32_t (&r)[4], const void* row, const Location& at = Location::current()) {
  sim::load_matrices<4, false>(r, row, "ldmatrix.x4", at);
}
inline void ldmatrix_x4_trans(std::uint32_t (&r)[4], const void* row, const Location& at = Location::current()) {
  sim::load_matrices<4, true>(r, row, "ldmatrix.x4.trans", at);
}

inline uint4 load_16(const uint4* global) { return *global; }

inline void cp_async_16(void* shared, const void* global, const Location& at = Location::current()) {
  sim::issue_copy(shared, global, true, at);
}
template <int kBytes>
inline void cp_async_16_at(void* shared, const void* global, const Location& at = Location::current()) {
  cp_async_16(static_cast<char*>(shared) + kBytes, static_cast<const char*>(global) + kBytes, at);
}

inline void cp_async_16_or_zero(void* shared, const void* global, bool valid,
                                const Location& at = Location::current()) {
  sim::issue_copy(shared, global, valid, at);
}
inline void prefetch(const void*) {}
inline int fresh(int x) { return x; }
inline void cp_async_commit() {
  sim::Thread& me = sim::running_block()->current();
  me.copy_groups.push_back(std::move(me.open_copies));
  me.open_copies.clear();
}
template <int N>
void cp_async_wait() {
  sim::Thread& me = sim::running_block()->current();
  for (; me.copy_groups.size() > N; me.copy_groups.pop_front()) {
    for (const sim::AsyncCopy& copy : me.copy_groups.front()) {
      if (copy.from == nullptr) {
        std::memset(copy.to, 0, 16);
      } else {
        std::memcpy(copy.to, copy.from, 16);
      }
    }
  }
}

inline int thread_index() { return static_cast<int>(threadIdx.x); }

inline float exp2_approx(float x) {
  return sim::flush_subnormal(static_cast<float>(std::exp2(static_cast<double>(sim::flush_subnormal(x)))));
}
inline float rcp_approx(float x) { return sim::flush_subnormal(1.0f / sim::flush_subnormal(x)); }

// Rounded to 11 bits: as inaccurate as the ISA allows.
inline float tanh_approx(float x) {
  const float exact = static_cast<float>(std::tanh(static_cast<double>(x)));
  if (!std::isfinite(exact)) return exact;
  constexpr std::uint32_t kLost = 13;
  const std::uint32_t bits = std::bit_cast<std::uint32_t>(exact);
  return std::bit_cast<float>((bits + (1u << (kLost - 1))) >> kLost << kLost);
}

inline std::uint32_t pack_bf16(float lo, float hi) {
  return std::bit_cast<std::uint16_t>(__float2bfloat16_rn(lo)) |
         static_cast<std::uint32_t>(std::bit_cast<std::uint16_t>(__float2bfloat16_rn(hi))) << 16;
}

inline std::uint32_t round_tf32(float x) {
  const std::uint32_t bits = std::bit_cast<std::uint32_t>(x);
  return std::isfinite(x) ? (bits + 0x1000u) & 0xFFFFE000u : bits;
}

}  // namespace rohydr::ptx

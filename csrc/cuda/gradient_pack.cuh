// SPDX-License-Identifier: MIT
// The condition as attention and its way back read it: in both orders, with the numbers of the keys that exist.
#pragma once

#include "gradient_layout.h"
#include "pack.cuh"

namespace rohydr {

struct GradientConditionJob {
  GradientSizes sizes;
  std::int64_t samples;
  const void* cond_kv;           // (L, 2, B, S, W)
  const std::uint8_t* key_mask;  // (B, S), or null
  uint4* out;                    // (B, L, parts, pieces)
  int* counts;                   // (B)
  int* list;                     // (B, S) the numbers of the keys that exist, in front
};

// Block (b, layer), with room for `keys` numbers and one more.
template <class E>
__global__ void pack_gradient_condition_kernel(const __grid_constant__ GradientConditionJob job) {
  ROHYDR_SHARED(memory);
  int* const list = reinterpret_cast<int*>(memory);
  const GradientSizes& sizes = job.sizes;
  const std::int64_t b = blockIdx.x;
  const int layer = static_cast<int>(blockIdx.y), thread = static_cast<int>(threadIdx.x), keys = sizes.keys;
  if (thread < 32) {
    const int found = list_true(job.key_mask == nullptr ? nullptr : job.key_mask + b * keys, keys, list);
    if (thread == 0) list[keys] = found;
  }
  __syncthreads();  // the list is whole
  const int count = list[keys];
  if (layer == 0) {
    if (thread == 0) job.counts[b] = count;
    for (int i = thread; i < count; i += static_cast<int>(blockDim.x)) job.list[b * keys + i] = list[i];
  }
  if (layer >= sizes.layers) return;  // of a network without blocks
  const std::int64_t size = sizes.condition_part();
  for (int part = 0; part < sizes.condition_parts(); ++part) {
    const int source = part == 0 || part == 3 ? 0 : 1;  // K or V
    const E* const from = static_cast<const E*>(job.cond_kv) +
                          ((static_cast<std::int64_t>(layer) * 2 + source) * job.samples + b) * keys * sizes.width;
    uint4* const to = job.out + ((b * sizes.layers + layer) * sizes.condition_parts() + part) * size;
    const auto at = [&](int key, int channel) {
      return key < count ? as_float(from[static_cast<std::int64_t>(list[key]) * sizes.width + channel]) : 0.0f;
    };
    for (int i = thread; i < size; i += static_cast<int>(blockDim.x)) {
      if (sizeof(E) == 4) {
        const int key = i / (sizes.width / 4), channel = i % (sizes.width / 4) * 4;
        to[i] = make_uint4(__float_as_uint(at(key, channel)), __float_as_uint(at(key, channel + 1)),
                           __float_as_uint(at(key, channel + 2)), __float_as_uint(at(key, channel + 3)));
        continue;
      }
      const int channel_tiles = sizes.width / kTile, tile = i / 32, key = tile / channel_tiles * kTile;
      const int channel = tile % channel_tiles * kTile;
      to[i] = piece_of(Bf16{}, i % 32, [&](int column, int depth) {
        return part == 0 || part == 2 ? at(key + column, channel + depth) : at(key + depth, channel + column);
      });
    }
  }
}

}  // namespace rohydr

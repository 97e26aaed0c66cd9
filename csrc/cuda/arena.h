// SPDX-License-Identifier: MIT
// The scratch memory of one modality: packed weights, biases, keys and values of the condition, and how many there are.
#pragma once

#include <cstdint>

#include "rohydr/philox.h"  // RH_HOST_DEVICE

namespace rohydr {

RH_HOST_DEVICE constexpr int round_up_to(int value, int step) { return (value + step - 1) / step * step; }

// Matrices in order of use: in, then of each block qkv, self_out, q, cross_out, fc1, fc2, then out. Columns, depth, the
// MLP's hidden width and channels are rounded up to 16, with zeros. The columns of out are shuffled: a tile holds
// the prediction of 8 channels and then v of the same, so that one thread has both.
struct ArenaLayout {
  int width, hidden, channels, layers, element_size;  // hidden rounded up

  RH_HOST_DEVICE ArenaLayout(int width, int hidden, int channels, int layers, int element_size)
      : width(width),
        hidden(round_up_to(hidden, 16)),
        channels(channels),
        layers(layers),
        element_size(element_size) {}

  RH_HOST_DEVICE int state_depth() const { return round_up_to(channels, 16); }
  RH_HOST_DEVICE int out_columns() const { return 16 * ((channels + 7) / 8); }

  // In pieces of 16 bytes.
  RH_HOST_DEVICE int pieces(int columns, int depth) const { return columns / 16 * depth * element_size; }
  RH_HOST_DEVICE int in_pieces() const { return pieces(width, state_depth()); }
  RH_HOST_DEVICE int block_pieces() const { return 6 * pieces(width, width) + 2 * pieces(width, hidden); }
  RH_HOST_DEVICE int out_pieces() const { return pieces(out_columns(), width); }
  RH_HOST_DEVICE std::int64_t all_pieces() const {
    return in_pieces() + static_cast<std::int64_t>(layers) * block_pieces() + out_pieces();
  }

  RH_HOST_DEVICE int block_biases() const { return 7 * width + hidden; }
  RH_HOST_DEVICE int all_biases() const { return width + layers * block_biases() + out_columns(); }

  // Of the condition: pieces of one sample and layer, keys and values.
  RH_HOST_DEVICE int key_tiles(int keys) const { return (keys + 15) / 16; }
  RH_HOST_DEVICE std::int64_t condition_pieces(int keys) const {
    return static_cast<std::int64_t>(2 * key_tiles(keys)) * 16 * width * element_size / 16;
  }
};

// Tiles of keys, and of values, that are read at a time, whether they are followed by others or not.
constexpr int kReadAhead = 2;

// Byte offsets in the scratch memory.
struct ScratchLayout {
  std::int64_t weights, biases, condition, counts, bytes;

  // `pieces`: 16 bytes each, of the weights, and of one sample's condition.
  RH_HOST_DEVICE ScratchLayout(std::int64_t weight_pieces, std::int64_t bias_count, std::int64_t condition_pieces,
                               std::int64_t samples) {
    const auto aligned = [](std::int64_t bytes) { return (bytes + 255) / 256 * 256; };
    weights = 0;
    biases = aligned(16 * weight_pieces);
    condition = biases + aligned(4 * bias_count);
    counts = condition + aligned(16 * samples * condition_pieces);
    bytes = counts + aligned(4 * samples);
  }
  RH_HOST_DEVICE ScratchLayout(const ArenaLayout& arena, std::int64_t samples, int keys)
      : ScratchLayout(arena.all_pieces(), arena.all_biases(), arena.layers * arena.condition_pieces(keys), samples) {}
};

}  // namespace rohydr

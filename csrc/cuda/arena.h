// SPDX-License-Identifier: MIT
// The scratch memory of one modality: packed weights, biases, keys and values of the condition, and how many there are.
#pragma once

#include <cstdint>

#if defined(__CUDACC__)
#define ROHYDR_BOTH __host__ __device__
#else
#define ROHYDR_BOTH
#endif

namespace rohydr {

ROHYDR_BOTH constexpr int round_up_to(int value, int step) { return (value + step - 1) / step * step; }

// Matrices in order of use: in, then of each block qkv, self_out, q, cross_out, fc1, fc2, then out. Columns, depth, the
// MLP's hidden width and channels are rounded up to 16, with zeros. The columns of out are shuffled: a tile holds
// the prediction of 8 channels and then v of the same, so that one thread has both.
struct ArenaLayout {
  int width, hidden, channels, layers, element_size;  // hidden rounded up

  ROHYDR_BOTH ArenaLayout(int width, int hidden, int channels, int layers, int element_size)
      : width(width),
        hidden(round_up_to(hidden, 16)),
        channels(channels),
        layers(layers),
        element_size(element_size) {}

  ROHYDR_BOTH int state_depth() const { return round_up_to(channels, 16); }
  ROHYDR_BOTH int out_columns() const { return 16 * ((channels + 7) / 8); }

  // In pieces of 16 bytes.
  ROHYDR_BOTH int pieces(int columns, int depth) const { return columns / 16 * depth * element_size; }
  ROHYDR_BOTH int in_pieces() const { return pieces(width, state_depth()); }
  ROHYDR_BOTH int block_pieces() const { return 6 * pieces(width, width) + 2 * pieces(width, hidden); }
  ROHYDR_BOTH int out_pieces() const { return pieces(out_columns(), width); }
  ROHYDR_BOTH std::int64_t all_pieces() const {
    return in_pieces() + static_cast<std::int64_t>(layers) * block_pieces() + out_pieces();
  }

  ROHYDR_BOTH int block_biases() const { return 7 * width + hidden; }
  ROHYDR_BOTH int all_biases() const { return width + layers * block_biases() + out_columns(); }

  // Of the condition: pieces of one sample and layer, keys and values.
  ROHYDR_BOTH int key_tiles(int keys) const { return (keys + 15) / 16; }
  ROHYDR_BOTH std::int64_t condition_pieces(int keys) const {
    return static_cast<std::int64_t>(2 * key_tiles(keys)) * 16 * width * element_size / 16;
  }
};

// Byte offsets in the scratch memory.
struct ScratchLayout {
  std::int64_t weights, biases, condition, counts, bytes;

  ROHYDR_BOTH ScratchLayout(const ArenaLayout& arena, std::int64_t samples, int keys) {
    const auto aligned = [](std::int64_t bytes) { return (bytes + 255) / 256 * 256; };
    weights = 0;
    biases = aligned(16 * arena.all_pieces());
    condition = biases + aligned(4 * static_cast<std::int64_t>(arena.all_biases()));
    counts = condition + aligned(16 * samples * arena.layers * arena.condition_pieces(keys));
    bytes = counts + aligned(4 * samples);
  }
};

}  // namespace rohydr

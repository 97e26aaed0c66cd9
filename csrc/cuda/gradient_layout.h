// SPDX-License-Identifier: MIT
// Where the way back keeps what: packed matrices, what the forward leaves for it, and the operands of weight gradients.
#pragma once

#include <cstdint>

#include "arena.h"

namespace rohydr {

constexpr int kForwardWarps = 8, kBackwardWarps = 16;  // of blocks of the forward, and of the way back
constexpr int kRowsOfPair = 32;
constexpr int kBlockMatrices = 6;  // qkv, self_out, q, cross_out, fc1, fc2: those of a block, in order of use

// A denoiser with its embedding and its last layer, or, with channels = 0, its blocks alone.
struct GradientSizes {
  int width, hidden, channels, layers, element_size;
  int heads, tokens, keys;

  RH_HOST_DEVICE int padded_hidden() const { return round_up_to(hidden, 16); }
  RH_HOST_DEVICE int state_depth() const { return round_up_to(channels, 16); }
  RH_HOST_DEVICE int out_columns() const { return 16 * ((channels + 7) / 8); }
  RH_HOST_DEVICE int rows() const { return round_up_to(tokens < 1 ? 1 : tokens, kRowsOfPair); }
  RH_HOST_DEVICE int key_tiles() const { return (keys + 15) / 16; }

  RH_HOST_DEVICE int pieces(int columns, int depth) const { return columns / 16 * depth * element_size; }
  RH_HOST_DEVICE int in_pieces() const { return pieces(width, state_depth()); }
  RH_HOST_DEVICE int block_pieces() const { return 6 * pieces(width, width) + 2 * pieces(width, padded_hidden()); }
  RH_HOST_DEVICE int out_pieces() const { return pieces(out_columns(), width); }
  RH_HOST_DEVICE std::int64_t all_pieces() const {
    return in_pieces() + static_cast<std::int64_t>(layers) * block_pieces() + out_pieces();
  }
  RH_HOST_DEVICE int in_biases() const { return channels > 0 ? width : 0; }
  RH_HOST_DEVICE int block_biases() const { return 7 * width + padded_hidden(); }
  RH_HOST_DEVICE int all_biases() const { return in_biases() + layers * block_biases() + out_columns(); }

  // Columns and depth of matrix `number` of a block, padded.
  RH_HOST_DEVICE int columns_of(int number) const {
    return number == 0 ? 3 * width : number == 4 ? padded_hidden() : width;
  }
  RH_HOST_DEVICE int depth_of(int number) const { return number == 5 ? padded_hidden() : width; }
  // Pieces and biases before it.
  RH_HOST_DEVICE std::int64_t piece_of_matrix(int layer, int number) const {
    const int square = pieces(width, width), wide = pieces(width, padded_hidden());
    const int before = number == 0 ? 0 : number <= 4 ? (number + 2) * square : 6 * square + wide;
    return in_pieces() + static_cast<std::int64_t>(layer) * block_pieces() + before;
  }
  RH_HOST_DEVICE int bias_of_matrix(int layer, int number) const {
    const int before = number == 0 ? 0 : number <= 4 ? (number + 2) * width : 6 * width + padded_hidden();
    return in_biases() + layer * block_biases() + before;
  }
  RH_HOST_DEVICE std::int64_t out_piece() const { return all_pieces() - out_pieces(); }
  RH_HOST_DEVICE int out_bias() const { return all_biases() - out_columns(); }

  // Parts of a packed condition of one sample and layer, each of so many pieces: K as rows and V as columns, which
  // attention reads; then V as rows and K as columns in bfloat16. In float32 K and V as rows serve for all.
  RH_HOST_DEVICE std::int64_t condition_part() const {
    return static_cast<std::int64_t>(key_tiles()) * 16 * width * element_size / 16;
  }
  RH_HOST_DEVICE int condition_parts() const { return element_size == 2 ? 4 : 2; }

  // Numbers of the gradients of one sample's modulation at one step: blocks (L, 9, W), then the last layer's (2, W).
  RH_HOST_DEVICE int modulation_size() const { return (9 * layers + (channels > 0 ? 2 : 0)) * width; }

  // All weights and biases, in order of use, as their gradients lie.
  RH_HOST_DEVICE std::int64_t weight_count() const {
    const std::int64_t w = width, h = hidden, c = channels;
    return (c > 0 ? w * c + w + 2 * c * w + 2 * c : 0) + layers * (6 * w * w + 2 * w * h + 7 * w + h);
  }
};

// The operands of weight gradients, of all rows (steps of a chunk, samples, rows): a matrix for each, one after the
// other. Offsets in columns. X is what a product read, Y the gradient of what it gave.
struct StreamLayout {
  GradientSizes sizes;

  RH_HOST_DEVICE std::int64_t layer(int layer) const {
    return sizes.state_depth() + in_y() + static_cast<std::int64_t>(layer) * layer_columns();
  }
  RH_HOST_DEVICE int layer_columns() const { return 12 * sizes.width + 2 * sizes.padded_hidden(); }
  RH_HOST_DEVICE int in_y() const { return sizes.channels > 0 ? sizes.width : 0; }
  RH_HOST_DEVICE std::int64_t x_in() const { return 0; }
  RH_HOST_DEVICE std::int64_t y_in() const { return sizes.state_depth(); }
  // X then Y of each matrix of a block: n1, qkv (3 W); a1, p1; n2, q2; a2, p2; n3, u (H); m (H), p3.
  RH_HOST_DEVICE std::int64_t x(int of, int number) const {
    const int before = number == 0 ? 0 : number <= 4 ? 4 + 2 * (number - 1) : 11;
    return layer(of) + before * sizes.width + (number == 5 ? sizes.padded_hidden() : 0);
  }
  RH_HOST_DEVICE std::int64_t y(int of, int number) const {
    return x(of, number) + (number == 5 ? sizes.padded_hidden() : sizes.width);
  }
  RH_HOST_DEVICE std::int64_t x_out() const { return layer(sizes.layers); }
  RH_HOST_DEVICE std::int64_t y_out() const { return x_out() + (sizes.channels > 0 ? sizes.width : 0); }
  RH_HOST_DEVICE std::int64_t columns() const { return y_out() + sizes.out_columns(); }
};

// What the way back reads of one step of one sample; in bytes. In float32 LayerNorm's results without affine, of each
// part of each block and of the last layer, and 1 / deviation; of each row and head of both attentions two numbers, see
// AttentionSums; and how the result depends on the last layer's v. In E the results of each part before its gate,
// Q, K and V, Q of the condition with the gradient of its attention's result, and GELU's slopes in the order of tiles.
struct TapeLayout {
  int of_normal, of_inverse, of_sums, of_part, of_layer;  // bytes of one each; of_part: rows of W columns in E
  int inverses, all_sums, noises, all_operands, all;      // where they start, and the end

  TapeLayout() = default;
  RH_HOST_DEVICE explicit TapeLayout(const GradientSizes& s)
      : of_normal(4 * s.rows() * s.width),
        of_inverse(4 * s.rows()),
        of_sums(8 * s.rows() * s.heads),
        of_part(s.rows() * s.width * s.element_size),
        of_layer(8 * of_part + s.rows() * s.padded_hidden() * s.element_size),
        inverses((3 * s.layers + 1) * of_normal),
        all_sums(inverses + (3 * s.layers + 1) * of_inverse),
        noises(all_sums + 2 * s.layers * of_sums),
        all_operands(noises + 4 * s.rows() * s.channels),
        all((all_operands + s.layers * of_layer + 255) / 256 * 256) {}

  RH_HOST_DEVICE int normal(int layer, int part) const { return (3 * layer + part) * of_normal; }
  RH_HOST_DEVICE int inverse(int layer, int part) const { return inverses + (3 * layer + part) * of_inverse; }
  RH_HOST_DEVICE int sums(int layer, bool cross) const { return all_sums + (2 * layer + cross) * of_sums; }
  RH_HOST_DEVICE int noise() const { return noises; }  // (rows, C)
  RH_HOST_DEVICE int operands(int layer) const { return all_operands + layer * of_layer; }
  RH_HOST_DEVICE int part(int layer, int part) const { return operands(layer) + part * of_part; }
  RH_HOST_DEVICE int qkv(int layer) const { return part(layer, 3); }
  RH_HOST_DEVICE int query(int layer) const { return part(layer, 6); }
  RH_HOST_DEVICE int of_cross(int layer) const { return part(layer, 7); }
  RH_HOST_DEVICE int gelu_slope(int layer) const { return part(layer, 8); }
};

// Shared memory of a block: offsets in bytes, multiples of 128, and strides of rows. What is behind `forward_bytes` is
// for the way back alone.
struct GradientShared {
  int rows, wide_stride, row_stride, stream_stride;
  int narrow, stream, tokens, forward_bytes, gradient, sums, attention, state, bytes;

  GradientShared() = default;
  RH_HOST_DEVICE explicit GradientShared(const GradientSizes& s)
      : rows(s.rows()),
        wide_stride((s.padded_hidden() > 3 * s.width ? s.padded_hidden() : 3 * s.width) + pad(s)),
        row_stride(s.width + pad(s)),
        stream_stride(s.width + 8),  // floats
        narrow(rows * wide_stride * s.element_size),
        stream(narrow + rows * row_stride * s.element_size),
        tokens(stream + rows * stream_stride * 4),
        forward_bytes(tokens + rows * 4),
        gradient(forward_bytes),
        sums(gradient + rows * stream_stride * 4),
        attention(sums + 3 * kBackwardWarps * s.width * 4),
        state(attention + 2 * rows * s.heads * 4),
        bytes(state + rows * s.channels * 4) {}

  static RH_HOST_DEVICE int pad(const GradientSizes& s) { return s.element_size == 2 ? 8 : 4; }
};

// Samples that are taken at once, steps that are computed again and kept at once, and in how many parts their weight
// gradients are summed; all follow from the sizes alone, and with them the order of every sum.
struct GradientPlan {
  static constexpr std::int64_t kGroup = 132, kBytes = std::int64_t{512} << 20;  // of a chunk, of which there are two
  static constexpr int kChunks = 5;  // at least: what the first of them waits for is the tape of all its steps
  std::int64_t group;
  int steps, parts;

  RH_HOST_DEVICE GradientPlan(const GradientSizes& s, std::int64_t samples, int all_steps) {
    group = samples < kGroup ? samples : kGroup;
    const std::int64_t streams = s.rows() * StreamLayout{s}.columns() * s.element_size;
    const std::int64_t of_step = group * (streams + static_cast<std::int64_t>(TapeLayout(s).all)) + 1;
    const std::int64_t fit = kBytes / of_step, most = (all_steps + kChunks - 1) / kChunks;
    steps = static_cast<int>(fit < 1 || most < 1 ? 1 : fit < most ? fit : most);
    const std::int64_t some = (steps * group * s.rows() / kRowsOfPair + 3) / 4;
    parts = some < 1 ? 1 : some < 8 ? static_cast<int>(some) : 8;
  }
};

// The scratch memory of a call, in bytes; parts start at multiples of 256.
struct GradientScratch {
  static constexpr std::int64_t kBeyond = 16 * 512;  // that WeightPieces may fetch behind the last matrix
  std::int64_t weights, biases, transposed, condition, key_counts, key_list, row_counts, tape, streams;
  std::int64_t second_tape, second_streams, modulation, weight_parts, bytes;

  // `samples` of a group, `steps` of a chunk; `all` samples of the call; parts of the weight gradients; whether there
  // are two chunks at a time.
  RH_HOST_DEVICE GradientScratch(const GradientSizes& s, std::int64_t all, std::int64_t samples, std::int64_t steps,
                                 int parts, bool two) {
    const auto after = [](std::int64_t start, std::int64_t size) { return start + (size + 255) / 256 * 256; };
    weights = 0;
    biases = after(weights, 16 * s.all_pieces() + kBeyond);
    transposed = after(biases, 4 * static_cast<std::int64_t>(s.all_biases()));
    condition = after(transposed, 16 * s.all_pieces() + kBeyond);
    key_counts = after(condition, 16 * all * s.layers * s.condition_parts() * s.condition_part());
    key_list = after(key_counts, 4 * all);
    row_counts = after(key_list, 4 * all * s.keys);
    tape = after(row_counts, 4 * samples);
    streams = after(tape, steps * samples * static_cast<std::int64_t>(TapeLayout(s).all));
    second_tape = after(streams, steps * samples * s.rows() * StreamLayout{s}.columns() * s.element_size);
    second_streams = second_tape + (two ? streams - tape : 0);
    modulation = second_streams + (two ? second_tape - streams : 0);
    weight_parts = after(modulation, 4 * steps * samples * s.modulation_size());
    bytes = after(weight_parts, 4 * parts * s.weight_count());
  }
};

}  // namespace rohydr

// SPDX-License-Identifier: MIT
// The kernels of one instruction set as a table of functions: what its file exports.
#pragma once

#include "diffusion_loss.h"
#include "linear_backward.h"
#include "loop_backward.h"
#include "weights.h"

namespace rohydr {
namespace {

template <class T>
Index attention_workspace(Index rows, Index width) {
  constexpr Index N = kLanes<T>;
  const Index lanes = round_up(rows, larger(N, 8)) + 2 * N;
  return (rows + kRowSlack) * round_up(width, 8) * 2 + 2 * round_up(width, 8) * lanes + width + 4 * N;
}

// Rows first..first+rows of one sample.
template <class T>
Index cross_attention(const AttentionCall<T>& call, const Member& member, Index first, Index rows, T* memory) {
  constexpr Index N = kLanes<T>;
  const Index width = call.width, stride = round_up(width, 8), lanes = round_up(rows, larger(N, 8)) + 2 * N;
  const Index size = width / call.heads;
  T* const line_rows = memory;
  T* const q_lines = line_rows + (rows + kRowSlack) * stride;
  T* const attended = q_lines + stride * lanes;
  T* const largest = attended + stride * lanes;
  const T scale = static_cast<T>(1.44269504088896340736 / __builtin_sqrt(static_cast<double>(size)));
  const T* const q = call.q + (member.sample * call.tokens + first) * width;
  for (Index row = 0; row < rows; ++row) {
    for (Index c = 0; c < width; ++c) line_rows[row * stride + c] = q[row * width + c] * scale;
  }
  transpose(line_rows, stride, rows, width, q_lines, lanes);
  const T* const keys = call.k + member.sample * call.keys * width;
  const T* const values = call.v + member.sample * call.keys * width;
  largest_magnitudes(keys, width, member.keys, member.key_count, width, largest);
  const KeysValues<T> kv{keys, values, width, member.keys, member.key_count, largest};
  const Index hits = attend_heads(q_lines, lanes, rows, kv, size, call.heads, attended, lanes);
  T* const out = call.out + (member.sample * call.tokens + first) * width;
  for (Index row = 0; row < rows; ++row) {
    for (Index c = 0; c < width; ++c) out[row * width + c] = attended[c * lanes + row];
  }
  return hits;
}

// As many independent chains as accumulators of the micro-kernel: enough to hide the latency of the unit.
template <class T>
__attribute__((noinline)) double fma_peak(Index iterations) {
  constexpr int N = kLanes<T>;
  constexpr int kChains = RH_TILE_ROWS * RH_TILE_VECTORS > 20 ? 20 : RH_TILE_ROWS * RH_TILE_VECTORS;
  Vector<T, N> chain[kChains];
  for (int i = 0; i < kChains; ++i) chain[i] = broadcast<T, N>(T(0.1) * T(i));
  Vector<T, N> factor = broadcast<T, N>(T(0.9999)), addend = broadcast<T, N>(T(1e-4));
  asm volatile("" : "+m"(factor), "+m"(addend));  // not known to the compiler
  for (Index it = 0; it < iterations; ++it) {
#pragma GCC unroll 20
    for (int i = 0; i < kChains; ++i) chain[i] = multiply_add<T, N>(chain[i], factor, addend);
  }
  Vector<T, N> total{};
  for (int i = 0; i < kChains; ++i) total = total + chain[i];
  volatile T kept = total[0];
  (void)kept;
  return 2.0 * N * kChains * static_cast<double>(iterations);
}

template <class T>
constexpr Kernels<T> kTable{kLanes<T>,          RH_TILE_VECTORS,        workspace<T>,       reverse_loop<T>,
                            denoiser<T>,       denoiser_block<T>,      attention_workspace<T>, cross_attention<T>,
                            fma_peak<T>,       kept_size<T>,           backward_workspace<T>,  reverse_loop_backward<T>,
                            denoiser_backward<T>, denoiser_block_backward<T>, loss_workspace<T>, diffusion_loss<T>,
                            linears_workspace<T>, linears<T>, linear_weight_gradient<T>, linear_bias_gradient<T>,
                            linear_input_gradient<T>, silu_and_slope<T>,     transpose_within<T>,   add_and_clear<T>};

}  // namespace
}  // namespace rohydr

// SPDX-License-Identifier: MIT
// The memory of a team, and what a block leaves in it, or in memory of the caller, for the way back.
#pragma once

#include "../kernels.h"
#include "simd.h"

namespace rohydr {
namespace {

constexpr Index kRowSlack = 8;  // rows that `transpose` may touch beyond the last one

// What a block leaves for the way back. Without one, the arrays are those of the workspace, used again by each block.
template <class T>
struct Tape {
  T* h[4];           // (rows, stride) the residual stream before each of the three parts, and after the last
  T* qkv;            // (rows, qkv_stride)
  T* cross_q;        // (width, lanes)
  T* attended[2];    // (width, lanes) of self- and cross-attention
  T* norms[2];       // (2 heads, lanes), or null; see attention.h
  T* before_gelu;    // (rows, hidden_stride), or null
  T* branch[3];      // (rows, stride) what each part adds before its gate, or null
};

// Where the kept part of a group's tapes lies: for each step and layer h[0], the attended of both attentions and their
// norms, and the last branch; then, for each step, the last h[3]. Everything else is a product away.
template <class T>
struct KeptLayout {
  Index rows_size, lines_size, norms_size, layer_size, step_size;

  template <class Memory>
  KeptLayout(const DenoiserView<T>& denoiser, const Group& group, const Memory& m) {
    constexpr Index kLine = 64 / static_cast<Index>(sizeof(T));
    rows_size = round_up(group.rows * m.stride, kLine);
    lines_size = round_up(round_up(denoiser.width, 8) * m.lanes, kLine);
    norms_size = round_up(2 * denoiser.heads * m.lanes + kLanes<T>, kLine);
    layer_size = 2 * (rows_size + lines_size + norms_size);
    step_size = denoiser.layers * layer_size + rows_size + kLine;
  }

  // The tape of a layer; `scratch` gives what is not kept.
  Tape<T> tape(T* step, Index layer, const Tape<T>& scratch) const {
    Tape<T> result = scratch;
    T* place = step + layer * layer_size;
    const auto take = [&](Index size) {
      T* const taken = place;
      place += size;
      return taken;
    };
    result.h[0] = take(rows_size);
    for (int i = 0; i < 2; ++i) {
      result.attended[i] = take(lines_size);
      result.norms[i] = take(norms_size);
    }
    result.branch[2] = take(rows_size);
    result.h[3] = place;  // the next layer's h[0], or the last place of the step
    return result;
  }
};

// The team's memory: one array for each purpose, rows of all members.
template <class T>
struct Memory {
  Index stride;         // of width-wide rows
  Index qkv_stride;
  Index hidden_stride;
  Index channel_stride;
  Index lanes;          // of q_lines and attended
  T* x_t;               // (rows, channel_stride)
  T* history;           // (rows, channel_stride) of a sampler that has one
  T* h;                 // (rows, stride) the residual stream
  T* normal;            // (rows, stride) modulated LayerNorm
  T* qkv[2];            // (rows, qkv_stride)
  T* q;                 // (rows, stride) of cross-attention: qkv may still be read by others then
  T* hidden;            // (rows, hidden_stride)
  T* output;            // (rows, out stride) prediction and v
  Index output_stride;
  Index* gate_offset;   // (rows) where a row's modulation starts, see Modulation
  T* cross_largest;     // (L, members, width)
  T* q_lines;           // (width, lanes) of this thread
  T* attended;          // (width, lanes) of this thread
  T* self_largest;      // (width) of this thread
  float* noise;         // of this thread
};

// Rows that are read down their columns, one line of the cache each, must not all fall into the same few sets of it.
template <class T>
Index spread_stride(Index columns) {
  const Index stride = round_up(columns, kLanes<T>);
  return stride * static_cast<Index>(sizeof(T)) % 512 == 0 ? stride + kLanes<T> : stride;
}

template <class T>
Index carve(const DenoiserView<T>& denoiser, const Group& group, int team_size, int index, T* memory, Memory<T>& m) {
  constexpr Index N = kLanes<T>;
  const Index rows = group.rows + kRowSlack;
  const Index width = round_up(denoiser.width, 8);
  const Index hidden = denoiser.blocks[0].fc1.columns;
  m.stride = round_up(denoiser.width, N);
  m.qkv_stride = spread_stride<T>(3 * denoiser.width);
  m.hidden_stride = spread_stride<T>(hidden);
  m.channel_stride = round_up(denoiser.channels, N);
  m.output_stride = 2 * m.channel_stride;
  m.lanes = round_up(group.rows, larger(N, 8)) + N;  // so that vectors do not cross lines of the cache
  if (m.lanes % 64 == 0) m.lanes += N;  // lines that all fall into the same cache sets would evict each other
  Index used = 0;
  const auto take = [&](Index count) {
    T* const place = memory + used;
    used += round_up(count, 64 / static_cast<Index>(sizeof(T)));
    return place;
  };
  m.x_t = take(rows * m.channel_stride);
  m.h = take(rows * m.stride);
  m.normal = take(rows * m.stride);
  m.qkv[0] = take(rows * m.qkv_stride + N);
  m.qkv[1] = take(rows * m.qkv_stride + N);
  m.q = take(rows * m.stride);
  m.hidden = take(rows * m.hidden_stride);
  m.output = take(rows * m.output_stride + N);
  m.gate_offset = reinterpret_cast<Index*>(take(rows * static_cast<Index>(sizeof(Index) / sizeof(T))));
  m.cross_largest = take(denoiser.layers * group.member_count * denoiser.width);
  m.history = take(rows * m.channel_stride);
  for (int member = 0; member < team_size; ++member) {
    T* const q_lines = take(width * m.lanes);
    T* const attended = take(width * m.lanes);
    T* const self_largest = take(width + N);
    T* const noise = take(group.rows * denoiser.channels + 8 + N);
    if (member != index) continue;
    m.q_lines = q_lines;
    m.attended = attended;
    m.self_largest = self_largest;
    m.noise = reinterpret_cast<float*>(noise);
  }
  return used;
}

template <class T>
Index workspace(const DenoiserView<T>& denoiser, const Group& group, int team_size) {
  Memory<T> unused;
  return carve<T>(denoiser, group, team_size, 0, nullptr, unused);
}

}  // namespace
}  // namespace rohydr

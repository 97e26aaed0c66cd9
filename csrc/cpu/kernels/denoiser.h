// SPDX-License-Identifier: MIT
// The denoiser on the rows of a group.
//   x += g1 SelfAttention(mod(x)); x += g2 CrossAttention(mod(x), K, V of the condition); x += g3 MLP(mod(x))
// Members of a team own rows, multiples of 8, and need each other for the keys and values of self-attention only: one
// meeting a block, with two copies of these taken in turn. Nothing is allocated here.
#pragma once

#include "attention.h"
#include "gemm.h"
#include "rows.h"

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
};

// Where the kept part of a group's tapes lies: for each step and layer h[0], qkv, Q and the attended of both attentions
// and their norms; then, for each step, the last h[3].
template <class T>
struct KeptLayout {
  Index rows_size, qkv_size, lines_size, norms_size, layer_size, step_size;

  template <class Memory>
  KeptLayout(const DenoiserView<T>& denoiser, const Group& group, const Memory& m) {
    constexpr Index kLine = 64 / static_cast<Index>(sizeof(T));
    rows_size = round_up(group.rows * m.stride, kLine);
    qkv_size = round_up(group.rows * m.qkv_stride + kLanes<T>, kLine);
    lines_size = round_up(round_up(denoiser.width, 8) * m.lanes, kLine);
    norms_size = round_up(2 * denoiser.heads * m.lanes + kLanes<T>, kLine);
    layer_size = rows_size + qkv_size + 3 * lines_size + 2 * norms_size;
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
    result.qkv = take(qkv_size);
    result.cross_q = take(lines_size);
    for (int i = 0; i < 2; ++i) {
      result.attended[i] = take(lines_size);
      result.norms[i] = take(norms_size);
    }
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
  T* h;                 // (rows, stride) the residual stream
  T* normal;            // (rows, stride) modulated LayerNorm
  T* qkv[2];            // (rows, qkv_stride)
  T* q;                 // (rows, stride) of cross-attention: qkv may still be read by others then
  T* hidden;            // (rows, hidden_stride)
  T* output;            // (rows, out stride) prediction and v
  Index output_stride;
  T* cross_largest;     // (L, members, width)
  T* q_lines;           // (width, lanes) of this thread
  T* attended;          // (width, lanes) of this thread
  T* self_largest;      // (width) of this thread
  float* noise;         // of this thread
};

template <class T>
Index carve(const DenoiserView<T>& denoiser, const Group& group, int team_size, int index, T* memory, Memory<T>& m) {
  constexpr Index N = kLanes<T>;
  const Index rows = group.rows + kRowSlack;
  const Index width = round_up(denoiser.width, 8);
  const Index hidden = denoiser.blocks[0].fc1.columns;
  m.stride = round_up(denoiser.width, N);
  m.qkv_stride = round_up(3 * denoiser.width, N);
  m.hidden_stride = round_up(hidden, N);
  m.channel_stride = round_up(denoiser.channels, N);
  m.output_stride = 2 * m.channel_stride;
  m.lanes = round_up(group.rows, 8) + N;
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
  m.cross_largest = take(denoiser.layers * group.member_count * denoiser.width);
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

struct OwnRows {
  Index first, last;
  OwnRows(const Group& group, const Team& team)
      : first(boundary(group.rows, team.index, team.size)), last(boundary(group.rows, team.index + 1, team.size)) {}
  static Index boundary(Index rows, Index index, Index size) {
    return index == size ? rows : smaller(rows, (rows * index / size + 4) / 8 * 8);
  }
  Index count() const { return last - first; }
};

// Calls visit(member index, first, last) for the rows of each sample that this thread owns.
template <class Visit>
RH_INLINE void for_own_members(const Group& group, const OwnRows& own, const Visit& visit) {
  for (Index i = 0; i < group.member_count; ++i) {
    const Member& member = group.members[i];
    const Index first = larger(member.first_row, own.first);
    const Index last = smaller(member.first_row + member.rows, own.last);
    if (first < last) visit(i, first, last);
  }
}

// One step of all layers for the own rows of h; `meetings` counts the blocks so far, for the choice of the copy.
template <class T>
struct Network {
  const DenoiserView<T>& denoiser;
  const Condition<T>& condition;
  const Group& group;
  const Team& team;
  const Memory<T>& m;
  const OwnRows own;
  Index meetings = 0;
  Index hits = 0;

  T* rows_of(T* array, Index stride) const { return array + own.first * stride; }

  const T* keys_of(Index layer, Index sample) const {
    return condition.data + (2 * layer * condition.batch + sample) * condition.keys * denoiser.width;
  }

  // max |k| of the condition for every layer, shared out over the team; ends with a meeting.
  void prepare_condition() const {
    const Index pairs = denoiser.layers * group.member_count;
    for (Index pair = team.index; pair < pairs; pair += team.size) {
      const Member& member = group.members[pair % group.member_count];
      largest_magnitudes(keys_of(pair / group.member_count, member.sample), denoiser.width, member.keys,
                         member.key_count, denoiser.width, m.cross_largest + pair * denoiser.width);
    }
    team.meet(team.barrier);
  }

  void normalise(T* h, const T* shift, const T* scale) const {
    modulated_layer_norm(rows_of(h, m.stride), own.count(), denoiser.width, m.stride, shift, scale,
                         rows_of(m.normal, m.stride));
  }

  template <class Epilogue>
  void project(const PackedMatrix<T>& w, const Epilogue& epilogue) const {
    product(RowMajor<T>{rows_of(m.normal, m.stride), m.stride}, own.count(), w, epilogue);
  }

  void attend(Index first, Index last, const KeysValues<T>& whole, const T* q, T* attended, T* norms) {
    const Index size = denoiser.width / denoiser.heads;
    for (Index channel = 0; channel < denoiser.width; channel += size) {
      KeysValues<T> kv = whole;
      kv.keys += channel;
      kv.values += channel;
      kv.largest += channel;
      const Index start = channel * m.lanes + first - own.first;
      T* const head_norms = norms == nullptr ? nullptr : norms + 2 * (channel / size) * m.lanes + first - own.first;
      hits += head(q + start, m.lanes, last - first, kv, size, attended + start, m.lanes, head_norms, m.lanes);
    }
  }

  // The rows of `m.qkv[which]` or of a tape.
  KeysValues<T> self_keys(const T* qkv, const Member& member) const {
    const T* const keys = qkv + member.first_row * m.qkv_stride + denoiser.width;
    return {keys, keys + denoiser.width, m.qkv_stride, group.counting, member.rows, m.self_largest};
  }

  KeysValues<T> cross_keys(Index layer, Index i) const {
    const Member& member = group.members[i];
    const T* const keys = keys_of(layer, member.sample);
    const T* const values = keys + condition.batch * condition.keys * denoiser.width;
    const T* const largest = m.cross_largest + (layer * group.member_count + i) * denoiser.width;
    return {keys, values, denoiser.width, member.keys, member.key_count, largest};
  }

  // h[3] = the block of h[0].
  void block(Index layer, const T* modulation, const Tape<T>& tape) {
    const BlockView<T>& w = denoiser.blocks[layer];
    T* const own_qkv = rows_of(tape.qkv, m.qkv_stride);
    const auto row = [&](int i) { return modulation + i * m.stride; };
    const auto add = [&](int part, const T* gate) {
      return AddGated<T>{rows_of(tape.h[part], m.stride), rows_of(tape.h[part + 1], m.stride), m.stride, gate};
    };

    normalise(tape.h[0], row(0), row(1));
    project(w.qkv, Store<T>{own_qkv, m.qkv_stride});
    team.meet(team.barrier);
    transpose(own_qkv, m.qkv_stride, own.count(), denoiser.width, m.q_lines, m.lanes);
    for_own_members(group, own, [&](Index i, Index first, Index last) {
      const KeysValues<T> kv = self_keys(tape.qkv, group.members[i]);
      largest_magnitudes(kv.keys, kv.stride, kv.index, kv.count, denoiser.width, m.self_largest);
      attend(first, last, kv, m.q_lines, tape.attended[0], tape.norms[0]);
    });
    product(ChannelMajor<T>{tape.attended[0], m.lanes}, own.count(), w.self_out, add(0, row(2)));

    normalise(tape.h[1], row(3), row(4));
    project(w.q, Store<T>{rows_of(m.q, m.stride), m.stride});
    transpose(rows_of(m.q, m.stride), m.stride, own.count(), denoiser.width, tape.cross_q, m.lanes);
    for_own_members(group, own, [&](Index i, Index first, Index last) {
      attend(first, last, cross_keys(layer, i), tape.cross_q, tape.attended[1], tape.norms[1]);
    });
    product(ChannelMajor<T>{tape.attended[1], m.lanes}, own.count(), w.cross_out, add(1, row(5)));

    normalise(tape.h[2], row(6), row(7));
    project(w.fc1, StoreGelu<T>{rows_of(m.hidden, m.hidden_stride), m.hidden_stride, tape.before_gelu});
    product(RowMajor<T>{rows_of(m.hidden, m.hidden_stride), m.hidden_stride}, own.count(), w.fc2, add(2, row(8)));
  }

  // What a tape that keeps h[0], qkv, Q and the attended of a block leaves out: h[1], h[2] and before_gelu, in three
  // products, without any attention.
  void complete(Index layer, const T* modulation, const Tape<T>& tape) const {
    const BlockView<T>& w = denoiser.blocks[layer];
    const auto row = [&](int i) { return modulation + i * m.stride; };
    product(ChannelMajor<T>{tape.attended[0], m.lanes}, own.count(), w.self_out,
            AddGated<T>{tape.h[0], tape.h[1], m.stride, row(2)});
    product(ChannelMajor<T>{tape.attended[1], m.lanes}, own.count(), w.cross_out,
            AddGated<T>{tape.h[1], tape.h[2], m.stride, row(5)});
    normalise(tape.h[2], row(6), row(7));
    project(w.fc1, Store<T>{tape.before_gelu, m.hidden_stride});
  }

  // m.output from the last block's result.
  void finish(T* h, const T* final_modulation) const {
    normalise(h, final_modulation, final_modulation + m.stride);
    project(denoiser.out, Store<T>{rows_of(m.output, m.output_stride), m.output_stride});
  }

  // m.output from m.x_t, with the step's modulation, (L, 9, stride) and (2, stride). `tape_of(layer)` gives the arrays
  // of a block; what its h[3] is, the next one's h[0] must be.
  template <class TapeOf>
  void predict(const T* position, const T* block_modulation, const T* final_modulation, const TapeOf& tape_of) {
    Tape<T> tape = tape_of(Index{0});
    product(RowMajor<T>{rows_of(m.x_t, m.channel_stride), m.channel_stride}, own.count(), denoiser.in,
            StoreWithPosition<T>{rows_of(tape.h[0], m.stride), m.stride, position, m.stride, group.token + own.first});
    for (Index layer = 0; layer < denoiser.layers; ++layer) {
      if (layer > 0) tape = tape_of(layer);
      block(layer, block_modulation + layer * 9 * m.stride, tape);
    }
    finish(tape.h[3], final_modulation);
  }

  // The arrays of the workspace as a tape that the next block overwrites. K and V alternate: one meeting a block is
  // enough, since nobody can be two blocks ahead.
  Tape<T> overwritten() {
    T* const h = m.h;
    return {{h, h, h, h}, m.qkv[meetings++ % 2], m.q_lines, {m.attended, m.attended}, {nullptr, nullptr}, nullptr};
  }

  // Own rows from an array (B, tokens, columns) to rows `stride` apart, padded with 0, and back.
  void read(const T* array, Index tokens, Index columns, T* rows, Index row_stride) const {
    for_own_members(group, own, [&](Index i, Index first, Index last) {
      for (Index row = first; row < last; ++row) {
        const T* const from = array + (group.members[i].sample * tokens + group.token[row]) * columns;
        T* const to = rows + row * row_stride;
        for (Index c = 0; c < columns; ++c) to[c] = from[c];
        for (Index c = columns; c < row_stride; ++c) to[c] = T(0);
      }
    });
  }
  void write(const T* rows, Index row_stride, Index tokens, Index columns, T* array) const {
    for_own_members(group, own, [&](Index i, Index first, Index last) {
      for (Index row = first; row < last; ++row) {
        T* const to = array + (group.members[i].sample * tokens + group.token[row]) * columns;
        for (Index c = 0; c < columns; ++c) to[c] = rows[row * row_stride + c];
      }
    });
  }
};

// The network once: what training at random steps (Eq. 3) needs.
template <class T>
Index denoiser(const DenoiserCall<T>& call, const Group& group, const Team& team, T* memory) {
  Memory<T> m;
  carve(call.denoiser, group, team.size, team.index, memory, m);
  Network<T> net{call.denoiser, call.condition, group, team, m, OwnRows(group, team)};
  const Index table = call.per_sample ? group.members[0].sample : 0;
  net.prepare_condition();
  net.read(call.x, call.tokens, call.denoiser.channels, m.x_t, m.channel_stride);
  net.predict(call.position, call.block_modulation + table * call.denoiser.layers * 9 * m.stride,
              call.final_modulation + table * 2 * m.stride, [&](Index) { return net.overwritten(); });
  net.write(m.output, m.output_stride, call.tokens, 2 * call.denoiser.channels, call.out);
  return net.hits;
}

template <class T>
Index denoiser_block(const BlockCall<T>& call, const Group& group, const Team& team, T* memory) {
  Memory<T> m;
  carve(call.denoiser, group, team.size, team.index, memory, m);
  Network<T> net{call.denoiser, call.condition, group, team, m, OwnRows(group, team)};
  const Index table = call.per_sample ? group.members[0].sample : 0;
  net.prepare_condition();
  net.read(call.x, call.tokens, call.denoiser.width, m.h, m.stride);
  net.block(0, call.modulation + table * 9 * m.stride, net.overwritten());
  net.write(m.h, m.stride, call.tokens, call.denoiser.width, call.out);
  return net.hits;
}

}  // namespace
}  // namespace rohydr

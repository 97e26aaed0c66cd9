// SPDX-License-Identifier: MIT
// The denoiser on the rows of a group.
//   x += g1 SelfAttention(mod(x)); x += g2 CrossAttention(mod(x), K, V of the condition); x += g3 MLP(mod(x))
// Members of a team own rows, multiples of 8, and need each other for the keys and values of self-attention only: one
// meeting a block, with two copies of these taken in turn. Nothing is allocated here.
#pragma once

#include "few_queries.h"
#include "gemm.h"
#include "memory.h"
#include "rows.h"

namespace rohydr {
namespace {

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

// The tables of shift, scale and gate that a group reads: one for all samples, or one for each.
template <class T>
struct Modulation {
  const T* rows;        // (..., stride) from the first sample's on
  Index sample_stride;  // 0 for one table

  Modulation from(Index offset) const { return {rows + offset, sample_stride}; }
};

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

  const T* keys_of(Index layer, const Member& member) const {
    return condition.data + layer * condition.layer_size + member.key_row * condition.stride;
  }

  // max |k| of the condition for every layer, shared out over the team; ends with a meeting.
  void prepare_condition() const {
    const Index pairs = denoiser.layers * group.member_count;
    for (Index pair = team.index; pair < pairs; pair += team.size) {
      const Member& member = group.members[pair % group.member_count];
      largest_magnitudes(keys_of(pair / group.member_count, member), condition.stride, member.keys, member.key_count,
                         denoiser.width, m.cross_largest + pair * denoiser.width);
    }
    team.meet(team.barrier);
  }

  Modulation<T> modulation_of(const T* tables, Index rows, bool per_sample) const {
    return {tables, per_sample ? rows * m.stride : 0};
  }

  // Calls visit(first, last, offset) for own rows that read the same table, `offset` from that of the first sample.
  template <class Visit>
  void for_tables(Index sample_stride, const Visit& visit) const {
    if (sample_stride == 0) return visit(own.first, own.last, Index{0});
    for_own_members(group, own, [&](Index i, Index first, Index last) {
      visit(first, last, group.members[i].sample * sample_stride);
    });
  }

  // What gates read, see AddGatedAndKeep.
  void place_gates(Index sample_stride) const {
    for_tables(sample_stride, [&](Index first, Index last, Index offset) {
      for (Index row = first; row < last; ++row) m.gate_offset[row] = offset;
    });
  }

  // m.normal from h, with the two rows that `modulation` starts with; `statistics` as of modulated_layer_norm.
  void normalise(const T* h, const Modulation<T>& modulation, T* statistics = nullptr) const {
    for_tables(modulation.sample_stride, [&](Index first, Index last, Index offset) {
      const T* const shift = modulation.rows + offset;
      modulated_layer_norm(h + first * m.stride, last - first, denoiser.width, m.stride, shift, shift + m.stride,
                           m.normal + first * m.stride, statistics == nullptr ? nullptr : statistics + 2 * first);
    });
  }

  // The end of a part: h[part + 1] = h[part] + gate * branch, branch = `left` W' + b.
  template <class Left>
  void add(Left left, const PackedMatrix<T>& w, const Tape<T>& tape, int part, const Modulation<T>& gate) const {
    const T* const before = rows_of(tape.h[part], m.stride);
    T* const after = rows_of(tape.h[part + 1], m.stride);
    T* const branch = tape.branch[part] == nullptr ? nullptr : rows_of(tape.branch[part], m.stride);
    if (branch == nullptr && gate.sample_stride == 0) {  // sampling: nothing more than it needs
      return product(left, own.count(), w, AddGated<T>{before, after, m.stride, gate.rows});
    }
    product<true>(left, own.count(), w,
                  AddGatedAndKeep<T>{before, after, branch, m.stride, gate.rows, m.gate_offset + own.first});
  }

  template <class Epilogue>
  void project(const PackedMatrix<T>& w, const Epilogue& epilogue) const {
    product(RowMajor<T>{rows_of(m.normal, m.stride), m.stride}, own.count(), w, epilogue);
  }

  void attend(Index first, Index last, const KeysValues<T>& whole, const T* q, T* attended, T* norms) {
    const Index start = first - own.first;
    hits += attend_heads(q + start, m.lanes, last - first, whole, denoiser.width / denoiser.heads, denoiser.heads,
                         attended + start, m.lanes, norms == nullptr ? nullptr : norms + start, m.lanes);
  }

  // The rows of `m.qkv[which]` or of a tape.
  KeysValues<T> self_keys(const T* qkv, const Member& member) const {
    const T* const keys = qkv + member.first_row * m.qkv_stride + denoiser.width;
    return {keys, keys + denoiser.width, m.qkv_stride, group.counting, member.rows, m.self_largest};
  }

  KeysValues<T> cross_keys(Index layer, Index i) const {
    const Member& member = group.members[i];
    const T* const keys = keys_of(layer, member);
    const T* const largest = m.cross_largest + (layer * group.member_count + i) * denoiser.width;
    return {keys, keys + condition.value_offset, condition.stride, member.keys, member.key_count, largest};
  }

  // h[3] = the block of h[0]; place_gates comes first.
  void block(Index layer, const Modulation<T>& modulation, const Tape<T>& tape) {
    const BlockView<T>& w = denoiser.blocks[layer];
    T* const own_qkv = rows_of(tape.qkv, m.qkv_stride);
    const auto row = [&](int i) { return modulation.from(i * m.stride); };

    normalise(tape.h[0], row(0));
    project(w.qkv, Store<T>{own_qkv, m.qkv_stride});
    team.meet(team.barrier);
    transpose(own_qkv, m.qkv_stride, own.count(), denoiser.width, m.q_lines, m.lanes);
    for_own_members(group, own, [&](Index i, Index first, Index last) {
      const KeysValues<T> kv = self_keys(tape.qkv, group.members[i]);
      largest_magnitudes(kv.keys, kv.stride, kv.index, kv.count, denoiser.width, m.self_largest);
      attend(first, last, kv, m.q_lines, tape.attended[0], tape.norms[0]);
    });
    add(ChannelMajor<T>{tape.attended[0], m.lanes}, w.self_out, tape, 0, row(2));

    normalise(tape.h[1], row(3));
    project(w.q, Store<T>{rows_of(m.q, m.stride), m.stride});
    transpose(rows_of(m.q, m.stride), m.stride, own.count(), denoiser.width, tape.cross_q, m.lanes);
    for_own_members(group, own, [&](Index i, Index first, Index last) {
      attend(first, last, cross_keys(layer, i), tape.cross_q, tape.attended[1], tape.norms[1]);
    });
    add(ChannelMajor<T>{tape.attended[1], m.lanes}, w.cross_out, tape, 1, row(5));

    normalise(tape.h[2], row(6));
    project(w.fc1, StoreGelu<T>{rows_of(m.hidden, m.hidden_stride), m.hidden_stride, tape.before_gelu});
    add(RowMajor<T>{rows_of(m.hidden, m.hidden_stride), m.hidden_stride}, w.fc2, tape, 2, row(8));
  }

  // What a tape that keeps h[0], the attended and the last branch of a block leaves out, in five products, without any
  // attention.
  void complete(Index layer, const Modulation<T>& modulation, const Tape<T>& tape) const {
    const BlockView<T>& w = denoiser.blocks[layer];
    const auto row = [&](int i) { return modulation.from(i * m.stride); };
    normalise(tape.h[0], row(0));
    project(w.qkv, Store<T>{tape.qkv, m.qkv_stride});
    add(ChannelMajor<T>{tape.attended[0], m.lanes}, w.self_out, tape, 0, row(2));
    normalise(tape.h[1], row(3));
    project(w.q, Store<T>{m.q, m.stride});
    transpose(static_cast<const T*>(m.q), m.stride, group.rows, denoiser.width, tape.cross_q, m.lanes);
    add(ChannelMajor<T>{tape.attended[1], m.lanes}, w.cross_out, tape, 1, row(5));
    normalise(tape.h[2], row(6));
    project(w.fc1, Store<T>{tape.before_gelu, m.hidden_stride});
  }

  // m.output from the last block's result.
  void finish(const T* h, const Modulation<T>& final_modulation) const {
    normalise(h, final_modulation);
    project(denoiser.out, Store<T>{rows_of(m.output, m.output_stride), m.output_stride});
  }

  // m.output from m.x_t, with the step's modulation, (L, 9, stride) and (2, stride). `tape_of(layer)` gives the arrays
  // of a block; what its h[3] is, the next one's h[0] must be.
  template <class TapeOf>
  void predict(const T* position, const Modulation<T>& block_modulation, const Modulation<T>& final_modulation,
               const TapeOf& tape_of) {
    Tape<T> tape = tape_of(Index{0});
    product(RowMajor<T>{rows_of(m.x_t, m.channel_stride), m.channel_stride}, own.count(), denoiser.in,
            StoreWithPosition<T>{rows_of(tape.h[0], m.stride), m.stride, position, m.stride, group.token + own.first});
    place_gates(block_modulation.sample_stride);
    for (Index layer = 0; layer < denoiser.layers; ++layer) {
      if (layer > 0) tape = tape_of(layer);
      block(layer, block_modulation.from(layer * 9 * m.stride), tape);
    }
    finish(tape.h[3], final_modulation);
  }

  // The arrays of the workspace as a tape that the next block overwrites. K and V alternate: one meeting a block is
  // enough, since nobody can be two blocks ahead.
  Tape<T> overwritten() {
    T* const h = m.h;
    return {{h, h, h, h}, m.qkv[meetings++ % 2], m.q_lines, {m.attended, m.attended}, {}, nullptr, {}};
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
  net.prepare_condition();
  net.read(call.x, call.tokens, call.denoiser.channels, m.x_t, m.channel_stride);
  const KeptLayout<T> layout(call.denoiser, group, m);
  const auto tape_of = [&](Index layer) {
    return call.kept == nullptr ? net.overwritten()
                                : layout.tape(call.kept + group.kept_offset, layer, net.overwritten());
  };
  net.predict(call.position, net.modulation_of(call.block_modulation, 9 * call.denoiser.layers, call.per_sample),
              net.modulation_of(call.final_modulation, 2, call.per_sample), tape_of);
  net.write(m.output, m.output_stride, call.tokens, 2 * call.denoiser.channels, call.out);
  return net.hits;
}

template <class T>
Index denoiser_block(const BlockCall<T>& call, const Group& group, const Team& team, T* memory) {
  Memory<T> m;
  carve(call.denoiser, group, team.size, team.index, memory, m);
  Network<T> net{call.denoiser, call.condition, group, team, m, OwnRows(group, team)};
  const Modulation<T> modulation = net.modulation_of(call.modulation, 9, call.per_sample);
  net.prepare_condition();
  net.read(call.x, call.tokens, call.denoiser.width, m.h, m.stride);
  net.place_gates(modulation.sample_stride);
  net.block(0, modulation, net.overwritten());
  net.write(m.h, m.stride, call.tokens, call.denoiser.width, call.out);
  return net.hits;
}

}  // namespace
}  // namespace rohydr

// SPDX-License-Identifier: MIT
// The denoiser on the rows of a group, and the whole reverse loop (Eq. 2) around it.
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

  void normalise(const T* shift, const T* scale) const {
    modulated_layer_norm(rows_of(m.h, m.stride), own.count(), denoiser.width, m.stride, shift, scale,
                         rows_of(m.normal, m.stride));
  }

  template <class Epilogue>
  void project(const PackedMatrix<T>& w, const Epilogue& epilogue) const {
    product(RowMajor<T>{rows_of(m.normal, m.stride), m.stride}, own.count(), w, epilogue);
  }

  void attend(Index first, Index last, const KeysValues<T>& whole) {
    const Index size = denoiser.width / denoiser.heads;
    for (Index channel = 0; channel < denoiser.width; channel += size) {
      KeysValues<T> kv = whole;
      kv.keys += channel;
      kv.values += channel;
      kv.largest += channel;
      const Index start = channel * m.lanes + first - own.first;
      hits += head(m.q_lines + start, m.lanes, last - first, kv, size, m.attended + start, m.lanes);
    }
  }

  void add_attended(const PackedMatrix<T>& w, const T* gate) const {
    product(ChannelMajor<T>{m.attended, m.lanes}, own.count(), w, AddGated<T>{rows_of(m.h, m.stride), m.stride, gate});
  }

  void block(Index layer, const T* modulation) {
    const BlockView<T>& w = denoiser.blocks[layer];
    T* const qkv = m.qkv[meetings++ % 2];
    T* const own_qkv = rows_of(qkv, m.qkv_stride);
    const auto row = [&](int i) { return modulation + i * m.stride; };

    normalise(row(0), row(1));
    project(w.qkv, Store<T>{own_qkv, m.qkv_stride});
    team.meet(team.barrier);
    transpose(own_qkv, m.qkv_stride, own.count(), denoiser.width, m.q_lines, m.lanes);
    for_own_members(group, own, [&](Index i, Index first, Index last) {
      const Member& member = group.members[i];
      const T* const keys = qkv + member.first_row * m.qkv_stride + denoiser.width;
      largest_magnitudes(keys, m.qkv_stride, group.counting, member.rows, denoiser.width, m.self_largest);
      attend(first, last, {keys, keys + denoiser.width, m.qkv_stride, group.counting, member.rows, m.self_largest});
    });
    add_attended(w.self_out, row(2));

    normalise(row(3), row(4));
    project(w.q, Store<T>{rows_of(m.q, m.stride), m.stride});
    transpose(rows_of(m.q, m.stride), m.stride, own.count(), denoiser.width, m.q_lines, m.lanes);
    for_own_members(group, own, [&](Index i, Index first, Index last) {
      const Member& member = group.members[i];
      const T* const keys = keys_of(layer, member.sample);
      const T* const values = keys + condition.batch * condition.keys * denoiser.width;
      const T* const largest = m.cross_largest + (layer * group.member_count + i) * denoiser.width;
      attend(first, last, {keys, values, denoiser.width, member.keys, member.key_count, largest});
    });
    add_attended(w.cross_out, row(5));

    normalise(row(6), row(7));
    project(w.fc1, StoreGelu<T>{rows_of(m.hidden, m.hidden_stride), m.hidden_stride});
    product(RowMajor<T>{rows_of(m.hidden, m.hidden_stride), m.hidden_stride}, own.count(), w.fc2,
            AddGated<T>{rows_of(m.h, m.stride), m.stride, row(8)});
  }
};

template <class T>
struct LoopState {
  Network<T>& net;
  const LoopCall<T>& call;

  const T* x_of(Index sample, Index token) const {
    return call.x + (sample * call.tokens + token) * net.denoiser.channels;
  }

  void read_start() const {
    const Index channels = net.denoiser.channels;
    for_own_members(net.group, net.own, [&](Index i, Index first, Index last) {
      for (Index row = first; row < last; ++row) {
        const T* const from = x_of(net.group.members[i].sample, net.group.token[row]);
        for (Index c = 0; c < channels; ++c) net.m.x_t[row * net.m.channel_stride + c] = from[c];
      }
    });
  }

  void write_result() const {
    const Index channels = net.denoiser.channels;
    for_own_members(net.group, net.own, [&](Index i, Index first, Index last) {
      for (Index row = first; row < last; ++row) {
        const Index place = net.group.members[i].sample * call.tokens + net.group.token[row];
        for (Index c = 0; c < channels; ++c) call.out[place * channels + c] = net.m.x_t[row * net.m.channel_stride + c];
      }
    });
  }

  void predict(Index step) {
    const Memory<T>& m = net.m;
    product(RowMajor<T>{net.rows_of(m.x_t, m.channel_stride), m.channel_stride}, net.own.count(), net.denoiser.in,
            StoreWithPosition<T>{net.rows_of(m.h, m.stride), m.stride, call.position, m.stride,
                                 net.group.token + net.own.first});
    const Index layers = net.denoiser.layers;
    for (Index layer = 0; layer < layers; ++layer) {
      net.block(layer, call.block_modulation + ((step - 1) * layers + layer) * 9 * m.stride);
    }
    const T* const modulation = call.final_modulation + (step - 1) * 2 * m.stride;
    net.normalise(modulation, modulation + m.stride);
    net.project(net.denoiser.out, Store<T>{net.rows_of(m.output, m.output_stride), m.output_stride});
  }

  // x_{t-1} = c_x x_t + c_p prediction + sigma z, sigma = exp(log_variance / 2) with log_variance linear in v.
  void update_rows(Index first, Index last, const double* c, const float* z) const {
    constexpr int N = kLanes<T>;
    constexpr double kHalfLog2e = 0.5 * 1.44269504088896340736;
    const T slope = static_cast<T>(kHalfLog2e * 0.5 * (c[2] - c[3]));
    const T offset = static_cast<T>(kHalfLog2e * 0.5 * (c[2] + c[3]));
    const T c_x = static_cast<T>(c[0]), c_p = static_cast<T>(c[1]);
    const Index channels = net.denoiser.channels;
    for (Index row = first; row < last; ++row) {
      T* const x = net.m.x_t + row * net.m.channel_stride;
      const T* const prediction = net.m.output + row * net.m.output_stride;
      for (Index i = 0; i < channels; i += N) {
        Vector<T, N> next = load<T, N>(prediction + i) * c_p + load<T, N>(x + i) * c_x;
        if (z != nullptr) {
          const Vector<T, N> sigma = exp2_everywhere<T, N>(load<T, N>(prediction + channels + i) * slope + offset);
          const Vector<float, N> noise = load<float, N>(z + (row - first) * channels + i);
          next = sigma * __builtin_convertvector(noise, Vector<T, N>) + next;
        }
        store<T, N>(x + i, next);
      }
    }
  }

  void update(Index step) const {
    const double* const c = call.coefficients + 4 * (step - 1);
    if (step == 1) return update_rows(net.own.first, net.own.last, c, nullptr);
    const Index channels = net.denoiser.channels;
    PhiloxRequest request = call.noise;
    request.step = static_cast<std::uint32_t>(step);
    for_own_members(net.group, net.own, [&](Index i, Index first, Index last) {
      const Index id = call.sample_ids[net.group.members[i].sample];
      while (first < last) {  // runs of neighbouring tokens: their elements are neighbours in the stream
        const Index token = net.group.token[first];
        Index next = first + 1;
        while (next < last && net.group.token[next] == token + next - first) ++next;
        const Index begin = token * channels, end = begin + (next - first) * channels;
        call.normals(request, id, begin / 4, (end + 3) / 4 - begin / 4, net.m.noise);
        update_rows(first, next, c, net.m.noise + begin % 4);
        first = next;
      }
    });
  }
};

template <class T>
Index reverse_loop(const LoopCall<T>& call, const Group& group, const Team& team, T* memory) {
  Memory<T> m;
  carve(call.denoiser, group, team.size, team.index, memory, m);
  Network<T> net{call.denoiser, call.condition, group, team, m, OwnRows(group, team)};
  LoopState<T> state{net, call};
  net.prepare_condition();
  state.read_start();
  for (Index step = call.steps; step >= 1; --step) {
    state.predict(step);
    state.update(step);
  }
  state.write_result();
  return net.hits;
}

template <class T>
Index denoiser_block(const BlockCall<T>& call, const Group& group, const Team& team, T* memory) {
  Memory<T> m;
  carve(call.denoiser, group, team.size, team.index, memory, m);
  Network<T> net{call.denoiser, call.condition, group, team, m, OwnRows(group, team)};
  const Index width = call.denoiser.width;
  const auto place = [&](Index i, Index row) {
    return (group.members[i].sample * call.tokens + group.token[row]) * width;
  };
  net.prepare_condition();
  for_own_members(group, net.own, [&](Index i, Index first, Index last) {
    for (Index row = first; row < last; ++row) {
      T* const h = m.h + row * m.stride;
      for (Index c = 0; c < width; ++c) h[c] = call.x[place(i, row) + c];
      for (Index c = width; c < m.stride; ++c) h[c] = 0;
    }
  });
  net.block(0, call.modulation + group.members[0].sample * call.modulation_step);
  for_own_members(group, net.own, [&](Index i, Index first, Index last) {
    for (Index row = first; row < last; ++row) {
      for (Index c = 0; c < width; ++c) call.out[place(i, row) + c] = m.h[row * m.stride + c];
    }
  });
  return net.hits;
}

}  // namespace
}  // namespace rohydr

// SPDX-License-Identifier: MIT
// The way back through the network once, or through one block, for a group. Its activations come from the forward, or are
// computed into a tape first.
#pragma once

#include "backward.h"

namespace rohydr {
namespace {

// Cuts the workspace: `Memory` first, then the tapes of all layers, then what the way back needs.
template <class T>
Index carve_backward(const DenoiserView<T>& denoiser, const Group& group, T* memory, Memory<T>& m,
                     BackwardMemory<T>& b, Tape<T>*& tapes) {
  constexpr Index N = kLanes<T>;
  Index used = carve(denoiser, group, 1, 0, memory, m);
  const auto take = [&](Index count) {
    T* const place = memory + used;
    used += round_up(count, 64 / static_cast<Index>(sizeof(T)));
    return place;
  };
  const Index rows = group.rows + kRowSlack, width = round_up(denoiser.width, 8);
  const Index layers = denoiser.layers;
  tapes = reinterpret_cast<Tape<T>*>(take(layers * static_cast<Index>(sizeof(Tape<T>) / sizeof(T))));
  T* h = take(rows * m.stride);
  for (Index layer = 0; layer < layers; ++layer) {
    Tape<T> tape;
    tape.h[0] = h;
    for (int part = 1; part < 4; ++part) tape.h[part] = take(rows * m.stride);
    h = tape.h[3];
    tape.qkv = take(rows * m.qkv_stride + N);
    tape.cross_q = take(width * m.lanes);
    for (int i = 0; i < 2; ++i) {
      tape.attended[i] = take(width * m.lanes);
      tape.norms[i] = take(2 * denoiser.heads * m.lanes + N);
    }
    tape.before_gelu = take(rows * m.hidden_stride);
    for (T*& branch : tape.branch) branch = take(rows * m.stride);
    if (memory != nullptr) tapes[layer] = tape;
  }
  Index keys = 0, longest = 0;
  for (Index i = 0; i < group.member_count; ++i) {
    keys = larger(keys, larger(group.members[i].key_count, group.members[i].rows));
    longest = larger(longest, group.members[i].rows);
  }
  b.plane_stride = round_up(longest, N) + N;
  for (T** const array : {&b.dh, &b.gated, &b.dnormal, &b.rows_of_q, &b.dq, &b.dattended}) {
    *array = take(rows * m.stride + N);
  }
  b.dqkv = take(rows * m.qkv_stride + N);
  b.dhidden = take(rows * m.hidden_stride);
  b.doutput = take(rows * m.output_stride + N);
  b.dx = take(rows * m.channel_stride);
  b.dattended_lines = take(width * m.lanes);
  b.dq_lines = take(width * m.lanes);
  b.weights = take(2 * keys * b.plane_stride);
  b.slopes = b.weights + keys * b.plane_stride;
  b.pair_rows = take(2 * longest * (denoiser.width / denoiser.heads) + N);
  b.statistics = take(2 * rows);
  return used;
}

// A group's workspace for the way back, and the network on it.
template <class T>
struct BackwardWorkspace {
  Memory<T> m;
  BackwardMemory<T> b;
  Tape<T>* tapes;
  Team alone{0, 1, [](void*) {}, nullptr};
  Network<T> net;

  BackwardWorkspace(const DenoiserView<T>& denoiser, const Condition<T>& condition, const Group& group, T* memory)
      : net{denoiser, condition, group, alone, m, OwnRows(group, alone)} {
    carve_backward(denoiser, group, memory, m, b, tapes);
  }
  BackwardWorkspace(const BackwardWorkspace&) = delete;

  auto tape_of() const {
    return [this](Index layer) { return tapes[layer]; };
  }
  // The tapes of a step that the forward has kept, completed.
  auto kept_tape_of(const KeptLayout<T>& layout, T* kept, const Modulation<T>& modulation) const {
    return [=, this](Index layer) {
      const Tape<T> tape = layout.tape(kept, layer, tapes[0]);
      net.complete(layer, modulation.from(layer * 9 * m.stride), tape);
      return tape;
    };
  }
  T* last_h() const { return tapes[net.denoiser.layers - 1].h[3]; }
};

template <class T>
Index backward_workspace(const DenoiserView<T>& denoiser, const Group& group) {
  Memory<T> m;
  BackwardMemory<T> b;
  Tape<T>* tapes;
  return carve_backward<T>(denoiser, group, nullptr, m, b, tapes);
}

template <class T>
Index denoiser_backward(const DenoiserBackwardCall<T>& call, const DenoiserGradient<T>& gradient, const Group& group,
                        T* memory) {
  const DenoiserCall<T>& forward = call.forward;
  BackwardWorkspace<T> space(forward.denoiser, forward.condition, group, memory);
  const Backward<T> back{space.net, call.transposed, gradient, space.b, call.condition_gradient};
  const Index channels = forward.denoiser.channels;
  const Modulation<T> blocks =
      space.net.modulation_of(forward.block_modulation, 9 * forward.denoiser.layers, forward.per_sample);
  const Modulation<T> last = space.net.modulation_of(forward.final_modulation, 2, forward.per_sample);
  space.net.prepare_condition();
  space.net.read(forward.x, forward.tokens, channels, space.m.x_t, space.m.channel_stride);
  space.net.read(call.out_gradient, forward.tokens, 2 * channels, space.b.doutput, space.m.output_stride);
  for (Index i = 0; i < group.rows * space.m.channel_stride; ++i) space.b.dx[i] = T(0);
  const auto through = [&](const T* h, const auto& tape_of) {
    back.network(h, blocks, last, gradient.block_modulation, gradient.final_modulation, tape_of, [](Index) {});
  };
  if (forward.kept != nullptr) {
    const KeptLayout<T> layout(forward.denoiser, group, space.m);
    T* const kept = forward.kept + group.kept_offset;
    space.net.place_gates(blocks.sample_stride);
    through(layout.tape(kept, forward.denoiser.layers - 1, space.tapes[0]).h[3],
            space.kept_tape_of(layout, kept, blocks));
  } else {
    space.net.predict(forward.position, blocks, last, space.tape_of());
    through(space.last_h(), space.tape_of());
  }
  space.net.write(space.b.dx, space.m.channel_stride, forward.tokens, channels, call.x_gradient);
  return space.net.hits;
}

template <class T>
Index denoiser_block_backward(const BlockBackwardCall<T>& call, const DenoiserGradient<T>& gradient,
                              const Group& group, T* memory) {
  const BlockCall<T>& forward = call.forward;
  BackwardWorkspace<T> space(forward.denoiser, forward.condition, group, memory);
  const Backward<T> back{space.net, call.transposed, gradient, space.b, call.condition_gradient};
  const Modulation<T> modulation = space.net.modulation_of(forward.modulation, 9, forward.per_sample);
  const Index width = forward.denoiser.width;
  space.net.prepare_condition();
  space.net.place_gates(modulation.sample_stride);
  space.net.read(forward.x, forward.tokens, width, space.tapes[0].h[0], space.m.stride);
  space.net.block(0, modulation, space.tapes[0]);
  space.net.read(call.out_gradient, forward.tokens, width, space.b.dh, space.m.stride);
  back.block(0, modulation, gradient.block_modulation, space.tapes[0]);
  space.net.write(space.b.dh, space.m.stride, forward.tokens, width, call.x_gradient);
  return space.net.hits;
}

}  // namespace
}  // namespace rohydr

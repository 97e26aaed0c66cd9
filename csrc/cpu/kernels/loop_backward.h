// SPDX-License-Identifier: MIT
// The way back through the reverse loop (Eq. 2), step 1 first, for a group: x_t is read, the step's activations are
// computed again into a tape, and the gradients follow it in reverse. The noise is drawn again, not stored.
#pragma once

#include "denoiser_backward.h"
#include "loop.h"

namespace rohydr {
namespace {

// b.dx, the gradient of x_{t-1}, becomes b.doutput and the part of the gradient of x_t that does not go through the
// network. So does, with it, m.history, the gradient of the history that the step leaves, which becomes that of the
// history that it finds: it is linear in both.
template <class T>
struct UpdateBackward {
  const LoopState<T>& state;
  const BackwardMemory<T>& b;

  template <bool kHistory>
  void rows(Index first, Index last, const double* c, const float* z) const {
    constexpr int N = kLanes<T>;
    constexpr double kHalfLog2e = 0.5 * 1.44269504088896340736;
    const Memory<T>& m = state.net.m;
    const Index channels = state.net.denoiser.channels;
    const T slope = static_cast<T>(kHalfLog2e * 0.5 * (c[2] - c[3]));
    const T offset = static_cast<T>(kHalfLog2e * 0.5 * (c[2] + c[3]));
    const T change = static_cast<T>(kHalfLog2e * 0.5 * (c[2] - c[3]) * kLn2);
    const T c_x = static_cast<T>(c[0]), c_p = static_cast<T>(c[1]);
    for (Index row = first; row < last; ++row) {
      T* const g = b.dx + row * m.channel_stride;
      T* const to = b.doutput + row * m.output_stride;
      const T* const v = m.output + row * m.output_stride + channels;
      T* const gh = m.history + row * m.channel_stride;
      for (Index i = 0; i < channels; i += N) {
        Vector<T, N> dp = load<T, N>(g + i) * c_p;
        if constexpr (kHistory) dp = multiply_add<T, N>(load<T, N>(gh + i), static_cast<T>(c[6]), dp);
        store<T, N>(to + i, dp);
      }
      for (Index i = 0; i < channels; i += N) {
        Vector<T, N> dv{};
        if (z != nullptr) {
          const Vector<float, N> noise = load<float, N>(z + (row - first) * channels + i);
          const Vector<T, N> exponent = multiply_add<T, N>(load<T, N>(v + i), slope, broadcast<T, N>(offset));
          const Vector<T, N> sigma = exp2_everywhere<T, N>(exponent);
          dv = load<T, N>(g + i) * __builtin_convertvector(noise, Vector<T, N>) * sigma * change;
        }
        store<T, N>(to + channels + i, dv);
        const Vector<T, N> gradient = load<T, N>(g + i);
        Vector<T, N> dx = gradient * c_x;
        if constexpr (kHistory) {
          const Vector<T, N> of_history = load<T, N>(gh + i);
          dx = multiply_add<T, N>(of_history, static_cast<T>(c[5]), dx);
          store<T, N>(gh + i, multiply_add<T, N>(of_history, static_cast<T>(c[7]), gradient * static_cast<T>(c[4])));
        }
        store<T, N>(g + i, dx);
      }
    }
  }

  void step(Index number) const { state.has_history() ? step_as<true>(number) : step_as<false>(number); }

  template <bool kHistory>
  void step_as(Index number) const {
    const double* const c = state.coefficients_of(number);
    if (!draws_noise(number, c)) return rows<kHistory>(0, state.net.group.rows, c, nullptr);
    state.for_noise(number, [&](Index first, Index last, const float* z) { rows<kHistory>(first, last, c, z); });
  }
};

template <class T>
Index reverse_loop_backward(const BackwardCall<T>& call, const DenoiserGradient<T>& gradient, const Group& group,
                            T* memory) {
  const LoopCall<T>& forward = call.forward;
  BackwardWorkspace<T> space(forward.denoiser, forward.condition, group, memory);
  const LoopState<T> state{space.net, forward};
  const UpdateBackward<T> update{state, space.b};
  const Backward<T> back{space.net, call.transposed, gradient, space.b, call.condition_gradient};
  const Index stride = space.m.stride;
  space.net.prepare_condition();
  space.net.place_gates(0);
  state.read(call.out_gradient, space.b.dx);
  if (state.has_history()) state.clear_history();  // nothing reads what the last step leaves
  const KeptLayout<T> layout(forward.denoiser, group, space.m);
  for (Index step = 1; step <= forward.steps; ++step) {
    const Modulation<T> modulation = state.modulation_of(step), final_modulation = state.final_modulation_of(step);
    const auto through = [&](const T* h, const auto& tape_of) {
      update.step(step);
      back.network(h, modulation, final_modulation,
                   gradient.block_modulation + (step - 1) * forward.denoiser.layers * 9 * stride,
                   gradient.final_modulation + (step - 1) * 2 * stride, tape_of, [](Index) {});
    };
    state.read(call.states + (step - 1) * state.state_size(), space.m.x_t);
    if (call.kept != nullptr) {
      T* const kept = const_cast<T*>(call.kept) + group.kept_offset + (step - 1) * layout.step_size;  // only read
      T* const h = layout.tape(kept, forward.denoiser.layers - 1, space.tapes[0]).h[3];
      space.net.finish(h, final_modulation);
      through(h, space.kept_tape_of(layout, kept, modulation));
    } else {
      state.predict(step, space.tape_of());
      through(space.last_h(), space.tape_of());
    }
  }
  state.write(space.b.dx, call.x_gradient);
  return space.net.hits;
}

}  // namespace
}  // namespace rohydr

// SPDX-License-Identifier: MIT
// All steps of Eq. 2 on the rows of a group: x_{t-1} = c_x x_t + c_p prediction + sigma z. A sampler with a history h,
// which starts as 0, adds c_xh h to that, and makes c_hx x_t + c_hp prediction + c_hh h the next one.
#pragma once

#include "denoiser.h"

namespace rohydr {
namespace {

// visit(member index, first, last, z) for runs of own rows whose tokens are neighbours, with their noise: (last - first)
// C numbers, and some beyond that may be read.
template <class T, class Visit>
void for_noise_of(const Network<T>& net, NormalKernel normals, const PhiloxRequest& request, const Index* sample_ids,
                  const Visit& visit) {
  const Index channels = net.denoiser.channels;
  for_own_members(net.group, net.own, [&](Index i, Index first, Index last) {
    const Index id = sample_ids[net.group.members[i].sample];
    while (first < last) {
      const Index token = net.group.token[first];
      Index next = first + 1;
      while (next < last && net.group.token[next] == token + next - first) ++next;
      const Index begin = token * channels, end = begin + (next - first) * channels;
      normals(request, id, begin / 4, (end + 3) / 4 - begin / 4, net.m.noise);
      visit(i, first, next, net.m.noise + begin % 4);
      first = next;
    }
  });
}

// Both logs of a variance of 0, see rohydr_fast/diffusion/solvers.py: there is no noise to draw.
constexpr double kSilent = -1e4;

inline bool draws_noise(Index step, const double* c) { return step > 1 && (c[2] > kSilent || c[3] > kSilent); }

template <class T>
struct LoopState {
  Network<T>& net;
  const LoopCall<T>& call;

  Modulation<T> modulation_of(Index step) const {
    return {call.block_modulation + (step - 1) * net.denoiser.layers * 9 * net.m.stride, 0};
  }
  Modulation<T> final_modulation_of(Index step) const {
    return {call.final_modulation + (step - 1) * 2 * net.m.stride, 0};
  }
  const double* coefficients_of(Index step) const { return call.coefficients + call.columns * (step - 1); }
  bool has_history() const { return call.columns > 4; }
  Index state_size() const { return call.samples * call.tokens * net.denoiser.channels; }

  void read(const T* array, T* rows) const {
    net.read(array, call.tokens, net.denoiser.channels, rows, net.m.channel_stride);
  }
  void write(const T* rows, T* array) const {
    net.write(rows, net.m.channel_stride, call.tokens, net.denoiser.channels, array);
  }

  template <class TapeOf>
  void predict(Index step, const TapeOf& tape_of) const {
    net.predict(call.position, modulation_of(step), final_modulation_of(step), tape_of);
  }

  void clear_history() const {
    const Index stride = net.m.channel_stride;
    for (Index i = net.own.first * stride; i < net.own.last * stride; ++i) net.m.history[i] = T(0);
  }

  // x_{t-1} = c_x x_t + c_p prediction + sigma z, sigma = exp(log_variance / 2) with log_variance linear in v.
  template <bool kHistory>
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
        Vector<T, N> next = multiply_add<T, N>(load<T, N>(prediction + i), c_p, load<T, N>(x + i) * c_x);
        if (z != nullptr) {
          const Vector<T, N> v = load<T, N>(prediction + channels + i);
          const Vector<T, N> sigma = exp2_everywhere<T, N>(multiply_add<T, N>(v, slope, broadcast<T, N>(offset)));
          const Vector<float, N> noise = load<float, N>(z + (row - first) * channels + i);
          next = multiply_add<T, N>(sigma, __builtin_convertvector(noise, Vector<T, N>), next);
        }
        if constexpr (kHistory) {
          T* const history = net.m.history + row * net.m.channel_stride + i;
          const Vector<T, N> h = load<T, N>(history);
          const Vector<T, N> own = load<T, N>(x + i) * static_cast<T>(c[5]);
          const Vector<T, N> kept = multiply_add<T, N>(h, static_cast<T>(c[7]), own);
          store<T, N>(history, multiply_add<T, N>(load<T, N>(prediction + i), static_cast<T>(c[6]), kept));
          next = multiply_add<T, N>(h, static_cast<T>(c[4]), next);
        }
        store<T, N>(x + i, next);
      }
    }
  }

  // visit(first, last, z), see for_noise_of.
  template <class Visit>
  void for_noise(Index step, const Visit& visit) const {
    PhiloxRequest request = call.noise;
    request.step = static_cast<std::uint32_t>(step);
    for_noise_of(net, call.normals, request, call.sample_ids,
                 [&](Index, Index first, Index last, const float* z) { visit(first, last, z); });
  }

  void update(Index step) const { has_history() ? update_as<true>(step) : update_as<false>(step); }

  template <bool kHistory>
  void update_as(Index step) const {
    const double* const c = coefficients_of(step);
    if (!draws_noise(step, c)) return update_rows<kHistory>(net.own.first, net.own.last, c, nullptr);
    for_noise(step, [&](Index first, Index last, const float* z) { update_rows<kHistory>(first, last, c, z); });
  }
};

template <class T>
Index kept_size(const DenoiserView<T>& denoiser, const Group& group) {
  Memory<T> m;
  carve<T>(denoiser, group, 1, 0, nullptr, m);
  return KeptLayout<T>(denoiser, group, m).step_size;
}

template <class T>
Index reverse_loop(const LoopCall<T>& call, const Group& group, const Team& team, T* memory) {
  Memory<T> m;
  carve(call.denoiser, group, team.size, team.index, memory, m);
  Network<T> net{call.denoiser, call.condition, group, team, m, OwnRows(group, team)};
  LoopState<T> state{net, call};
  net.prepare_condition();
  state.read(call.x, m.x_t);
  if (state.has_history()) state.clear_history();
  const KeptLayout<T> layout(call.denoiser, group, m);
  for (Index step = call.steps; step >= 1; --step) {
    const bool keep = step <= call.kept_steps;
    if (keep && call.states != nullptr) state.write(m.x_t, call.states + (step - 1) * state.state_size());
    if (keep && call.kept != nullptr) {
      T* const kept = call.kept + group.kept_offset + (step - 1) * layout.step_size;
      state.predict(step, [&](Index layer) { return layout.tape(kept, layer, net.overwritten()); });
    } else {
      state.predict(step, [&](Index) { return net.overwritten(); });
    }
    state.update(step);
  }
  state.write(m.x_t, call.out);
  return net.hits;
}

}  // namespace
}  // namespace rohydr

// SPDX-License-Identifier: MIT
// Eq. 3 for a group of samples, each at its own step, with all gradients: x_t is drawn, keys and values of the condition
// are computed, the network runs, and goes back from the loss while everything it left is still near.
#pragma once

#include "denoiser_backward.h"
#include "loop.h"

namespace rohydr {
namespace {

// What Eq. 3 needs beside the workspace of the way back. Rows of the condition are its existing tokens, of all members
// one after the other.
template <class T>
struct LossMemory {
  Index key_rows;
  T* encoded;           // (key_rows, stride)
  T* encoded_gradient;  // (key_rows, stride)
  T* keys_values;       // (L, 2, key_rows, stride)
  T* keys_values_gradient;  // (2, key_rows, stride), of each layer in turn
  T* target;            // (rows, channel_stride)
  T* mean;              // (rows, channel_stride) of q(x_{t-1} | x_t, x_0), or x_{t-1} drawn from it
  Member* members;      // whose keys are these rows
};

template <class T>
Index carve_loss(const DenoiserView<T>& denoiser, const Group& group, T* memory, LossMemory<T>& l) {
  Memory<T> m;
  Index used = backward_workspace(denoiser, group);
  carve<T>(denoiser, group, 1, 0, nullptr, m);  // for its strides
  const auto take = [&](Index count) {
    T* const place = memory + used;
    used += round_up(count, 64 / static_cast<Index>(sizeof(T)));
    return place;
  };
  l.key_rows = 0;
  for (Index i = 0; i < group.member_count; ++i) l.key_rows += group.members[i].key_count;
  const Index keys = l.key_rows * m.stride, rows = group.rows * m.channel_stride;
  l.encoded = take(keys);
  l.encoded_gradient = take(keys);
  l.keys_values = take(2 * denoiser.layers * keys);
  l.keys_values_gradient = take(2 * keys);
  l.target = take(rows);
  l.mean = take(rows);
  l.members = reinterpret_cast<Member*>(take(group.member_count * static_cast<Index>(sizeof(Member) / sizeof(T))));
  return used;
}

template <class T>
Index loss_workspace(const DenoiserView<T>& denoiser, const Group& group) {
  LossMemory<T> l;
  return carve_loss<T>(denoiser, group, nullptr, l);
}

template <class T>
struct LossState {
  const LossCall<T>& call;
  const Network<T>& net;
  const LossMemory<T>& l;
  const BackwardMemory<T>& b;

  const T* row_of(Index member) const { return call.rows + net.group.members[member].sample * kLossColumns; }

  // visit(row of l.encoded, place of the same token in E).
  template <class Visit>
  void for_keys(const Group& batch, const Visit& visit) const {
    for (Index i = 0; i < batch.member_count; ++i) {
      const Member& member = batch.members[i];
      for (Index j = 0; j < member.key_count; ++j) {
        visit(net.group.members[i].key_row + j, (member.sample * call.keys + member.keys[j]) * net.denoiser.width);
      }
    }
  }

  void read_condition(const Group& batch) const {
    const Index width = net.denoiser.width, stride = net.m.stride, part = l.key_rows * stride;
    for_keys(batch, [&](Index row, Index place) {
      T* const to = l.encoded + row * stride;
      for (Index c = 0; c < width; ++c) to[c] = call.encoded[place + c];
      for (Index c = width; c < stride; ++c) to[c] = T(0);
    });
    const RowMajor<T> rows{l.encoded, stride};
    for (Index layer = 0; layer < net.denoiser.layers; ++layer) {
      T* const keys = l.keys_values + 2 * layer * part;
      product<true>(rows, l.key_rows, net.denoiser.blocks[layer].k, Store<T>{keys, stride});
      product<true>(rows, l.key_rows, net.denoiser.blocks[layer].v, Store<T>{keys + part, stride});
    }
  }

  // m.x_t from x_0, which is there; the target and the mean of q, or x_{t-1} drawn from it.
  void draw() const {
    constexpr int N = kLanes<T>;
    const Index stride = net.m.channel_stride, channels = net.denoiser.channels;
    const auto for_vectors = [&](std::uint32_t stream, const auto& visit) {
      PhiloxRequest request = call.noise;
      request.stream = stream;
      for_noise_of(net, call.normals, request, call.sample_ids, [&](Index i, Index first, Index last, const float* z) {
        const T* const c = row_of(i);
        for (Index row = first; row < last; ++row) {
          for (Index channel = 0; channel < channels; channel += N) {
            const Vector<float, N> noise = load<float, N>(z + (row - first) * channels + channel);
            visit(c, row * stride + channel, __builtin_convertvector(noise, Vector<T, N>));
          }
        }
      });
    };
    for_vectors(kForwardStream, [&](const T* c, Index place, Vector<T, N> eps) {
      const Vector<T, N> x_0 = load<T, N>(net.m.x_t + place);
      const Vector<T, N> x_t = x_0 * c[kSignal] + eps * c[kNoise];
      store<T, N>(net.m.x_t + place, x_t);
      store<T, N>(l.target + place, x_0 * c[kTargetX0] + eps * c[kTargetEps]);
      store<T, N>(l.mean + place, x_0 * c[kMeanX0] + x_t * c[kMeanXt]);
    });
    if (call.loss != Loss::kNll) return;
    for_vectors(kForwardPreviousStream, [&](const T* c, Index place, Vector<T, N> z) {
      store<T, N>(l.mean + place, load<T, N>(l.mean + place) + z * c[kDeviation]);
    });
  }

  // The losses of each sample from m.output, and b.doutput.
  void losses() const {
    for (Index i = 0; i < net.group.member_count; ++i) {
      const Member& member = net.group.members[i];
      const T* const c = row_of(i);
      const T log2_precision = c[kLogPosterior] * T(-1.44269504088896340736);
      const T precision = exp2_everywhere<T, kLanes<T>>(broadcast<T, kLanes<T>>(log2_precision))[0];
      double sum = 0;
      for (Index row = member.first_row; row < member.first_row + member.rows; ++row) {
        sum += loss_of_row(row, c, precision);
      }
      call.sums[member.sample] = sum;
    }
  }

  // With lv = log sigma^2 = (lb + lp) / 2 + v (lb - lp) / 2, r = exp(lp - lv), and mu = c_x x_t + c_p prediction:
  //   nll  (x_{t-1} - mu)^2 / 2 exp(lv) + lv / 2
  //   kl   ((mean - mu)^2 / exp(lv) + r - (lp - lv) - 1) / 2
  //   hybrid  (prediction - target)^2 + kl, which moves the variance alone
  // `precision`: exp(-lp).
  double loss_of_row(Index row, const T* c, T precision) const {
    constexpr int N = kLanes<T>;
    constexpr T kLog2e = T(1.44269504088896340736);
    const Memory<T>& m = net.m;
    const Index channels = net.denoiser.channels;
    const T half = T(0.5) * (c[kLogBeta] - c[kLogPosterior]);
    const T* const output = m.output + row * m.output_stride;
    T* const gradient = b.doutput + row * m.output_stride;
    const bool nll = call.loss == Loss::kNll, hybrid = call.loss == Loss::kHybrid;
    Vector<T, N> total{};  // of a lane, over this row alone
    for (Index i = 0; i < channels; i += N) {
      const Vector<T, N> prediction = load<T, N>(output + i), v = load<T, N>(output + channels + i);
      const Index place = row * m.channel_stride + i;
      const Vector<T, N> lower = (v + T(1)) * -half;  // lp - lv
      const Vector<T, N> ratio = exp2_everywhere<T, N>(lower * kLog2e);
      const Vector<T, N> inverse = ratio * precision;  // exp(-lv)
      const Vector<T, N> mu = load<T, N>(m.x_t + place) * c[kCx] + prediction * c[kCp];
      const Vector<T, N> off = load<T, N>(l.mean + place) - mu;
      const Vector<T, N> square = off * off * inverse;
      const Vector<T, N> miss = prediction - load<T, N>(l.target + place);
      Vector<T, N> loss = nll ? square - lower + c[kLogPosterior] : square + ratio - lower - T(1);
      loss = loss * T(0.5);
      if (hybrid) loss = loss + miss * miss;
      const Vector<T, N> to_log = (nll ? T(1) - square : T(1) - ratio - square) * T(0.5);
      const Vector<T, N> to_prediction = (hybrid ? miss * T(2) : off * inverse * -c[kCp]) * call.scale;
      const Vector<T, N> to_v = to_log * (half * call.scale);
      if (i + N <= channels) {
        total = total + loss;
        store<T, N>(gradient + i, to_prediction);
        store<T, N>(gradient + channels + i, to_v);
        continue;
      }
      for (Index lane = 0; lane < channels - i; ++lane) {
        total[lane] += loss[lane];
        gradient[i + lane] = to_prediction[lane];
        gradient[channels + i + lane] = to_v[lane];
      }
    }
    for (Index i = 2 * channels; i < m.output_stride; ++i) gradient[i] = T(0);
    double sum = 0;
    for (int lane = 0; lane < N; ++lane) sum += static_cast<double>(total[lane]);
    return sum;
  }
};

// dW and db of a layer's K and V, and their part of dE. The gradients of K and V are cleared for the next layer.
template <class T>
void condition_backward(const LossState<T>& state, const TransposedView<T>& transposed,
                        const DenoiserGradient<T>& gradient, Index layer) {
  const LossMemory<T>& l = state.l;
  const Index width = state.net.denoiser.width, stride = state.net.m.stride, part = l.key_rows * stride;
  const auto through = [&](T* dy, const PackedMatrix<T>& w_transposed, const MatrixGradient<T>& to) {
    product_of_rows(ChannelMajor<T>{l.encoded, stride}, width, static_cast<const T*>(dy), stride, l.key_rows, width,
                    AddWeight<T>{to});
    add_column_sums(static_cast<const T*>(dy), l.key_rows, stride, width, to.bias);
    product<true>(RowMajor<T>{dy, stride}, l.key_rows, w_transposed, AddTo<T>{l.encoded_gradient, stride});
    for (Index i = 0; i < part; ++i) dy[i] = T(0);
  };
  const BlockView<T>& w = transposed.blocks[layer];
  through(l.keys_values_gradient, w.k, gradient.blocks[layer].k);
  through(l.keys_values_gradient + part, w.v, gradient.blocks[layer].v);
}

template <class T>
Index diffusion_loss(const LossCall<T>& call, const DenoiserGradient<T>& gradient, const Group& batch, T* memory) {
  const DenoiserCall<T>& forward = call.forward;
  const DenoiserView<T>& denoiser = forward.denoiser;
  LossMemory<T> l;
  carve_loss(denoiser, batch, memory, l);
  Group group = batch;
  group.members = l.members;
  for (Index i = 0, key_row = 0; i < batch.member_count; key_row += batch.members[i++].key_count) {
    l.members[i] = batch.members[i];
    l.members[i].keys = batch.counting;
    l.members[i].key_row = key_row;
  }
  const Index stride = round_up(denoiser.width, kLanes<T>), part = l.key_rows * stride;
  const Condition<T> condition{l.keys_values, 2 * part, part, stride};
  BackwardWorkspace<T> space(denoiser, condition, group, memory);
  const LossState<T> state{call, space.net, l, space.b};
  const Modulation<T> blocks = space.net.modulation_of(forward.block_modulation, 9 * denoiser.layers, forward.per_sample);
  const Modulation<T> last = space.net.modulation_of(forward.final_modulation, 2, forward.per_sample);
  state.read_condition(batch);
  space.net.prepare_condition();
  space.net.read(forward.x, forward.tokens, denoiser.channels, space.m.x_t, space.m.channel_stride);
  state.draw();
  space.net.predict(forward.position, blocks, last, space.tape_of());
  state.losses();
  if (call.encoded_gradient == nullptr) return space.net.hits;
  for (Index i = 0; i < part; ++i) l.encoded_gradient[i] = T(0);
  for (Index i = 0; i < 2 * part; ++i) l.keys_values_gradient[i] = T(0);
  space.b.dx = nullptr;  // x_0 is given
  const Backward<T> back{space.net, call.transposed, gradient, space.b, {l.keys_values_gradient, 0}};
  back.network(space.last_h(), blocks, last, gradient.block_modulation, gradient.final_modulation, space.tape_of(),
               [&](Index layer) { condition_backward(state, call.transposed, gradient, layer); });
  state.for_keys(batch, [&](Index row, Index place) {
    for (Index c = 0; c < denoiser.width; ++c) call.encoded_gradient[place + c] = l.encoded_gradient[row * stride + c];
  });
  return space.net.hits;
}

}  // namespace
}  // namespace rohydr

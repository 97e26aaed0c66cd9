// SPDX-License-Identifier: MIT
// The way back through the denoiser and through the reverse loop, for the rows of a group, by one thread. Gradients of
// weights are sums over rows, kept transposed, (inputs, outputs), like the panels of the forward:
//   dW' = X' dY, dX = dY W, and for a gated sum h + g y with y = X W' + b: dy = g dh, dg = the sum of dh y over rows.
#pragma once

#include "denoiser.h"
#include "few_gradients.h"

namespace rohydr {
namespace {

// Calls visit.operator()<V>(c) for every V vectors of columns, c the first: four side by side while there are as many,
// for the sum of a column over its rows is one long chain.
template <class T, class Visit>
RH_INLINE void for_columns(Index columns, const Visit& visit) {
  constexpr int N = kLanes<T>;
  Index c = 0;
  for (; c + 4 * N <= columns; c += 4 * N) visit.template operator()<4>(c);
  for (; c < columns; c += N) visit.template operator()<1>(c);
}

// sums (columns) += the sum of the rows.
template <class T>
void add_column_sums(const T* x, Index rows, Index stride, Index columns, T* sums) {
  constexpr int N = kLanes<T>;
  for_columns<T>(columns, [&]<int V>(Index c) {
    Vector<T, N> sum[V] = {};
    for (Index row = 0; row < rows; ++row) {
#pragma GCC unroll 4
      for (int v = 0; v < V; ++v) sum[v] = sum[v] + load<T, N>(x + row * stride + c + v * N);
    }
#pragma GCC unroll 4
    for (int v = 0; v < V; ++v) store<T, N>(sums + c + v * N, load<T, N>(sums + c + v * N) + sum[v]);
  });
}

// The way back through h + gate * branch for rows that share a gate: gated = gate * dh, dgate += sum of dh * branch.
template <class T>
void gate_backward(const T* dh, const T* branch, Index rows, Index stride, Index width, const T* gate, T* gated,
                   T* gate_gradient) {
  constexpr int N = kLanes<T>;
  for_columns<T>(width, [&]<int V>(Index c) {
    Vector<T, N> factor[V], sum[V] = {};
#pragma GCC unroll 4
    for (int v = 0; v < V; ++v) factor[v] = load<T, N>(gate + c + v * N);
    for (Index row = 0; row < rows; ++row) {
      const Index place = row * stride + c;
#pragma GCC unroll 4
      for (int v = 0; v < V; ++v) {
        const Vector<T, N> g = load<T, N>(dh + place + v * N);
        store<T, N>(gated + place + v * N, g * factor[v]);
        sum[v] = multiply_add<T, N>(g, load<T, N>(branch + place + v * N), sum[v]);
      }
    }
#pragma GCC unroll 4
    for (int v = 0; v < V; ++v) {
      T* const to = gate_gradient + c + v * N;
      store<T, N>(to, load<T, N>(to) + sum[v]);
    }
  });
}

// dh += the gradient of LN(h) (1 + scale) + shift, whose gradient is `gradient`; statistics from the forward.
template <class T>
void layer_norm_backward(const T* h, const T* statistics, const T* gradient, Index rows, Index width, Index stride,
                         const T* scale, T* dh, T* shift_gradient, T* scale_gradient) {
  constexpr int N = kLanes<T>;
  const T share = T(1) / static_cast<T>(width);
  for (Index first = 0; first < rows; first += 4) {
    const Index count = smaller(4, rows - first);
    Vector<T, N> total[4] = {}, product[4] = {};
    T mean_total[4], mean_product[4];
    for (Index c = 0; c < width; c += N) {
      const Vector<T, N> factor = load<T, N>(scale + c) + T(1);
      Vector<T, N> to_shift = load<T, N>(shift_gradient + c), to_scale = load<T, N>(scale_gradient + c);
#pragma GCC unroll 4
      for (Index r = 0; r < 4; ++r) {
        if (r >= count) break;
        const Index row = first + r;
        const Vector<T, N> g = load<T, N>(gradient + row * stride + c);
        const Vector<T, N> normal = (load<T, N>(h + row * stride + c) - statistics[2 * row]) * statistics[2 * row + 1];
        const Vector<T, N> scaled = g * factor;
        to_shift = to_shift + g;
        to_scale = multiply_add<T, N>(g, normal, to_scale);
        total[r] = total[r] + scaled;
        product[r] = multiply_add<T, N>(scaled, normal, product[r]);
      }
      store<T, N>(shift_gradient + c, to_shift);
      store<T, N>(scale_gradient + c, to_scale);
    }
    row_sums<N>(total, mean_total);
    row_sums<N>(product, mean_product);
    for (Index c = 0; c < width; c += N) {
      const Vector<T, N> factor = load<T, N>(scale + c) + T(1);
#pragma GCC unroll 4
      for (Index r = 0; r < 4; ++r) {
        if (r >= count) break;
        const Index row = first + r;
        const T inverse = statistics[2 * row + 1];
        const Vector<T, N> normal = (load<T, N>(h + row * stride + c) - statistics[2 * row]) * inverse;
        const Vector<T, N> scaled = load<T, N>(gradient + row * stride + c) * factor;
        const Vector<T, N> shifted = scaled - mean_total[r] * share;
        const Vector<T, N> centred = multiply_add<T, N>(normal, -(mean_product[r] * share), shifted);
        T* const place = dh + row * stride + c;
        store<T, N>(place, multiply_add<T, N>(centred, inverse, load<T, N>(place)));
      }
    }
  }
}

// hidden = GELU(before), gradient = value GELU'(before): one power serves both.
template <class T>
struct StoreGeluGradient {
  const T* before;
  T* hidden;
  T* gradient;
  Index stride;
  RH_INLINE void prefetch(Index row, Index column) const { __builtin_prefetch(before + row * stride + column); }
  RH_INLINE void operator()(Index row, Index column, Vector<T, kLanes<T>> value) const {
    constexpr int N = kLanes<T>;
    const Index place = row * stride + column;
    const Vector<T, N> x = load<T, N>(before + place);
    const Vector<T, N> sigmoid = T(1) / gelu_divisor<T, N>(x);
    const Vector<T, N> activation = x * sigmoid;
    constexpr T kCubic = T(6 * 0.79788456080286535588 * 0.044715), kLinear = T(2 * 0.79788456080286535588);
    const Vector<T, N> square = at_most<T, N>(x * x, T(1e4));  // the slope is 0 or 1 long before
    const Vector<T, N> inner = multiply_add<T, N>(square, kCubic, broadcast<T, N>(kLinear));
    const Vector<T, N> slope = multiply_add<T, N>(activation * (T(1) - sigmoid), inner, sigmoid);
    store<T, N>(hidden + place, activation);
    store<T, N>(gradient + place, value * slope);
  }
};

template <class T>
struct AddTo {
  T* out;
  Index stride;
  RH_INLINE void operator()(Index row, Index column, Vector<T, kLanes<T>> value) const {
    T* const place = out + row * stride + column;
    store<T, kLanes<T>>(place, value + load<T, kLanes<T>>(place));
  }
};

// dW' += value. What a tile adds to is on its way from a far cache while the tile is computed.
template <class T>
struct AddWeight {
  MatrixGradient<T> gradient;
  RH_INLINE T* place(Index row, Index column) const {
    return gradient.weight + panel_place<T>(gradient.columns, gradient.depth, row, column);
  }
  RH_INLINE void prefetch(Index row, Index column) const { __builtin_prefetch(place(row, column), 1); }
  RH_INLINE void operator()(Index row, Index column, Vector<T, kLanes<T>> value) const {
    T* const to = place(row, column);
    store<T, kLanes<T>>(to, value + load<T, kLanes<T>>(to));
  }
};

// The rest of the memory of a thread that goes back; see `Memory` for what the forward needs.
template <class T>
struct BackwardMemory {
  T* dh;          // (rows, stride) gradient of the residual stream
  T* gated;       // (rows, stride)
  T* dnormal;     // (rows, stride)
  T* rows_of_q;   // (rows, stride)
  T* dq;          // (rows, stride)
  T* dqkv;        // (rows, qkv_stride)
  T* dhidden;     // (rows, hidden_stride)
  T* dattended;   // (rows, stride)
  T* doutput;     // (rows, output_stride)
  T* dx;          // (rows, channel_stride) gradient of x_t
  T* dattended_lines;  // (width, lanes)
  T* dq_lines;         // (width, lanes)
  T* weights;          // (keys, plane_stride) of one head, and slopes next to them: see `HeadGradient`
  T* slopes;
  T* pair_rows;
  Index plane_stride;
  T* statistics;  // (rows, 2)
};

template <class T>
struct Backward {
  Network<T>& net;
  const TransposedView<T>& transposed;
  const DenoiserGradient<T>& gradient;
  const BackwardMemory<T>& b;
  ConditionGradient<T> condition_gradient;

  Index rows() const { return net.group.rows; }

  void normalise(const T* h, const Modulation<T>& modulation) const { net.normalise(h, modulation, b.statistics); }

  // dh += the way back through the LayerNorm, from b.dnormal.
  void through_norm(const T* h, const Modulation<T>& modulation, T* modulation_gradient) const {
    const Index stride = net.m.stride;
    net.for_tables(modulation.sample_stride, [&](Index first, Index last, Index offset) {
      T* const shift_gradient = modulation_gradient + offset;
      layer_norm_backward(h + first * stride, b.statistics + 2 * first, b.dnormal + first * stride, last - first,
                          net.denoiser.width, stride, modulation.rows + offset + stride, b.dh + first * stride,
                          shift_gradient, shift_gradient + stride);
    });
  }

  // dW' and db of Y = X W' + b with X given by `left` as (depth, rows).
  template <class Left>
  void weight_gradient(Left left, Index depth, const T* dy, Index dy_stride, Index columns,
                       const MatrixGradient<T>& to) const {
    product_of_rows(left, depth, dy, dy_stride, rows(), columns, AddWeight<T>{to});
    add_column_sums(dy, rows(), dy_stride, columns, to.bias);
  }

  // A plain product Y = X W' + b with X = m.normal: dW', db and b.dnormal.
  void through_projection(const T* dy, Index dy_stride, const PackedMatrix<T>& w_transposed,
                          const MatrixGradient<T>& to) const {
    const Memory<T>& m = net.m;
    weight_gradient(ChannelMajor<T>{m.normal, m.stride}, w_transposed.columns, dy, dy_stride, w_transposed.depth, to);
    product<true>(RowMajor<T>{dy, dy_stride}, rows(), w_transposed, Store<T>{b.dnormal, m.stride});
  }

  // b.gated, the gradient of the branch, from b.dh.
  void through_gate(const T* branch, const Modulation<T>& gate, T* gate_gradient) const {
    const Index stride = net.m.stride;
    net.for_tables(gate.sample_stride, [&](Index first, Index last, Index offset) {
      gate_backward(b.dh + first * stride, branch + first * stride, last - first, stride, net.denoiser.width,
                    gate.rows + offset, b.gated + first * stride, gate_gradient + offset);
    });
  }

  // dW' and db of a branch X W' + b, from b.gated.
  template <class Left>
  void through_branch(Left left, const MatrixGradient<T>& to) const {
    weight_gradient(left, to.depth, b.gated, net.m.stride, net.denoiser.width, to);
  }

  void through_attention(const T* q_lines, const T* q_rows, Index q_stride, const T* attended, const T* norms,
                         Index i, const KeysValues<T>& whole, T* k_gradient, T* v_gradient,
                         Index target_stride) const {
    const Memory<T>& m = net.m;
    const Member& member = net.group.members[i];
    const Index size = net.denoiser.width / net.denoiser.heads, first = member.first_row;
    const HeadGradient<T> head{q_lines + first,
                               attended + first,
                               b.dattended_lines + first,
                               b.dq_lines + first,
                               m.lanes,
                               norms + first,
                               m.lanes,
                               q_rows + first * q_stride,
                               b.dattended + first * m.stride,
                               q_stride,
                               m.stride,
                               b.weights,
                               b.slopes,
                               b.pair_rows,
                               b.plane_stride,
                               T(1) / square_root(static_cast<T>(size))};
    heads_gradients(head, member.rows, whole, size, net.denoiser.heads, k_gradient, v_gradient, target_stride);
  }

  void attended_gradient(const PackedMatrix<T>& out_transposed) const {
    const Memory<T>& m = net.m;
    product<true>(RowMajor<T>{b.gated, m.stride}, rows(), out_transposed, Store<T>{b.dattended, m.stride});
    transpose(static_cast<const T*>(b.dattended), m.stride, rows(), net.denoiser.width, b.dattended_lines, m.lanes);
  }

  // b.dh: from the gradient of tape.h[3] to that of tape.h[0].
  void block(Index layer, const Modulation<T>& modulation, T* modulation_gradient, const Tape<T>& tape) const {
    const Memory<T>& m = net.m;
    const Index width = net.denoiser.width;
    const BlockView<T>& wt = transposed.blocks[layer];
    const BlockGradient<T>& to = gradient.blocks[layer];
    const auto row = [&](int i) { return modulation.from(i * m.stride); };
    const auto row_gradient = [&](int i) { return modulation_gradient + i * m.stride; };

    through_gate(tape.branch[2], row(8), row_gradient(8));
    product<true>(RowMajor<T>{b.gated, m.stride}, rows(), wt.fc2,
            StoreGeluGradient<T>{tape.before_gelu, m.hidden, b.dhidden, m.hidden_stride});
    through_branch(ChannelMajor<T>{m.hidden, m.hidden_stride}, to.fc2);
    normalise(tape.h[2], row(6));
    through_projection(b.dhidden, m.hidden_stride, wt.fc1, to.fc1);
    through_norm(tape.h[2], row(6), row_gradient(6));

    through_gate(tape.branch[1], row(5), row_gradient(5));
    through_branch(RowMajor<T>{tape.attended[1], m.lanes}, to.cross_out);
    attended_gradient(wt.cross_out);
    transpose(static_cast<const T*>(tape.cross_q), m.lanes, width, rows(), b.rows_of_q, m.stride);
    for (Index i = 0; i < net.group.member_count; ++i) {
      T* const keys = condition_gradient.data + layer * condition_gradient.layer_size +
                      net.group.members[i].key_row * net.condition.stride;
      through_attention(tape.cross_q, b.rows_of_q, m.stride, tape.attended[1], tape.norms[1], i,
                        net.cross_keys(layer, i), keys, keys + net.condition.value_offset, net.condition.stride);
    }
    transpose(static_cast<const T*>(b.dq_lines), m.lanes, width, rows(), b.dq, m.stride);
    normalise(tape.h[1], row(3));
    through_projection(b.dq, m.stride, wt.q, to.q);
    through_norm(tape.h[1], row(3), row_gradient(3));

    through_gate(tape.branch[0], row(2), row_gradient(2));
    through_branch(RowMajor<T>{tape.attended[0], m.lanes}, to.self_out);
    attended_gradient(wt.self_out);
    transpose(static_cast<const T*>(tape.qkv), m.qkv_stride, rows(), width, m.q_lines, m.lanes);
    for (Index i = 0; i < rows() * m.qkv_stride; ++i) b.dqkv[i] = T(0);
    for (Index i = 0; i < net.group.member_count; ++i) {
      T* const keys = b.dqkv + net.group.members[i].first_row * m.qkv_stride + width;
      through_attention(m.q_lines, tape.qkv, m.qkv_stride, tape.attended[0], tape.norms[0], i,
                        net.self_keys(tape.qkv, net.group.members[i]), keys, keys + width, m.qkv_stride);
    }
    transpose(static_cast<const T*>(b.dq_lines), m.lanes, width, rows(), b.dq, m.stride);
    for (Index r = 0; r < rows(); ++r) {
      for (Index c = 0; c < width; ++c) b.dqkv[r * m.qkv_stride + c] = b.dq[r * m.stride + c];
    }
    normalise(tape.h[0], row(0));
    through_projection(b.dqkv, m.qkv_stride, wt.qkv, to.qkv);
    through_norm(tape.h[0], row(0), row_gradient(0));
  }

  // From b.doutput, the gradient of prediction and v; that of x_t is added to b.dx unless that is null.
  // `tape_of(layer)` is asked from the last layer on and gives complete tapes; h is the last one's h[3]. `after(layer)`
  // finds the gradients of the layer's keys and values.
  template <class TapeOf, class After>
  void network(const T* h, const Modulation<T>& block_modulation, const Modulation<T>& final_modulation,
               T* block_modulation_gradient, T* final_modulation_gradient, const TapeOf& tape_of,
               const After& after) const {
    const Memory<T>& m = net.m;
    const Index layers = net.denoiser.layers;
    normalise(h, final_modulation);
    through_projection(b.doutput, m.output_stride, transposed.out, gradient.out);
    for (Index i = 0; i < rows() * m.stride; ++i) b.dh[i] = T(0);
    through_norm(h, final_modulation, final_modulation_gradient);
    for (Index layer = layers - 1; layer >= 0; --layer) {
      block(layer, block_modulation.from(layer * 9 * m.stride), block_modulation_gradient + layer * 9 * m.stride,
            tape_of(layer));
      after(layer);
    }
    const T* const dh = b.dh;
    weight_gradient(ChannelMajor<T>{m.x_t, m.channel_stride}, net.denoiser.channels, dh, m.stride,
                    net.denoiser.width, gradient.in);
    if (b.dx == nullptr) return;
    product<true>(RowMajor<T>{dh, m.stride}, rows(), transposed.in, AddTo<T>{b.dx, m.channel_stride});
  }
};

}  // namespace
}  // namespace rohydr

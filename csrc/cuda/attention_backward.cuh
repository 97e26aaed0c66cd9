// SPDX-License-Identifier: MIT
// The way back through softmax(Q K') V, by recomputing the weights P. With O the result, G its gradient and
// D = rowsum(G O): dS = P (G V' - D), dQ = dS K, dK = dS' Q, dV = P' G. A warp takes 16 queries of one head and runs
// over the keys for dQ, then 16 keys and runs over the queries for dK and dV: nothing is added up by two warps. Q holds
// log2(e) / sqrt(head size) already, so P = 2^(Q K' - most) / sum.
#pragma once

#include "attention.cuh"

namespace rohydr {

constexpr float kLn2 = 0.6931471805599453f;

// Matrices (rows, W) as operands of E. rows(n, c): B of X Y' for rows 16 n and channels 16 c; columns(n, c): B of S Y.
template <class E>
struct RowsInShared;
template <class E>
struct PackedCondition;

template <>
struct RowsInShared<Bf16> {
  const Bf16* data;
  int stride;

  __device__ uint4 rows(int n, int c, int lane) const {
    std::uint32_t b[4];
    ptx::ldmatrix_x4(b, data + (n * kTile + (lane & 7) + (lane >> 4) * 8) * stride + c * kTile + ((lane >> 3) & 1) * 8);
    return make_uint4(b[0], b[1], b[2], b[3]);
  }
  __device__ uint4 columns(int n, int c, int lane) const {
    std::uint32_t b[4];
    ptx::ldmatrix_x4_trans(b, data + (n * kTile + (lane & 15)) * stride + c * kTile + (lane >> 4) * 8);
    return make_uint4(b[0], b[1], b[2], b[3]);
  }
};

// Rows in global memory that this block has written.
struct RowsInGlobal {
  const Bf16* data;
  int stride;

  __device__ uint4 rows(int n, int c, int lane) const {
    const Bf16* const from = data + static_cast<std::int64_t>(n * kTile + lane / 4) * stride + c * kTile + lane % 4 * 2;
    const auto at = [&](int row, int channel) {
      return *reinterpret_cast<const std::uint32_t*>(from + row * stride + channel);
    };
    return make_uint4(at(0, 0), at(0, 8), at(8, 0), at(8, 8));
  }
};

template <>
struct PackedCondition<Bf16> {
  const uint4 *by_rows, *by_columns;
  int channel_tiles;

  __device__ uint4 rows(int n, int c, int lane) const { return by_rows[(n * channel_tiles + c) * 32 + lane]; }
  __device__ uint4 columns(int n, int c, int lane) const { return by_columns[(n * channel_tiles + c) * 32 + lane]; }
};

// In float32 all of them are rows.
template <>
struct RowsInShared<float> {
  const float* data;
  int stride;
};
template <>
struct PackedCondition<float> : RowsInShared<float> {};

// 16 x 16 products of one head of `size` channels, which lie in KC tiles of channels; results as mma.sync gives them:
// s[j][i] of row lane / 4 + 8 (i / 2) and column 8 j + 2 (lane % 4) + i % 2.
template <class E, int KC>
struct Head;

template <int KC>
struct Head<Bf16, KC> {
  struct Left {
    std::uint32_t tile[KC][4];
  };
  int first, lane;  // tile of channels
  bool low, high;   // this thread's channels of the tile's halves are the head's

  __device__ Head(int head, int size, int lane) : first(head * size / kTile), lane(lane) {
    const int column = lane % 4 * 2 - head * size % kTile;
    low = KC > 1 || (column >= 0 && column < size);
    high = KC > 1 || (column + 8 >= 0 && column + 8 < size);
  }

  // Rows 16 n as the left operand; the other heads' channels count as 0.
  template <class Rows>
  __device__ void load(Left& to, const Rows& rows, int n) const {
#pragma unroll
    for (int c = 0; c < KC; ++c) {
      const uint4 b = rows.rows(n, first + c, lane);
      to.tile[c][0] = low ? b.x : 0, to.tile[c][1] = low ? b.z : 0;
      to.tile[c][2] = high ? b.y : 0, to.tile[c][3] = high ? b.w : 0;
    }
  }

  // s += X Y' of rows 16 n of Y.
  template <class Rows>
  __device__ void scores(float (&s)[2][4], const Left& x, const Rows& y, int n) const {
#pragma unroll
    for (int c = 0; c < KC; ++c) {
      const uint4 b = y.rows(n, first + c, lane);
      ptx::mma_bf16(s[0], x.tile[c], b.x, b.y);
      ptx::mma_bf16(s[1], x.tile[c], b.z, b.w);
    }
  }

  // out += S Y with rows 16 n of Y.
  template <class Rows>
  __device__ void add(float (&out)[KC][2][4], const float (&s)[2][4], const Rows& y, int n) const {
    const std::uint32_t left[4] = {ptx::pack_bf16(s[0][0], s[0][1]), ptx::pack_bf16(s[0][2], s[0][3]),
                                   ptx::pack_bf16(s[1][0], s[1][1]), ptx::pack_bf16(s[1][2], s[1][3])};
#pragma unroll
    for (int c = 0; c < KC; ++c) {
      const uint4 b = y.columns(n, first + c, lane);
      ptx::mma_bf16(out[c][0], left, b.x, b.y);
      ptx::mma_bf16(out[c][1], left, b.z, b.w);
    }
  }

  // sum[h] = the row sums of A B, of rows lane / 4 + 8 h.
  __device__ void row_sums(float (&sum)[2], const Left& a, const Left& b) const {
#pragma unroll
    for (int h = 0; h < 2; ++h) {
      sum[h] = 0.0f;
#pragma unroll
      for (int c = 0; c < KC; ++c) {
#pragma unroll
        for (int i = h; i < 4; i += 2) {
          const std::uint32_t x = a.tile[c][i], y = b.tile[c][i];
          sum[h] = fmaf(__uint_as_float(x << 16), __uint_as_float(y << 16), sum[h]);
          sum[h] = fmaf(__uint_as_float(x & 0xffff0000u), __uint_as_float(y & 0xffff0000u), sum[h]);
        }
      }
      sum[h] += __shfl_xor_sync(kFullWarp, sum[h], 1);
      sum[h] += __shfl_xor_sync(kFullWarp, sum[h], 2);
    }
  }
};

template <int KC>
struct Head<float, KC> {
  struct Left {
    const float* row[2];
  };
  int first, size, channel, lane;  // first tile of channels, and the head's first channel
  bool low, high;

  __device__ Head(int head, int size, int lane)
      : first(head * size / kTile), size(size), channel(head * size), lane(lane) {
    const int column = lane % 4 * 2 - head * size % kTile;
    low = KC > 1 || (column >= 0 && column < size);
    high = KC > 1 || (column + 8 >= 0 && column + 8 < size);
  }

  __device__ void load(Left& to, const RowsInShared<float>& rows, int n) const {
    to.row[0] = rows.data + static_cast<std::int64_t>(n * kTile + lane / 4) * rows.stride + channel;
    to.row[1] = to.row[0] + 8 * rows.stride;
  }

  __device__ void scores(float (&s)[2][4], const Left& x, const RowsInShared<float>& y, int n) const {
    const float* const from = y.data + static_cast<std::int64_t>(n * kTile + lane % 4 * 2) * y.stride + channel;
#pragma unroll 1
    for (int d = 0; d < size; d += 4) {
      const float4 a = *reinterpret_cast<const float4*>(x.row[0] + d);
      const float4 b = *reinterpret_cast<const float4*>(x.row[1] + d);
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        const float4 k = *reinterpret_cast<const float4*>(from + (8 * (i / 2) + i % 2) * y.stride + d);
        s[i / 2][i % 2] = dot4(a, k, s[i / 2][i % 2]);
        s[i / 2][2 + i % 2] = dot4(b, k, s[i / 2][2 + i % 2]);
      }
    }
  }

  __device__ void add(float (&out)[KC][2][4], const float (&s)[2][4], const RowsInShared<float>& y, int n) const {
    const float* from = y.data + static_cast<std::int64_t>(n) * kTile * y.stride + first * kTile + lane % 4 * 2;
#pragma unroll
    for (int i = 0; i < 4; ++i) {
#pragma unroll 1
      for (int t = 0; t < 4; ++t) {  // the neighbour that has columns 8 (i / 2) + 2 t + i % 2
        const int source = (lane & ~3) | t;
        const float weight[2] = {__shfl_sync(kFullWarp, s[i / 2][i % 2], source),
                                 __shfl_sync(kFullWarp, s[i / 2][2 + i % 2], source)};
        const float* const row = from + (8 * (i / 2) + 2 * t + i % 2) * y.stride;
#pragma unroll
        for (int c = 0; c < 2 * KC; ++c) {
          const float2 value = *reinterpret_cast<const float2*>(row + 8 * c);
#pragma unroll
          for (int h = 0; h < 2; ++h) {
            out[c / 2][c % 2][2 * h] = fmaf(weight[h], value.x, out[c / 2][c % 2][2 * h]);
            out[c / 2][c % 2][2 * h + 1] = fmaf(weight[h], value.y, out[c / 2][c % 2][2 * h + 1]);
          }
        }
      }
    }
  }

  __device__ void row_sums(float (&sum)[2], const Left& a, const Left& b) const {
#pragma unroll
    for (int h = 0; h < 2; ++h) {
      sum[h] = 0.0f;
#pragma unroll 1
      for (int d = lane % 4; d < size; d += 4) sum[h] = fmaf(a.row[h][d], b.row[h][d], sum[h]);
      sum[h] += __shfl_xor_sync(kFullWarp, sum[h], 1);
      sum[h] += __shfl_xor_sync(kFullWarp, sum[h], 2);
    }
  }
};

// visit(row, channel, first, second) for the pairs of neighbours of this thread, times `scale`, rows from 16 n on.
template <class E, int KC, class Visit>
__device__ __forceinline__ void for_head(const Head<E, KC>& head, const float (&out)[KC][2][4], int n, float scale,
                         const Visit& visit) {
#pragma unroll
  for (int c = 0; c < 2 * KC; ++c) {
#pragma unroll
    for (int h = 0; h < 2; ++h) {
      if (c % 2 == 0 ? head.low : head.high) {
        visit(n * kTile + head.lane / 4 + 8 * h, head.first * kTile + 8 * c + head.lane % 4 * 2,
              out[c / 2][c % 2][2 * h] * scale, out[c / 2][c % 2][2 * h + 1] * scale);
      }
    }
  }
}

// For each row of a head the largest score, 1 / sum and D, in shared memory.
struct AttentionSums {
  float* data;
  int heads;

  __device__ float* at(int row, int head) const { return data + (row * heads + head) * 3; }
};

// dQ of 16 queries, to store(row, channel, first, second); leaves their sums for `backward_of_keys`.
template <class E, int KC, class Queries, class Results, class Keys, class Store>
__device__ __forceinline__ void backward_of_queries(
    int head, int size, int n, const Queries& q, const Queries& gradient, const Results& result, const Keys& k,
    const Keys& v, int count, const AttentionSums& sums, const Store& store) {
  const int lane = ptx::thread_index() % 32;
  const Head<E, KC> part(head, size, lane);
  typename Head<E, KC>::Left rows, upper;
  float difference[2];
  part.load(rows, result, n);
  part.load(upper, gradient, n);
  part.row_sums(difference, upper, rows);
  part.load(rows, q, n);
  Softmax softmax;
  const int tiles = (count + kTile - 1) / kTile;
#pragma unroll 1
  for (int i = 0; i < tiles; ++i) {
    float s[2][4] = {}, scale[2];
    part.scores(s, rows, k, i);
    softmax.template add<true>(s, count - i * kTile, lane, scale);
  }
  const float inverse[2] = {count > 0 ? softmax.inverse(0) : 0.0f, count > 0 ? softmax.inverse(1) : 0.0f};
  if (lane % 4 == 0) {
#pragma unroll
    for (int h = 0; h < 2; ++h) {
      float* const to = sums.at(n * kTile + lane / 4 + 8 * h, head);
      to[0] = softmax.most[h], to[1] = inverse[h], to[2] = difference[h];
    }
  }
  float out[KC][2][4] = {};
#pragma unroll 1
  for (int i = 0; i < tiles; ++i) {
    float s[2][4] = {}, of_weight[2][4] = {};
    part.scores(s, rows, k, i);
    part.scores(of_weight, upper, v, i);
#pragma unroll
    for (int e = 0; e < 8; ++e) {
      const int h = e / 2 % 2;
      const bool exists = i * kTile + 8 * (e / 4) + lane % 4 * 2 + e % 2 < count;
      const float weight = exists ? ptx::exp2_approx(s[e / 4][e % 4] - softmax.most[h]) * inverse[h] : 0.0f;
      s[e / 4][e % 4] = weight * (of_weight[e / 4][e % 4] - difference[h]);
    }
    part.add(out, s, k, i);
  }
  for_head(part, out, n, rsqrtf(static_cast<float>(size)), store);
}

// dK and dV of 16 keys from all `rows` queries (whole tiles; those that do not exist have no gradient).
template <class E, int KC, class Queries, class Keys, class StoreKey, class StoreValue>
__device__ __forceinline__ void backward_of_keys(
    int head, int size, int n, const Queries& q, const Queries& gradient, int rows, const Keys& k, const Keys&
    v, const AttentionSums& sums, const StoreKey& store_key, const StoreValue& store_value) {
  const int lane = ptx::thread_index() % 32;
  const Head<E, KC> part(head, size, lane);
  typename Head<E, KC>::Left keys, values;
  part.load(keys, k, n);
  part.load(values, v, n);
  float of_key[KC][2][4] = {}, of_value[KC][2][4] = {};
#pragma unroll 1
  for (int i = 0; i < rows / kTile; ++i) {
    float s[2][4] = {}, of_weight[2][4] = {};
    part.scores(s, keys, q, i);
    part.scores(of_weight, values, gradient, i);
#pragma unroll
    for (int column = 0; column < 4; ++column) {
      const float* const sum = sums.at(i * kTile + 8 * (column / 2) + lane % 4 * 2 + column % 2, head);
      const float most = sum[0], inverse = sum[1], difference = sum[2];
#pragma unroll
      for (int h = 0; h < 2; ++h) {
        float &weight = s[column / 2][2 * h + column % 2], &other = of_weight[column / 2][2 * h + column % 2];
        weight = ptx::exp2_approx(weight - most) * inverse;
        other = weight * (other - difference);
      }
    }
    part.add(of_value, s, gradient, i);
    part.add(of_key, of_weight, q, i);
  }
  for_head(part, of_key, n, kLn2, store_key);
  for_head(part, of_value, n, 1.0f, store_value);
}

// dQ, then dK and dV, of all heads of `rows` queries, by all warps. Ends with a barrier.
template <class E, int KC, class Queries, class Results, class Keys, class Store, class StoreKey, class StoreValue>
__device__ __forceinline__ void attention_backward(
    int size, const Queries& q, const Queries& gradient, const Results& result, int rows, const Keys& k, const
    Keys& v, int count, const AttentionSums& sums, const Store& store, const StoreKey& store_key, const
    StoreValue& store_value) {
  const int warp = ptx::thread_index() / 32, warps = static_cast<int>(blockDim.x) / 32, heads = sums.heads;
#pragma unroll 1
  for (int unit = warp; unit < heads * (rows / kTile); unit += warps) {
    backward_of_queries<E, KC>(unit % heads, size, unit / heads, q, gradient, result, k, v, count, sums, store);
  }
  __syncthreads();  // the sums of all rows are there
#pragma unroll 1
  for (int unit = warp; unit < heads * ((count + kTile - 1) / kTile); unit += warps) {
    backward_of_keys<E, KC>(unit % heads, size, unit / heads, q, gradient, rows, k, v, sums, store_key, store_value);
  }
  __syncthreads();  // what was stored is seen by all, and nobody reads Q and the gradient any more
}

template <class E, int W, class Queries, class Results, class Keys, class Store, class StoreKey, class StoreValue>
__device__ __forceinline__ void attention_backward_any(
    const Queries& q, const Queries& gradient, const Results& result, int rows, const Keys& k, const Keys& v,
    int count, const AttentionSums& sums, const Store& store, const StoreKey& store_key, const StoreValue&
    store_value) {
  const int size = W / sums.heads;
  if (size <= 16) {
    attention_backward<E, 1>(size, q, gradient, result, rows, k, v, count, sums, store, store_key, store_value);
  } else if (W == 32 || size == 32) {
    attention_backward<E, 2>(size, q, gradient, result, rows, k, v, count, sums, store, store_key, store_value);
  } else {
    attention_backward<E, W == 32 ? 2 : 4>(size, q, gradient, result, rows, k, v, count, sums, store, store_key,
                                           store_value);
  }
}

}  // namespace rohydr

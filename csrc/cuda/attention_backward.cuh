// SPDX-License-Identifier: MIT
// The way back through softmax(Q K') V, whose weights P are computed again. With O the result, G its gradient and
// D = rowsum(G O): dS = P (G V' - D), dQ = dS K, dK = dS' Q, dV = P' G. A warp takes 16 queries of one head and runs
// over the keys for dQ, or 16 keys and runs over the queries for dK and dV: nothing is added up by two warps. Q holds
// log2(e) / sqrt(head size) already, so P = 2^(Q K' - the kept logarithm of AttentionSums).
#pragma once

#include "attention.cuh"
#include "attention_rows.cuh"

namespace rohydr {

constexpr float kLn2 = 0.6931471805599453f;

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

  // B of a tile of keys: for their scores, for the values' products, and for what they add. They may come a tile ahead.
  struct Keys {
    uint4 key[KC], value[KC], column[KC];
  };
  template <class Rows>
  __device__ void load_keys(Keys& to, const Rows& k, const Rows& v, int n) const {
#pragma unroll
    for (int c = 0; c < KC; ++c) {
      to.key[c] = k.rows(n, first + c, lane);
      to.value[c] = v.rows(n, first + c, lane);
      to.column[c] = k.columns(n, first + c, lane);
    }
  }
  // s += X Y' with B of 16 rows of Y; those of Y itself are asked for where they did not come ahead.
  template <class Rows>
  __device__ void scores_of(float (&s)[2][4], const Left& x, const uint4 (&b)[KC], const Rows&, int) const {
#pragma unroll
    for (int c = 0; c < KC; ++c) {
      ptx::mma_bf16(s[0], x.tile[c], b[c].x, b[c].y);
      ptx::mma_bf16(s[1], x.tile[c], b[c].z, b[c].w);
    }
  }
  template <class Rows>
  __device__ void scores(float (&s)[2][4], const Left& x, const Rows& y, int n) const {
    uint4 b[KC];
#pragma unroll
    for (int c = 0; c < KC; ++c) b[c] = y.rows(n, first + c, lane);
    scores_of(s, x, b, y, n);
  }

  // out += S Y, in the same two ways.
  template <class Rows>
  __device__ void add_of(float (&out)[KC][2][4], const float (&s)[2][4], const uint4 (&b)[KC], const Rows&, int) const {
    const std::uint32_t left[4] = {ptx::pack_bf16(s[0][0], s[0][1]), ptx::pack_bf16(s[0][2], s[0][3]),
                                   ptx::pack_bf16(s[1][0], s[1][1]), ptx::pack_bf16(s[1][2], s[1][3])};
#pragma unroll
    for (int c = 0; c < KC; ++c) {
      ptx::mma_bf16(out[c][0], left, b[c].x, b[c].y);
      ptx::mma_bf16(out[c][1], left, b[c].z, b[c].w);
    }
  }
  template <class Rows>
  __device__ void add(float (&out)[KC][2][4], const float (&s)[2][4], const Rows& y, int n) const {
    uint4 b[KC];
#pragma unroll
    for (int c = 0; c < KC; ++c) b[c] = y.columns(n, first + c, lane);
    add_of(out, s, b, y, n);
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

  // Rows lie in memory, and nothing comes ahead.
  struct Keys {
    int key, value, column;
  };
  __device__ void load_keys(Keys&, const RowsInShared<float>&, const RowsInShared<float>&, int) const {}
  __device__ void scores_of(float (&s)[2][4], const Left& x, int, const RowsInShared<float>& y, int n) const {
    scores(s, x, y, n);
  }
  __device__ void add_of(float (&out)[KC][2][4], const float (&s)[2][4], int, const RowsInShared<float>& y,
                         int n) const {
    add(out, s, y, n);
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

// dQ of queries 16 n.
template <class E, int KC>
struct QueryGradient {
  float logarithm[2];
  typename Head<E, KC>::Left results;

  // What the forward has kept.
  template <class Results>
  __device__ void load(int head, int size, int n, const Results& result, const AttentionSums& kept) {
    const Head<E, KC> part(head, size, ptx::thread_index() % 32);
#pragma unroll
    for (int h = 0; h < 2; ++h) logarithm[h] = *kept.at(n * kTile + part.lane / 4 + 8 * h, head);
    part.load(results, result, n);
  }

  // dQ to store(row, channel, first, second); what was kept, with D, to `sums`, for KeyGradient. Rows of K and V from
  // `count` on must be zeros, or with kMasked may be anything.
  template <bool kMasked, class Queries, class Gradient, class Keys, class Store>
  __device__ __forceinline__ void run(int head, int size, int n, const Queries& q, const Gradient& gradient,
                                      const Keys& k, const Keys& v, int count, const AttentionSums& sums,
                                      const Store& store) const {
    const int lane = ptx::thread_index() % 32;
    const Head<E, KC> part(head, size, lane);
    typename Head<E, KC>::Left rows, upper;
    float difference[2];
    part.load(rows, q, n);
    part.load(upper, gradient, n);
    part.row_sums(difference, upper, results);
    if (lane % 4 == 0) {
#pragma unroll
      for (int h = 0; h < 2; ++h) {
        float2* const to = reinterpret_cast<float2*>(sums.at(n * kTile + lane / 4 + 8 * h, head));
        *to = make_float2(logarithm[h], difference[h]);
      }
    }
    float out[KC][2][4] = {};
    const int tiles = (count + kTile - 1) / kTile;
    constexpr bool kAhead = KC != 2;  // where there are registers for it
    typename Head<E, KC>::Keys now, next{};
    if (kAhead && tiles > 0) part.load_keys(next, k, v, 0);
#pragma unroll 1
    for (int i = 0; i < tiles; ++i) {
      if (kAhead) now = next;
      if (kAhead && i + 1 < tiles) part.load_keys(next, k, v, i + 1);
      if (!kAhead) part.load_keys(now, k, v, i);
      float s[2][4] = {}, of_weight[2][4] = {};
      part.scores_of(s, rows, now.key, k, i);
      part.scores_of(of_weight, upper, now.value, v, i);
#pragma unroll
      for (int e = 0; e < 8; ++e) {
        const int h = e / 2 % 2;
        float& score = s[e / 4][e % 4];
        float exponent = fminf(score - logarithm[h], 0.0f);  // of a row of zeros it could be any
        if (kMasked && i * kTile + 8 * (e / 4) + lane % 4 * 2 + e % 2 >= count) exponent = -INFINITY;
        score = ptx::exp2_approx(exponent) * (of_weight[e / 4][e % 4] - difference[h]);
      }
      part.add_of(out, s, now.column, k, i);
    }
    for_head(part, out, n, rsqrtf(static_cast<float>(size)), store);
  }
};

// dK and dV of keys 16 n, summed over queries and steps.
template <class E, int KC>
struct KeyGradient {
  Head<E, KC> part;
  int n;
  typename Head<E, KC>::Left keys, values;
  float of_key[KC][2][4] = {}, of_value[KC][2][4] = {};

  template <class Keys>
  __device__ KeyGradient(int head, int size, int n, const Keys& k, const Keys& v)
      : part(head, size, ptx::thread_index() % 32), n(n) {
    part.load(keys, k, n);
    part.load(values, v, n);
  }

  // From `rows` queries (whole tiles; those that do not exist have no gradient).
  template <class Rows>
  __device__ void add(int head, const Rows& q, const Rows& gradient, int rows, const AttentionSums& sums) {
#pragma unroll 1
    for (int i = 0; i < rows / kTile; ++i) {
      float s[2][4] = {}, of_weight[2][4] = {};
      part.scores(s, keys, q, i);
      part.scores(of_weight, values, gradient, i);
#pragma unroll
      for (int j = 0; j < 2; ++j) {  // neighbours: a logarithm and D each
        const float4 pair = *reinterpret_cast<const float4*>(sums.at(i * kTile + 8 * j + part.lane % 4 * 2, head));
#pragma unroll
        for (int e = 0; e < 4; ++e) {
          const float weight = ptx::exp2_approx(s[j][e] - (e % 2 == 0 ? pair.x : pair.z));
          s[j][e] = weight;
          of_weight[j][e] = weight * (of_weight[j][e] - (e % 2 == 0 ? pair.y : pair.w));
        }
      }
      part.add(of_value, s, gradient, i);
      part.add(of_key, of_weight, q, i);
    }
  }

  template <class Store>
  __device__ void give_key(const Store& store) const { for_head(part, of_key, n, kLn2, store); }
  template <class Store>
  __device__ void give_value(const Store& store) const { for_head(part, of_value, n, 1.0f, store); }
};

// visit(the number of tiles of channels that hold a head, as a type).
template <bool kLargeHeads, class Visit>
__device__ __forceinline__ void for_head_size(int size, const Visit& visit) {
  if constexpr (kLargeHeads) {
    visit(std::integral_constant<int, 4>{});
  } else if (size <= 16) {
    visit(std::integral_constant<int, 1>{});
  } else {
    visit(std::integral_constant<int, 2>{});
  }
}

}  // namespace rohydr

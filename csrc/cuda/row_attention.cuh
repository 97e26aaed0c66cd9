// SPDX-License-Identifier: MIT
// softmax(Q K') V for 16 rows by one warp, with Q, the scores and the result in registers as fragments of mma.m16n8k16.
// Q holds log2(e) / sqrt(head size) already. Keys come in tiles of 16, of which only existing ones count; without any
// the result is 0. Weights are 2^score with no maximum taken off, as long as their sums stay in range.
#pragma once

#include "attention.cuh"

namespace rohydr {

// Sums outside lose bits, or are nothing or infinite: then the maximum is taken off.
constexpr float kLeastSum = 0x1p-100f, kMostSum = 0x1p100f;

// The scores of this thread's rows with keys of a tile: [j][i] of key 8 j + 2 (lane % 4) + i % 2.
template <int KC>
__device__ void scores(float (&s)[2][4], const std::uint32_t (*q)[4], const uint4* keys) {
  ptx::mma_bf16_first(s[0], q[0], keys[0].x, keys[0].y);
  ptx::mma_bf16_first(s[1], q[0], keys[0].z, keys[0].w);
#pragma unroll
  for (int c = 1; c < KC; ++c) {
    ptx::mma_bf16(s[0], q[c], keys[c].x, keys[c].y);
    ptx::mma_bf16(s[1], q[c], keys[c].z, keys[c].w);
  }
}

// Without the keys from `count` on.
__device__ inline void cut(float (&s)[2][4], int count, int lane) {
#pragma unroll
  for (int i = 0; i < 8; ++i) {
    if (8 * (i / 4) + lane % 4 * 2 + i % 2 >= count) s[i / 4][i % 4] = -INFINITY;
  }
}

// 2^(score - most) of the two rows, as an operand.
__device__ inline void weights_of(std::uint32_t (&p)[4], const float (&s)[2][4], float first = 0.0f,
                                  float second = 0.0f) {
#pragma unroll
  for (int i = 0; i < 4; ++i) {
    const float most = i % 2 == 0 ? first : second;
    const float* const from = &s[i / 2][i % 2 * 2];
    p[i] = ptx::pack_bf16(ptx::exp2_approx(from[0] - most), ptx::exp2_approx(from[1] - most));
  }
}

// All heads of KC tiles of channels each, that T tiles hold. `reader` stands at their first. Of few heads two tiles of
// keys are taken together: their products do not wait for each other.
template <int T, int KC, class Reader>
struct Heads {
  static constexpr int kHeads = T / KC, kTogether = T <= 2 ? kReadAhead : 1;

  Reader reader;
  float out[2 * T][4] = {}, sum[kHeads][4] = {};
  uint4 key[kTogether][T], value[kTogether][T];  // of the next tiles of keys, as operands

  __device__ explicit Heads(const Reader& reader) : reader(reader) {}

  __device__ void load_keys() {
#pragma unroll
    for (int i = 0; i < kTogether * T; ++i) key[i / T][i % T] = reader.key(i / T, i % T);
    reader.advance_keys(kTogether);
  }
  __device__ void load_values() {
#pragma unroll
    for (int i = 0; i < kTogether * T; ++i) value[i / T][i % T] = reader.value(i / T, i % T);
    reader.advance_values(kTogether);
  }

  // kCount tiles that are there; the next ones are on their way after it. Or the last, of which `count` keys exist.
  template <int kCount, bool kLast>
  __device__ void add(const std::uint32_t (&q)[T][4], int count, int lane) {
    float s[kCount][kHeads][2][4];
#pragma unroll
    for (int i = 0; i < kCount * kHeads; ++i) {
      const int n = i / kHeads, h = i % kHeads;
      scores<KC>(s[n][h], q + h * KC, key[n] + h * KC);
    }
    if (!kLast) load_keys();
#pragma unroll
    for (int i = 0; i < kCount * kHeads; ++i) {
      const int n = i / kHeads, h = i % kHeads;
      if (kLast && n == kCount - 1) cut(s[n][h], count, lane);
      std::uint32_t p[4];
      weights_of(p, s[n][h]);
      ptx::mma_bf16(sum[h], p, kOnes, kOnes);
#pragma unroll
      for (int c = h * KC; c < (h + 1) * KC; ++c) {
        ptx::mma_bf16(out[2 * c], p, value[n][c].x, value[n][c].y);
        ptx::mma_bf16(out[2 * c + 1], p, value[n][c].z, value[n][c].w);
      }
    }
    if (!kLast) load_values();
  }

  __device__ void run(const std::uint32_t (&q)[T][4], int count, int lane) {
    load_keys();
    load_values();
#pragma unroll 1
    for (; count > kTogether * kTile; count -= kTogether * kTile) add<kTogether, false>(q, kTile, lane);
    if (kTogether == 1 || count <= kTile) {
      add<1, true>(q, count, lane);
    } else {
      add<kTogether, true>(q, count - kTile, lane);
    }
  }

  __device__ bool in_range() const {
    bool good = true;
#pragma unroll
    for (int i = 0; i < 2 * kHeads; ++i) {
      const float s = sum[i / 2][i % 2 * 2];
      good = good && s >= kLeastSum && s <= kMostSum;
    }
    return good;
  }
};

// One head of KC tiles of channels, the first of which is tile `first` of the reader, with the maximum taken off. Of a
// tile that several heads share `q` holds only this one's channels, and `mine` says which results are its.
template <int KC, class Reader>
__device__ void attend_head(float (&out)[2 * KC][4], const std::uint32_t (*q)[4], const Reader& reader, int first,
                            int count, int lane) {
  float most[2] = {-INFINITY, -INFINITY}, sum[4] = {};
  const auto scores_of = [&](float (&s)[2][4], int n) {
    uint4 keys[KC];
#pragma unroll
    for (int c = 0; c < KC; ++c) keys[c] = reader.key(n, first + c);
    scores<KC>(s, q, keys);
    cut(s, count - n * kTile, lane);
  };
#pragma unroll 1
  for (int n = 0; n * kTile < count; ++n) {
    float s[2][4];
    scores_of(s, n);
#pragma unroll
    for (int i = 0; i < 8; ++i) most[i / 2 % 2] = fmaxf(most[i / 2 % 2], s[i / 4][i % 4]);
  }
#pragma unroll
  for (int h = 0; h < 2; ++h) {
    most[h] = fmaxf(most[h], __shfl_xor_sync(kFullWarp, most[h], 1));
    most[h] = fmaxf(most[h], __shfl_xor_sync(kFullWarp, most[h], 2));
  }
#pragma unroll
  for (int i = 0; i < 8 * KC; ++i) out[i / 4][i % 4] = 0.0f;
#pragma unroll 1
  for (int n = 0; n * kTile < count; ++n) {
    float s[2][4];
    scores_of(s, n);
    std::uint32_t p[4];
    weights_of(p, s, most[0], most[1]);
    ptx::mma_bf16(sum, p, kOnes, kOnes);
#pragma unroll
    for (int c = 0; c < KC; ++c) {
      const uint4 value = reader.value(n, first + c);
      ptx::mma_bf16(out[2 * c], p, value.x, value.y);
      ptx::mma_bf16(out[2 * c + 1], p, value.z, value.w);
    }
  }
  const float inverse[2] = {ptx::rcp_approx(sum[0]), ptx::rcp_approx(sum[2])};
#pragma unroll
  for (int i = 0; i < 8 * KC; ++i) out[i / 4][i % 4] *= inverse[i / 2 % 2];
}

// Two tiles of 8 columns of a product, as an operand of the next.
__device__ inline void pack_tile(std::uint32_t (&a)[4], const float (&low)[4], const float (&high)[4]) {
  a[0] = ptx::pack_bf16(low[0], low[1]);
  a[1] = ptx::pack_bf16(low[2], low[3]);
  a[2] = ptx::pack_bf16(high[0], high[1]);
  a[3] = ptx::pack_bf16(high[2], high[3]);
}

// Heads of `size` channels, 4 or 8, in each of T tiles: `o` the result as an operand.
template <int T, class Reader>
__device__ void attend_small_heads(std::uint32_t (&o)[T][4], const std::uint32_t (&q)[T][4], const Reader& reader,
                                   int count, int size, int lane) {
#pragma unroll
  for (int c = 0; c < T; ++c) {
    float all[2][4] = {};
#pragma unroll 1
    for (int head = 0; head < kTile / size; ++head) {
      const bool low = lane % 4 * 2 / size == head, high = (8 + lane % 4 * 2) / size == head;
      const std::uint32_t mine[1][4] = {{low ? q[c][0] : 0, low ? q[c][1] : 0, high ? q[c][2] : 0, high ? q[c][3] : 0}};
      float out[2][4];
      attend_head<1>(out, mine, reader, c, count, lane);
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        if (low) all[0][i] = out[0][i];
        if (high) all[1][i] = out[1][i];
      }
    }
    pack_tile(o[c], all[0], all[1]);
  }
}

// Heads of 16 KC channels in T tiles.
template <int T, int KC, class Reader>
__device__ void attend_heads(std::uint32_t (&o)[T][4], const std::uint32_t (&q)[T][4], const Reader& reader, int count,
                             int lane) {
  Heads<T, KC, Reader> heads(reader);
  heads.run(q, count, lane);
  if (__ballot_sync(kFullWarp, heads.in_range()) == kFullWarp) {
#pragma unroll
    for (int h = 0; h < T / KC; ++h) {
      const float first = ptx::rcp_approx(heads.sum[h][0]), second = ptx::rcp_approx(heads.sum[h][2]);
#pragma unroll
      for (int i = 8 * h * KC; i < 8 * (h + 1) * KC; ++i) heads.out[i / 4][i % 4] *= i / 2 % 2 == 0 ? first : second;
    }
#pragma unroll
    for (int c = 0; c < T; ++c) pack_tile(o[c], heads.out[2 * c], heads.out[2 * c + 1]);
    return;
  }
  // Rarely: so not once for each head, which would keep the usual way out of the instruction cache.
#pragma unroll 1
  for (int head = 0; head < T / KC; ++head) {
    std::uint32_t mine[KC][4];
    float out[2 * KC][4];
#pragma unroll
    for (int i = 0; i < 4 * T; ++i) {
      if (i / 4 / KC == head) mine[i / 4 % KC][i % 4] = q[i / 4][i % 4];
    }
    attend_head<KC>(out, mine, reader, head * KC, count, lane);
#pragma unroll
    for (int c = 0; c < T; ++c) {
      if (c / KC == head) pack_tile(o[c], out[2 * (c % KC)], out[2 * (c % KC) + 1]);
    }
  }
}

}  // namespace rohydr

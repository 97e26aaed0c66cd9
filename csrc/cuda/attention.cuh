// SPDX-License-Identifier: MIT
// softmax(Q K') V of one head for 16 rows, by one warp. Keys come in chunks whose scores stay in registers; between
// chunks the sums are scaled to the new maximum. Q holds log2(e) / sqrt(head size) already. No key
// exists twice, and only existing ones are given; without any the result is 0.
#pragma once

#include "tiles.cuh"

namespace rohydr {

constexpr std::uint32_t kOnes = 0x3F803F80;  // twice 1 in bfloat16: the sum of weights is one more column of P V

// Keys and values in shared memory, as the projection left them: rows of keys, `values` columns further on the values.
template <class E>
struct SharedKeys {
  const E* data;
  int stride, values, count;
};

// Keys and values of the condition, packed by pack.cuh: in bfloat16 as B of the two products, (2, tiles of keys,
// tiles of channels, 32 pieces); in float32 as rows, (2, 16 tiles of keys, W).
struct PackedKeys {
  const uint4* data;
  int key_tiles, channel_tiles, count;
};

// B of Q K' for keys 16 n and of P V, for the channels 16 c from `first` on: n counts from the chunk that it stands at.
class FragmentReader {
 public:
  __device__ FragmentReader(const SharedKeys<Bf16>& keys, int first, int lane)
      : keys_(keys.data + ((lane & 7) + (lane >> 4) * 8) * keys.stride + first * kTile + ((lane >> 3) & 1) * 8),
        values_(keys.data + keys.values + (lane & 15) * keys.stride + first * kTile + (lane >> 4) * 8),
        step_(kTile * keys.stride) {}

  __device__ uint4 key(int n, int c) const {
    std::uint32_t b[4];
    ptx::ldmatrix_x4(b, keys_ + n * step_ + c * kTile);
    return make_uint4(b[0], b[1], b[2], b[3]);
  }
  __device__ uint4 value(int n, int c) const {
    std::uint32_t b[4];
    ptx::ldmatrix_x4_trans(b, values_ + n * step_ + c * kTile);
    return make_uint4(b[0], b[1], b[2], b[3]);
  }
  __device__ void advance_keys(int tiles) { keys_ += tiles * step_; }
  __device__ void advance_values(int tiles) { values_ += tiles * step_; }
  __device__ void advance(int tiles) {
    advance_keys(tiles);
    advance_values(tiles);
  }

 private:
  const Bf16 *keys_, *values_;
  int step_;
};

class PackedReader {
 public:
  __device__ PackedReader(const PackedKeys& keys, int first, int lane)
      : keys_(keys.data + first * 32 + lane),
        values_(keys_ + keys.key_tiles * keys.channel_tiles * 32),
        step_(keys.channel_tiles * 32) {}

  __device__ uint4 key(int n, int c) const { return ptx::load_16(keys_ + n * step_ + c * 32); }
  __device__ uint4 value(int n, int c) const { return ptx::load_16(values_ + n * step_ + c * 32); }
  __device__ void advance_keys(int tiles) { keys_ += tiles * step_; }
  __device__ void advance_values(int tiles) { values_ += tiles * step_; }
  __device__ void advance(int tiles) {
    advance_keys(tiles);
    advance_values(tiles);
  }

 private:
  const uint4 *keys_, *values_;
  int step_;
};

__device__ inline FragmentReader reader_of(const SharedKeys<Bf16>& keys, int first, int lane) {
  return {keys, first, lane};
}
__device__ inline PackedReader reader_of(const PackedKeys& keys, int first, int lane) { return {keys, first, lane}; }

__device__ inline const float* key_row(const SharedKeys<float>& keys, int key) { return keys.data + key * keys.stride; }
__device__ inline const float* value_row(const SharedKeys<float>& keys, int key) {
  return key_row(keys, key) + keys.values;
}
__device__ inline const float* key_row(const PackedKeys& keys, int key) {
  return reinterpret_cast<const float*>(keys.data) + static_cast<std::int64_t>(key) * keys.channel_tiles * kTile;
}
__device__ inline const float* value_row(const PackedKeys& keys, int key) {
  return key_row(keys, key + keys.key_tiles * kTile);
}

// The maximum of a thread's two rows so far, and the sum of its own keys' weights.
struct Softmax {
  float most[2] = {-INFINITY, -INFINITY}, sum[2] = {0.0f, 0.0f};

  // Scores of keys 8 n + 2 (lane % 4) + {0, 1} become weights; what was summed before must be multiplied by `scale`.
  template <bool kSummed, int N>
  __device__ void add(float (&s)[N][4], int count, int lane, float (&scale)[2]) {
#pragma unroll
    for (int n = 0; n < N; ++n) {
      if (8 * n + 8 > count) {
#pragma unroll
        for (int i = 0; i < 4; ++i) s[n][i] = 8 * n + lane % 4 * 2 + (i & 1) < count ? s[n][i] : -INFINITY;
      }
    }
#pragma unroll
    for (int h = 0; h < 2; ++h) {
      float now = most[h];
#pragma unroll
      for (int n = 0; n < N; ++n) now = fmaxf(now, fmaxf(s[n][2 * h], s[n][2 * h + 1]));
      now = fmaxf(now, __shfl_xor_sync(kFullWarp, now, 1));
      now = fmaxf(now, __shfl_xor_sync(kFullWarp, now, 2));
      scale[h] = ptx::exp2_approx(most[h] - now);
      most[h] = now;
      float part = 0.0f;
#pragma unroll
      for (int n = 0; n < N; ++n) {
#pragma unroll
        for (int e = 0; e < 2; ++e) {
          s[n][2 * h + e] = ptx::exp2_approx(s[n][2 * h + e] - now);
          if (kSummed) part += s[n][2 * h + e];
        }
      }
      if (kSummed) sum[h] = fmaf(sum[h], scale[h], part);
    }
  }

  // 1 / sum over all keys.
  __device__ float inverse(int h) const {
    float all = sum[h];
    all += __shfl_xor_sync(kFullWarp, all, 1);
    all += __shfl_xor_sync(kFullWarp, all, 2);
    return 1.0f / all;
  }
};

// What the way back reads of each row and head, two numbers: the logarithm to 2 of the sum of its weights, so that its
// weights P are 2^(score - that), and D, see attention_backward.cuh.
struct AttentionSums {
  float* data;
  int rows;  // of all heads, one after the other

  __device__ float* at(int row, int head) const { return data + (head * rows + row) * 2; }
  __device__ AttentionSums from(int row) const { return {data + 2 * row, rows}; }
  // Of rows lane / 4 + 8 h, by one lane of each; without a key there is no weight.
  __device__ void keep(int head, int lane, const float (&most)[2], const float (&inverse)[2]) const {
    if (lane % 4 != 0) return;
#pragma unroll
    for (int h = 0; h < 2; ++h) {
      *at(lane / 4 + 8 * h, head) = inverse[h] > 0.0f ? most[h] - log2f(inverse[h]) : INFINITY;
    }
  }
};

// Q and the result: 16 rows in shared memory. `head` has `size` channels; KC tiles of channels hold them, and where
// that is one tile of several heads, the others' channels of Q are taken as 0 and the others' results are not written.
// With kKeep `sums` of the 16 rows are written.
template <int KC, bool kKeep, class Keys>
__device__ void attend(const Bf16* q, int ldq, const Keys& keys, Bf16* to, int ldt, int head, int size, int lane,
                       const AttentionSums& sums) {
  constexpr int kTiles = KC == 4 || (KC == 2 && kKeep) ? 2 : 4;  // of 16 keys in a chunk, as registers suffice
  const int first = head * size / kTile, within = head * size % kTile;
  std::uint32_t rows[KC][4];
#pragma unroll
  for (int c = 0; c < KC; ++c) {
    ptx::ldmatrix_x4(rows[c], q + (lane & 15) * ldq + (first + c) * kTile + (lane >> 4) * 8);
  }
  const int column = lane % 4 * 2 - within;  // in the head, of the first half of the tile
  const bool low = KC > 1 || (column >= 0 && column < size), high = KC > 1 || (column + 8 >= 0 && column + 8 < size);
  if (KC == 1) {
    if (!low) rows[0][0] = rows[0][1] = 0;
    if (!high) rows[0][2] = rows[0][3] = 0;
  }
  float out[KC][2][4] = {}, sum[4] = {};
  Softmax softmax;
  auto reader = reader_of(keys, first, lane);
#pragma unroll 1
  for (int base = 0; base < keys.count; base += kTiles * kTile) {
    const int count = keys.count - base;
    float s[2 * kTiles][4] = {}, scale[2];
#pragma unroll
    for (int n = 0; n < kTiles; ++n) {
      if (n * kTile < count) {
#pragma unroll
        for (int c = 0; c < KC; ++c) {
          const uint4 b = reader.key(n, c);
          ptx::mma_bf16(s[2 * n], rows[c], b.x, b.y);
          ptx::mma_bf16(s[2 * n + 1], rows[c], b.z, b.w);
        }
      }
    }
    softmax.add<false>(s, count, lane, scale);
    __syncwarp();  // keeps the values' loads, and with them their registers, behind the scores
    if (base > 0) {
#pragma unroll
      for (int i = 0; i < 8 * KC; ++i) out[i / 8][i / 4 % 2][i % 4] *= scale[i % 4 / 2];
      sum[0] *= scale[0];
      sum[2] *= scale[1];
    }
#pragma unroll
    for (int k = 0; k < kTiles; ++k) {
      if (k * kTile < count) {
        const std::uint32_t weights[4] = {
            ptx::pack_bf16(s[2 * k][0], s[2 * k][1]), ptx::pack_bf16(s[2 * k][2], s[2 * k][3]),
            ptx::pack_bf16(s[2 * k + 1][0], s[2 * k + 1][1]), ptx::pack_bf16(s[2 * k + 1][2], s[2 * k + 1][3])};
        ptx::mma_bf16(sum, weights, kOnes, kOnes);
#pragma unroll
        for (int c = 0; c < KC; ++c) {
          const uint4 b = reader.value(k, c);
          ptx::mma_bf16(out[c][0], weights, b.x, b.y);
          ptx::mma_bf16(out[c][1], weights, b.z, b.w);
        }
      }
    }
    reader.advance(kTiles);
  }
  const float inverse[2] = {keys.count > 0 ? 1.0f / sum[0] : 0.0f, keys.count > 0 ? 1.0f / sum[2] : 0.0f};
  if (kKeep) sums.keep(head, lane, softmax.most, inverse);
  Bf16* const place = to + lane / 4 * ldt + first * kTile + lane % 4 * 2;
#pragma unroll
  for (int c = 0; c < KC; ++c) {
#pragma unroll
    for (int h = 0; h < 2; ++h) {
      Bf16* const row = place + 8 * h * ldt + c * kTile;
      if (low) Operand<Bf16>::store2(row, out[c][0][2 * h] * inverse[h], out[c][0][2 * h + 1] * inverse[h]);
      if (high) Operand<Bf16>::store2(row + 8, out[c][1][2 * h] * inverse[h], out[c][1][2 * h + 1] * inverse[h]);
    }
  }
}

__device__ inline float dot4(const float4& a, const float4& b, float sum) {
  return fmaf(a.w, b.w, fmaf(a.z, b.z, fmaf(a.y, b.y, fmaf(a.x, b.x, sum))));
}

// The same in float32: a thread has the same keys of its two rows, for all channels, which come four at a time; its
// part of the result is added to those of its three neighbours, and one of them keeps the sum.
template <bool kKeep, class Keys>
__device__ void attend(const float* q, int ldq, const Keys& keys, float* to, int ldt, int head, int size, int lane,
                       const AttentionSums& sums) {
  const float* const query[2] = {q + lane / 4 * ldq + head * size, q + (lane / 4 + 8) * ldq + head * size};
  float* const result[2] = {to + lane / 4 * ldt + head * size, to + (lane / 4 + 8) * ldt + head * size};
  constexpr int kKeyChunk = 64;
  Softmax softmax;
#pragma unroll 1
  for (int base = 0; base < keys.count; base += kKeyChunk) {
    const int count = keys.count - base;
    float s[8][4] = {}, scale[2];
#pragma unroll 1
    for (int d = 0; d < size; d += 4) {
      const float4 first = *reinterpret_cast<const float4*>(query[0] + d);
      const float4 second = *reinterpret_cast<const float4*>(query[1] + d);
#pragma unroll
      for (int i = 0; i < 16; ++i) {
        const int key = 8 * (i / 2) + lane % 4 * 2 + i % 2;
        if (key >= count) continue;
        const float4 k = *reinterpret_cast<const float4*>(key_row(keys, base + key) + head * size + d);
        s[i / 2][i % 2] = dot4(first, k, s[i / 2][i % 2]);
        s[i / 2][2 + i % 2] = dot4(second, k, s[i / 2][2 + i % 2]);
      }
    }
    softmax.add<true>(s, count, lane, scale);
#pragma unroll 1
    for (int d = 0; d < size; d += 4) {
      float sum[2][4] = {};
#pragma unroll
      for (int i = 0; i < 16; ++i) {
        const int key = 8 * (i / 2) + lane % 4 * 2 + i % 2;
        if (key >= count) continue;
        const float4 v = *reinterpret_cast<const float4*>(value_row(keys, base + key) + head * size + d);
#pragma unroll
        for (int h = 0; h < 2; ++h) {
          const float weight = s[i / 2][2 * h + i % 2];
          sum[h][0] = fmaf(weight, v.x, sum[h][0]);
          sum[h][1] = fmaf(weight, v.y, sum[h][1]);
          sum[h][2] = fmaf(weight, v.z, sum[h][2]);
          sum[h][3] = fmaf(weight, v.w, sum[h][3]);
        }
      }
#pragma unroll
      for (int i = 0; i < 8; ++i) {
        float& part = sum[i / 4][i % 4];
        part += __shfl_xor_sync(kFullWarp, part, 1);
        part += __shfl_xor_sync(kFullWarp, part, 2);
      }
      if (d / 4 % 4 == lane % 4) {
#pragma unroll
        for (int h = 0; h < 2; ++h) {
#pragma unroll
          for (int i = 0; i < 4; ++i) {
            result[h][d + i] = base > 0 ? fmaf(result[h][d + i], scale[h], sum[h][i]) : sum[h][i];
          }
        }
      }
    }
  }
  const float inverse[2] = {keys.count > 0 ? softmax.inverse(0) : 0.0f, keys.count > 0 ? softmax.inverse(1) : 0.0f};
  if (kKeep) sums.keep(head, lane, softmax.most, inverse);
#pragma unroll 1
  for (int d = lane % 4 * 4; d < size; d += 16) {
#pragma unroll
    for (int h = 0; h < 2; ++h) {
#pragma unroll
      for (int i = 0; i < 4; ++i) result[h][d + i] = keys.count > 0 ? result[h][d + i] * inverse[h] : 0.0f;
    }
  }
}

// Which heads a kernel takes: each that it takes costs registers.
enum class HeadSizes { kAny, kSmall, kLarge };
constexpr int kSmallHeadMax = 32;  // channels

template <bool kKeep = false, HeadSizes kHeads = HeadSizes::kAny, class Keys>
__device__ void attend_any(const float* q, int ldq, const Keys& keys, float* to, int ldt, int head, int size, int lane,
                           const AttentionSums& sums = {}) {
  attend<kKeep>(q, ldq, keys, to, ldt, head, size, lane, sums);
}
template <bool kKeep = false, HeadSizes kHeads = HeadSizes::kAny, class Keys>
__device__ void attend_any(const Bf16* q, int ldq, const Keys& keys, Bf16* to, int ldt, int head, int size, int lane,
                           const AttentionSums& sums = {}) {
  if (kHeads == HeadSizes::kLarge || (kHeads == HeadSizes::kAny && size > kSmallHeadMax)) {
    if constexpr (kHeads != HeadSizes::kSmall) attend<4, kKeep>(q, ldq, keys, to, ldt, head, size, lane, sums);
  } else if constexpr (kHeads != HeadSizes::kLarge) {
    if (size <= 16) {
      attend<1, kKeep>(q, ldq, keys, to, ldt, head, size, lane, sums);
    } else {
      attend<2, kKeep>(q, ldq, keys, to, ldt, head, size, lane, sums);
    }
  }
}

}  // namespace rohydr

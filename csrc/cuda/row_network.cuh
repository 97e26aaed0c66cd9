// SPDX-License-Identifier: MIT
// The network of Eq. 2 in bfloat16, where one warp or two own 16 rows. What a product gives stays in their registers as
// the accumulators of mma.m16n8k16, [j][i] with columns 8 j + 2 (lane % 4) + i % 2 of rows lane / 4 and, for i = 2, 3,
// the row 8 below; packed to bfloat16 two such tiles are the operand of the next product.
#pragma once

#include "row_attention.cuh"
#include "row_place.cuh"
#include "weight_stream.cuh"

namespace rohydr {

__device__ inline float2 pair_at(const float* from) { return *reinterpret_cast<const float2*>(from); }

// acc = bias, for 8 J columns; `bias` points to this lane's first.
template <int J>
__device__ void start(float (&acc)[J][4], const float* bias) {
#pragma unroll
  for (int j = 0; j < J; ++j) {
    const float2 b = pair_at(bias + 8 * j);
    acc[j][0] = acc[j][2] = b.x;
    acc[j][1] = acc[j][3] = b.y;
  }
}

// acc += A B' of kTiles tiles of 16 columns, where a tile of depth has kAll; `piece` is this lane's first. With kFirst
// acc = A B'.
template <int kTiles, int kAll, bool kFirst = false, int kDepth>
__device__ void multiply(float (&acc)[2 * kTiles][4], const std::uint32_t (&a)[kDepth][4], const uint4* piece) {
#pragma unroll
  for (int k = 0; k < kDepth; ++k) {
#pragma unroll
    for (int c = 0; c < kTiles; ++c) {
      const uint4 b = piece[(k * kAll + c) * 32];
      if (kFirst && k == 0) {
        ptx::mma_bf16_first(acc[2 * c], a[k], b.x, b.y);
        ptx::mma_bf16_first(acc[2 * c + 1], a[k], b.z, b.w);
      } else {
        ptx::mma_bf16(acc[2 * c], a[k], b.x, b.y);
        ptx::mma_bf16(acc[2 * c + 1], a[k], b.z, b.w);
      }
    }
  }
}

// GELU without its factor 1/2, which is in the weights of fc2.
__device__ inline float twice_gelu(float x) {
  return fmaf(x, ptx::tanh_approx(x * fmaf(x * x, kGeluCubic, kGeluFactor)), x);
}

// Heads of 16 KC channels, where KC is 0 of RowCounts::head_size. Two warps of a tile of rows (kSplit) have each half
// of the heads and of the hidden layer, for all 16 rows; and 8 of the rows of the residual stream and of LayerNorm.
// Parts of sums, and operands, go from one to the other through shared memory. One warp has everything, and the same
// bits.
template <int W, int KC, int kSplit>
struct RowNetwork {
  using S = Slot<W>;
  using Place = RowPlace<W, kSplit>;
  using Shared = RowShared<W, kSplit>;
  static constexpr int kTiles = W / kTile, kOwn = kTiles / kSplit;  // tiles of 16 columns, and those of this warp
  static constexpr int kSlotTiles = S::kColumns / kTile;
  static constexpr int kVisited = kOwn < kSlotTiles ? kOwn : kSlotTiles;  // of a slot, by this warp
  static constexpr int kMine = kParts / kSplit, kPart = kTiles / kParts;  // parts of this warp, and a part's tiles
  static constexpr int kHidden = kSlotTiles / kParts;                     // of the hidden layer, in a slot
  static constexpr int kRows = 2 / kSplit;                                // of the residual stream, in a thread
  static_assert(kOwn >= KC && kPart >= 1 && kHidden >= 1 && kSplit <= 2, "whole heads, and something for each warp");
  // Tiles of which heads are computed together: more would not fit the registers.
  static constexpr int kTogether = KC == 4 ? 4 : W == 64 || kOwn < 2 ? kOwn : 2;

  using Stream = float[2 * kTiles][2 * kRows];  // the residual stream: of the rows that this warp has
  using Sum = float[2 * kTiles][4];
  using Sums = Sum[kMine];
  using Whole = std::uint32_t[kTiles][4];  // of an operand
  using Mine = std::uint32_t[kOwn][4];     // the columns of this warp's heads

  Shared shared;
  Place place;
  int rows;  // that exist

  template <class T>
  static __device__ T* at(int offset) {
    ROHYDR_SHARED(memory);
    return reinterpret_cast<T*>(memory + offset);
  }
  static __device__ const RowCounts& counts() { return *at<RowCounts>(StreamMemory<W>::kCounts); }
  __device__ bool active() const { return kTile * place.tile < rows; }

  // LayerNorm without affine, then (1 + scale) x + shift, as an operand; `shift` and `scale` at this thread's first
  // column. All threads of the block.
  __device__ void normalise(Whole& a, const Stream& x, const float* shift, const float* scale) const {
    if constexpr (kSplit == 1) {
      std::uint32_t words[2 * kTiles][kRows];
      if (active()) normalise_rows(words, x, shift, scale);
#pragma unroll
      for (int i = 0; i < 4 * kTiles; ++i) a[i / 4][i % 4] = words[i / 4 * 2 + i % 4 / 2][i % 2];
    } else {
      show_normalised(x, shift, scale);
      __syncthreads();
      if (active()) take_operand(a);
    }
  }

  // The same by way of shared memory; between the two a barrier is needed.
  __device__ void show_normalised(const Stream& x, const float* shift, const float* scale) const {
    if (!active()) return;
    std::uint32_t words[2 * kTiles][kRows];
    normalise_rows(words, x, shift, scale);
#pragma unroll
    for (int h = 0; h < kRows; ++h) {
      Bf16* const to = at<Bf16>(shared.operand()) + place.row(kRows == 1 ? place.half() : h) * Shared::kStride;
#pragma unroll
      for (int j = 0; j < 2 * kTiles; ++j) {
        *reinterpret_cast<std::uint32_t*>(to + place.column() + 8 * j) = words[j][h];
      }
    }
  }
  __device__ void take_operand(Whole& a) const {
    const Bf16* const from =
        at<Bf16>(shared.operand()) + (kTile * place.tile + place.lane() % 16) * Shared::kStride + place.lane() / 16 * 8;
#pragma unroll
    for (int k = 0; k < kTiles; ++k) ptx::ldmatrix_x4(a[k], from + k * kTile);
  }

  static __device__ void normalise_rows(std::uint32_t (&words)[2 * kTiles][kRows], const Stream& x, const float* shift,
                                        const float* scale) {
    float sum[kRows][4] = {}, square[kRows][4] = {}, mean[kRows], inverse[kRows];  // several short chains
#pragma unroll
    for (int i = 0; i < 4 * kTiles; ++i) {
#pragma unroll
      for (int h = 0; h < kRows; ++h) sum[h][i % 4] += x[i / 2][2 * h + i % 2];
    }
#pragma unroll
    for (int h = 0; h < kRows; ++h) mean[h] = over_lanes(sum[h]) * (1.0f / W);
#pragma unroll
    for (int i = 0; i < 4 * kTiles; ++i) {
#pragma unroll
      for (int h = 0; h < kRows; ++h) {
        const float d = x[i / 2][2 * h + i % 2] - mean[h];
        square[h][i % 4] = fmaf(d, d, square[h][i % 4]);
      }
    }
#pragma unroll
    for (int h = 0; h < kRows; ++h) {
      inverse[h] = rsqrtf(fmaf(over_lanes(square[h]), 1.0f / W, kLayerNormEps));
      mean[h] *= -inverse[h];
    }
#pragma unroll
    for (int j = 0; j < 2 * kTiles; ++j) {
      const float2 add = pair_at(shift + 8 * j), by = pair_at(scale + 8 * j);
#pragma unroll
      for (int h = 0; h < kRows; ++h) {
        const float first = fmaf(x[j][2 * h], inverse[h], mean[h]), second = fmaf(x[j][2 * h + 1], inverse[h], mean[h]);
        words[j][h] = ptx::pack_bf16(fmaf(first, 1.0f + by.x, add.x), fmaf(second, 1.0f + by.y, add.y));
      }
    }
  }
  static __device__ float over_lanes(const float (&chains)[4]) {
    float sum = chains[0] + chains[1] + (chains[2] + chains[3]);
    sum += __shfl_xor_sync(kFullWarp, sum, 1);
    return sum + __shfl_xor_sync(kFullWarp, sum, 2);
  }

  // This warp's columns of a W' + b, of a (W, W) matrix from slot `slot` on: use(first of 8-column tiles, acc).
  template <class Use>
  __device__ void project(const Whole& a, const uint4* slot, const float* bias, const Use& use) const {
    const int first = place.part * kOwn;
    const uint4* const pieces = slot + first / kSlotTiles * S::kPieces + first % kSlotTiles * 32;
    bias += first * kTile;
#pragma unroll
    for (int s = 0; s < kOwn / kVisited; ++s) {
      float acc[2 * kVisited][4];
      start(acc, bias + s * S::kColumns);
      multiply<kVisited, kSlotTiles>(acc, a, pieces + s * S::kPieces);
      use(2 * kVisited * s, acc);
    }
  }

  // To keys (part 0) or values (part 1) of these rows.
  __device__ void project_to_keys(const Whole& a, const uint4* slot, const float* bias, int part) const {
    project(a, slot, bias, [&](int before, const float (&acc)[2 * kVisited][4]) {
      Bf16* const to = at<Bf16>(shared.keys()) + place.row(0) * Shared::kKeyStride + part * W +
                       place.part * kOwn * kTile + 8 * before + place.column();
#pragma unroll
      for (int i = 0; i < 4 * kVisited; ++i) {
        const int j = i / 2, h = i % 2;
        Operand<Bf16>::store2(to + h * 8 * Shared::kKeyStride + 8 * j, acc[j][2 * h], acc[j][2 * h + 1]);
      }
    });
  }

  __device__ void project_to_operand(Mine& q, const Whole& a, const uint4* slot, const float* bias) const {
    project(a, slot, bias, [&](int before, const float (&acc)[2 * kVisited][4]) {
#pragma unroll
      for (int c = 0; c < kVisited; ++c) pack_tile(q[before / 2 + c], acc[2 * c], acc[2 * c + 1]);
    });
  }

  // Parts of o W', of o the columns of this warp's heads.
  __device__ void project_heads(Sums& y, const Mine& o, const uint4* slot) const {
#pragma unroll
    for (int m = 0; m < kMine; ++m) {
      const uint4* const pieces = slot + (place.part + m) * kPart * kSlotTiles * 32;
#pragma unroll
      for (int s = 0; s < kTiles / kSlotTiles; ++s) {
        auto& columns = reinterpret_cast<float (&)[2 * kSlotTiles][4]>(y[m][2 * kSlotTiles * s]);
        const auto& mine = reinterpret_cast<const std::uint32_t (&)[kPart][4]>(o[m * kPart]);
        multiply<kSlotTiles, kSlotTiles, true>(columns, mine, pieces + s * S::kPieces);
      }
    }
  }

  // A part of a sum as accumulators, those of this lane in tile j of 8 columns 32 j further on.
  __device__ float4* part_of(int part) const {
    return at<float4>(shared.parts()) + (place.tile * 2 + part) * 2 * kTiles * 32 + place.lane();
  }
  template <int kCount>
  static __device__ void show(float4* to, const float (&y)[kCount][4]) {
#pragma unroll
    for (int j = 0; j < kCount; ++j) to[32 * j] = make_float4(y[j][0], y[j][1], y[j][2], y[j][3]);
  }
  // A warp with both parts adds them, in y[0].
  __device__ void show_part(Sums& y) const {
    if constexpr (kSplit > 1) {
      show(part_of(place.part), y[0]);
    } else {
#pragma unroll
      for (int i = 0; i < 8 * kTiles; ++i) y[0][i / 4][i % 4] += y[1][i / 4][i % 4];
    }
  }
  // Of a part, the numbers of the row that this thread has.
  __device__ const float2* row_of(int part) const {
    return reinterpret_cast<const float2*>(part_of(part)) + place.half();
  }

  // x is what was shown as part 0.
  __device__ void take(Stream& x) const {
    const float2* const from = row_of(0);
#pragma unroll
    for (int j = 0; j < 2 * kTiles; ++j) {
      const float2 a = from[64 * j];
      x[j][0] = a.x;
      x[j][1] = a.y;
    }
  }

  // x += gate (y + b) with y the sum of the parts, after a barrier.
  __device__ void add_parts(Stream& x, const Sums& y, const float* bias, const float* gate) const {
    const float2 *const first = row_of(0), *const second = row_of(1);
#pragma unroll
    for (int j = 0; j < 2 * kTiles; ++j) {
      const float2 by = pair_at(gate + 8 * j), add = pair_at(bias + 8 * j);
      if constexpr (kSplit == 1) {
#pragma unroll
        for (int i = 0; i < 4; ++i) {
          const float sum = y[0][j][i] + (i % 2 == 0 ? add.x : add.y);
          x[j][i] = fmaf(i % 2 == 0 ? by.x : by.y, sum, x[j][i]);
        }
      } else {
        const float2 a = first[64 * j], b = second[64 * j];
        x[j][0] = fmaf(by.x, a.x + b.x + add.x, x[j][0]);
        x[j][1] = fmaf(by.y, a.y + b.y + add.y, x[j][1]);
      }
    }
  }

  // q becomes the result.
  template <class Keys>
  __device__ void attention(Mine& q, const Keys& from) const {
#pragma unroll
    for (int first = 0; first < kOwn; first += kTogether) {
      std::uint32_t some[kTogether][4], out[kTogether][4] = {};
#pragma unroll
      for (int i = 0; i < 4 * kTogether; ++i) some[i / 4][i % 4] = q[first + i / 4][i % 4];
      if (from.count > 0) {
        const auto reader = reader_of(from, place.part * kOwn + first, place.lane());
        if constexpr (KC == 0) {
          attend_small_heads(out, some, reader, from.count, counts().head_size, place.lane());
        } else {
          attend_heads<kTogether, KC>(out, some, reader, from.count, place.lane());
        }
      }
#pragma unroll
      for (int i = 0; i < 4 * kTogether; ++i) q[first + i / 4][i % 4] = out[i / 4][i % 4];
    }
  }

  // Parts of fc2(gelu(fc1(a))) without fc2's bias, some columns of the hidden layer at a time: the first from `slot`.
  __device__ void mlp(Sums& y, const Whole& a, WeightStream<W, kSplit>& stream, const uint4* slot,
                      const float* fc1_bias, bool here) const {
#pragma unroll
    for (int i = 0; i < kMine * 8 * kTiles; ++i) y[i / (8 * kTiles)][i / 4 % (2 * kTiles)][i % 4] = 0.0f;
#pragma unroll 1
    for (int before = 0;;) {
      if (here) {
#pragma unroll
        for (int m = 0; m < kMine; ++m) {
          const int tile = (place.part + m) * kHidden;
          float acc[2 * kHidden][4];
          std::uint32_t h[kHidden][4];
          start(acc, fc1_bias + before + tile * kTile);
          multiply<kHidden, kSlotTiles>(acc, a, slot + tile * 32);
#pragma unroll
          for (int i = 0; i < 8 * kHidden; ++i) acc[i / 4][i % 4] = twice_gelu(acc[i / 4][i % 4]);
#pragma unroll
          for (int c = 0; c < kHidden; ++c) pack_tile(h[c], acc[2 * c], acc[2 * c + 1]);
          multiply<kTiles, kTiles>(y[m], h, slot + S::kPieces + tile * kTiles * 32);
        }
      }
      before += S::kColumns;
      if (before >= stream.layout().hidden) return;
      slot = stream.next();
    }
  }

  // Block `layer` of the network at a step. `condition`: its keys and values.
  __device__ void block(Stream& x, WeightStream<W, kSplit>& stream, const PackedKeys& condition, int step,
                        int layer) const {
    constexpr int kMatrix = S::kOfMatrix * S::kPieces;
    constexpr bool kPairs = kSlotsOfGroup > S::kOfMatrix;  // a group holds two matrices, else one
    static_assert(kPairs != Shared::kOnePlace, "where one place is for all, each matrix has its barrier");
    const bool here = active();
    Sums y;
    Whole a;
    Mine mine;
    const uint4* slot = stream.next_with_constants(step, layer + 1);
    const float* const bias = stream.block_constants(layer) + place.column();
    const float* const modulation = bias + stream.layout().block_biases();
    normalise(a, x, modulation, modulation + W);
    if (here) project_to_keys(a, slot, bias, 0);
    slot = kPairs ? slot + kMatrix : stream.next();
    if (here) project_to_keys(a, slot, bias + W, 1);
    slot = stream.next();  // keys and values are there
    if (here) {
      project_to_operand(mine, a, slot, bias + 2 * W);
      attention(mine, SharedKeys<Bf16>{at<Bf16>(shared.keys()), Shared::kKeyStride, W, rows});
    }
    slot = kPairs ? slot + kMatrix : stream.next();
    if (here) {
      project_heads(y, mine, slot);
      show_part(y);
    }
    slot = stream.next();
    if (here) add_parts(x, y, bias + 3 * W, modulation + 2 * W);
    normalise(a, x, modulation + 3 * W, modulation + 4 * W);
    if (here) {
      project_to_operand(mine, a, slot, bias + 4 * W);
      attention(mine, condition);
    }
    slot = kPairs ? slot + kMatrix : stream.next();
    if (here) {
      project_heads(y, mine, slot);
      show_part(y);
    }
    slot = stream.next();
    if (here) add_parts(x, y, bias + 5 * W, modulation + 5 * W);
    normalise(a, x, modulation + 6 * W, modulation + 7 * W);
    mlp(y, a, stream, slot, bias + 7 * W, here);
    if (here) show_part(y);
    if (kSplit > 1) __syncthreads();
    if (here) add_parts(x, y, bias + 6 * W, modulation + 8 * W);
  }
};

}  // namespace rohydr

// SPDX-License-Identifier: MIT
// The network of Eq. 2 in bfloat16, where a warp owns 16 rows. The residual stream stays in its registers as the
// accumulators of mma.m16n8k16, [j][i] with columns 8 j + 2 (lane % 4) + i % 2 of rows lane / 4 and, for i = 2, 3, the
// row 8 below; packed to bfloat16 two such tiles are the operand of the next product. Only keys and values of
// self-attention are seen by other warps.
#pragma once

#include "row_attention.cuh"
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

// acc += A B' of kTiles tiles of 16 columns, where a tile of depth has kAll; `piece` is this lane's first.
template <int kTiles, int kAll, int kDepth>
__device__ void multiply(float (&acc)[2 * kTiles][4], const std::uint32_t (&a)[kDepth][4], const uint4* piece) {
#pragma unroll
  for (int k = 0; k < kDepth; ++k) {
#pragma unroll
    for (int c = 0; c < kTiles; ++c) {
      const uint4 b = piece[(k * kAll + c) * 32];
      ptx::mma_bf16(acc[2 * c], a[k], b.x, b.y);
      ptx::mma_bf16(acc[2 * c + 1], a[k], b.z, b.w);
    }
  }
}

// GELU without its factor 1/2, which is in the weights of fc2.
__device__ inline float twice_gelu(float x) {
  return fmaf(x, ptx::tanh_approx(x * fmaf(x * x, kGeluCubic, kGeluFactor)), x);
}

// Where this thread's numbers lie. Each part asks anew, so that the compiler does not keep the addresses of all parts
// in registers at once.
template <int kSplit>
struct RowPlace {
  int tile, part, lane;  // of rows, of their columns

  __device__ RowPlace() {
    const int thread = ptx::thread_index(), warp = thread / 32;
    tile = warp / kSplit;
    part = warp % kSplit;
    lane = thread % 32;
  }

  __device__ int row(int half) const { return kTile * tile + 8 * half + lane / 4; }
  __device__ int column() const { return lane % 4 * 2; }
};

// A block's shared memory for `rows` rows, a multiple of 16, in bytes from `start`.
template <int W, int kSplit>
struct RowShared {
  static constexpr int kKeyStride = 2 * W + 8, kStride = W + 8;  // bfloat16 numbers: the next row in other banks

  int rows, start;

  RH_HOST_DEVICE int keys() const { return start; }  // (rows, kKeyStride) of self-attention: keys, then values
  RH_HOST_DEVICE int operand() const { return keys() + rows * kKeyStride * 2; }          // two of (rows, kStride)
  RH_HOST_DEVICE int moments() const { return operand() + 2 * rows * kStride * 2; }      // (rows, kSplit, 2)
  RH_HOST_DEVICE int end() const { return moments() + rows * kSplit * 2 * 4; }
};

// Heads of 16 KC channels, where KC is 0 of `head_size`. Each of kSplit warps of a tile of rows has W / kSplit columns
// of the residual stream and of what each product gives; LayerNorm's moments and operands pass through shared memory.
template <int W, int KC, int kSplit>
struct RowNetwork {
  using S = Slot<W>;
  using Place = RowPlace<kSplit>;
  using Shared = RowShared<W, kSplit>;
  static constexpr int kTiles = W / kTile, kOwn = kTiles / kSplit;  // tiles of 16 columns, and those of this warp
  static constexpr int kSlotTiles = S::kColumns / kTile;
  static constexpr int kVisited = kOwn < kSlotTiles ? kOwn : kSlotTiles;  // of a slot, by this warp
  static constexpr int kHidden = kSlotTiles / kSplit;
  static_assert(kOwn >= KC && kOwn >= 1 && kHidden >= 1, "whole heads, and something for each warp");
  // Tiles of which heads are computed together: more would not fit the registers.
  static constexpr int kTogether = KC == 4 ? 4 : W == 64 || kOwn < 2 ? kOwn : 2;

  using Stream = float[2 * kOwn][4];            // this warp's part of the residual stream
  using Mine = std::uint32_t[kOwn][4];          // of an operand
  using Whole = std::uint32_t[kTiles][4];

  Shared shared;
  int rows;  // that exist
  int head_size;
  int turn = 0;  // of the two places for operands

  template <class T>
  static __device__ T* at(int offset) {
    ROHYDR_SHARED(memory);
    return reinterpret_cast<T*>(memory + offset);
  }
  __device__ bool active() const { return kTile * Place().tile < rows; }
  // What this warp's columns start with.
  static __device__ int first_column() { return Place().part * kOwn * kTile; }

  // LayerNorm without affine, then (1 + scale) x + shift; `shift` and `scale` at this thread's first column.
  __device__ void normalise(Mine& a, const Stream& x, const float* shift, const float* scale) const {
    float mean[2], inverse[2];
    const bool here = active();
    if (here) own_moments(mean, inverse, x);
    if (kSplit > 1) {
      float2* const moments = at<float2>(shared.moments());
      const Place place;
      if (here && place.lane % 4 == 0) {
#pragma unroll
        for (int h = 0; h < 2; ++h) moments[place.row(h) * kSplit + place.part] = make_float2(mean[h], inverse[h]);
      }
      __syncthreads();
      if (here) {
#pragma unroll
        for (int h = 0; h < 2; ++h) merge(mean[h], inverse[h], moments + place.row(h) * kSplit);
      }
    }
    if (!here) return;
#pragma unroll
    for (int h = 0; h < 2; ++h) {
      inverse[h] = rsqrtf(fmaf(inverse[h], 1.0f / W, kLayerNormEps));
      mean[h] *= -inverse[h];
    }
#pragma unroll
    for (int j = 0; j < 2 * kOwn; ++j) {
      const float2 add = pair_at(shift + 8 * j), by = pair_at(scale + 8 * j);
#pragma unroll
      for (int h = 0; h < 2; ++h) {
        const float first = fmaf(x[j][2 * h], inverse[h], mean[h]), second = fmaf(x[j][2 * h + 1], inverse[h], mean[h]);
        a[j / 2][j % 2 * 2 + h] = ptx::pack_bf16(fmaf(first, 1.0f + by.x, add.x), fmaf(second, 1.0f + by.y, add.y));
      }
    }
  }

  // The mean of this warp's columns, and the sum of squared distances from it, of both rows.
  static __device__ void own_moments(float (&mean)[2], float (&squares)[2], const Stream& x) {
    constexpr int kCount = kOwn * kTile;
    float sum[4] = {}, square[4] = {};  // several short chains
#pragma unroll
    for (int i = 0; i < 8 * kOwn; ++i) sum[i % 4] += x[i / 4][i % 4];
#pragma unroll
    for (int h = 0; h < 2; ++h) mean[h] = over_lanes(sum[2 * h] + sum[2 * h + 1]) * (1.0f / kCount);
#pragma unroll
    for (int i = 0; i < 8 * kOwn; ++i) {
      const float d = x[i / 4][i % 4] - mean[i / 2 % 2];
      square[i % 4] = fmaf(d, d, square[i % 4]);
    }
#pragma unroll
    for (int h = 0; h < 2; ++h) squares[h] = over_lanes(square[2 * h] + square[2 * h + 1]);
  }
  static __device__ float over_lanes(float sum) {
    sum += __shfl_xor_sync(kFullWarp, sum, 1);
    return sum + __shfl_xor_sync(kFullWarp, sum, 2);
  }

  // Those of all columns from those of the parts, which are of the same size (Chan, Golub, LeVeque 1979).
  static __device__ void merge(float& mean, float& squares, const float2* parts) {
    constexpr int kCount = kOwn * kTile;
    float2 part[kSplit];
    mean = squares = 0.0f;
#pragma unroll
    for (int p = 0; p < kSplit; ++p) {
      part[p] = parts[p];
      mean = fmaf(part[p].x, 1.0f / kSplit, mean);
      squares += part[p].y;
    }
#pragma unroll
    for (int p = 0; p < kSplit; ++p) {
      const float d = part[p].x - mean;
      squares = fmaf(d * d, static_cast<float>(kCount), squares);
    }
  }

  // The operand of a whole row from the parts of its warps; kept only where one warp has all.
  template <int kMine, int kAll>
  __device__ void gather(std::uint32_t (&all)[kAll][4], const std::uint32_t (&mine)[kMine][4]) {
    if constexpr (kMine == kAll) {
#pragma unroll
      for (int i = 0; i < 4 * kAll; ++i) all[i / 4][i % 4] = mine[i / 4][i % 4];
    } else {
      put(mine);
      __syncthreads();
      if (active()) take(all);
      turn ^= 1;
    }
  }
  __device__ Bf16* operand() const { return at<Bf16>(shared.operand()) + turn * shared.rows * Shared::kStride; }
  template <int kMine>
  __device__ void put(const std::uint32_t (&mine)[kMine][4]) const {
    if (!active()) return;
    const Place place;
    Bf16* const to = operand() + place.row(0) * Shared::kStride + place.part * kMine * kTile + place.column();
#pragma unroll
    for (int i = 0; i < 4 * kMine; ++i) {
      const int offset = i % 2 * 8 * Shared::kStride + i / 4 * kTile + i % 4 / 2 * 8;
      *reinterpret_cast<std::uint32_t*>(to + offset) = mine[i / 4][i % 4];
    }
  }
  template <int kAll>
  __device__ void take(std::uint32_t (&all)[kAll][4]) const {
    const Place place;
    const Bf16* const from =
        operand() + (kTile * place.tile + place.lane % 16) * Shared::kStride + place.lane / 16 * 8;
#pragma unroll
    for (int k = 0; k < kAll; ++k) ptx::ldmatrix_x4(all[k], from + k * kTile);
  }

  // This warp's columns of a W' + b, of a (W, W) matrix from slot `slot` on: use(first of 8-column tiles, acc).
  template <class Use>
  __device__ void project(const Whole& a, const uint4* slot, const float* bias, const Use& use) const {
    const int first = Place().part * kOwn;
    const uint4* const pieces = slot + first / kSlotTiles * S::kPieces + first % kSlotTiles * 32;
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
    const Place place;
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

  // x += gate (a W' + b).
  __device__ void add_gated(Stream& x, const Whole& a, const uint4* slot, const float* bias, const float* gate) const {
    project(a, slot, bias, [&](int before, const float (&acc)[2 * kVisited][4]) {
#pragma unroll
      for (int j = 0; j < 2 * kVisited; ++j) add(x[before + j], acc[j], pair_at(gate + 8 * (before + j)));
    });
  }

  static __device__ void add(float (&x)[4], const float (&acc)[4], const float2& gate) {
    x[0] = fmaf(gate.x, acc[0], x[0]);
    x[1] = fmaf(gate.y, acc[1], x[1]);
    x[2] = fmaf(gate.x, acc[2], x[2]);
    x[3] = fmaf(gate.y, acc[3], x[3]);
  }

  // q becomes the result.
  template <class Keys>
  __device__ void attention(Mine& q, const Keys& from) const {
    const Place place;
#pragma unroll
    for (int first = 0; first < kOwn; first += kTogether) {
      std::uint32_t some[kTogether][4], out[kTogether][4] = {};
#pragma unroll
      for (int i = 0; i < 4 * kTogether; ++i) some[i / 4][i % 4] = q[first + i / 4][i % 4];
      if (from.count > 0) {
        const auto reader = reader_of(from, place.part * kOwn + first, place.lane);
        if constexpr (KC == 0) {
          attend_small_heads(out, some, reader, from.count, head_size, place.lane);
        } else {
          attend_heads<kTogether, KC, W == 64>(out, some, reader, from.count, place.lane);
        }
      }
#pragma unroll
      for (int i = 0; i < 4 * kTogether; ++i) q[first + i / 4][i % 4] = out[i / 4][i % 4];
    }
  }

  // x += gate fc2(gelu(fc1(a))), some columns of the hidden layer at a time.
  __device__ void add_mlp(Stream& x, const Whole& a, WeightStream<W>& stream, const float* fc1_bias,
                          const float* fc2_bias, const float* gate, int hidden) {
    const Place place;
    Stream y;
    if (active()) start(y, fc2_bias);
#pragma unroll 1
    for (int before = 0; before < hidden; before += S::kColumns) {
      const uint4* const slot = stream.next();
      std::uint32_t mine[kHidden][4], h[kSlotTiles][4];
      if (active()) {
        const uint4* const pieces = slot + place.part * kHidden * 32;
        float acc[2 * kHidden][4];
        start(acc, fc1_bias + before + place.part * kHidden * kTile);
        multiply<kHidden, kSlotTiles>(acc, a, pieces);
#pragma unroll
        for (int i = 0; i < 8 * kHidden; ++i) acc[i / 4][i % 4] = twice_gelu(acc[i / 4][i % 4]);
#pragma unroll
        for (int c = 0; c < kHidden; ++c) pack_tile(mine[c], acc[2 * c], acc[2 * c + 1]);
      }
      gather(h, mine);
      if (active()) multiply<kOwn, kTiles>(y, h, slot + S::kPieces + place.part * kOwn * 32);
    }
    if (!active()) return;
#pragma unroll
    for (int j = 0; j < 2 * kOwn; ++j) add(x[j], y[j], pair_at(gate + 8 * j));
  }

  // A block of the network. `condition`: its keys and values.
  __device__ void block(Stream& x, WeightStream<W>& stream, const PackedKeys& condition, int hidden, int biases) {
    constexpr int kMatrix = S::kOfMatrix * S::kPieces;
    constexpr bool kPairs = kSlotsOfGroup > S::kOfMatrix;  // a group holds two matrices, else one
    const bool here = active();
    Mine mine;
    Whole a;
    const uint4* slot = stream.next();
    const float* const constants = stream.block_constants() + Place().column();
    const float* const fc1_bias = constants + 7 * W;
    const float* const bias = constants + first_column();
    const float* const modulation = bias + biases;
    normalise(mine, x, modulation, modulation + W);
    gather(a, mine);
    if (here) project_to_keys(a, slot, bias, 0);
    slot = kPairs ? slot + kMatrix : stream.next();
    if (here) project_to_keys(a, slot, bias + W, 1);
    slot = stream.next();  // keys and values are there
    if (here) {
      project_to_operand(mine, a, slot, bias + 2 * W);
      attention(mine, SharedKeys<Bf16>{at<Bf16>(shared.keys()), Shared::kKeyStride, W, rows});
    }
    gather(a, mine);
    slot = kPairs ? slot + kMatrix : stream.next();
    if (here) add_gated(x, a, slot, bias + 3 * W, modulation + 2 * W);
    normalise(mine, x, modulation + 3 * W, modulation + 4 * W);
    gather(a, mine);
    slot = stream.next();
    if (here) {
      project_to_operand(mine, a, slot, bias + 4 * W);
      attention(mine, condition);
    }
    gather(a, mine);
    slot = kPairs ? slot + kMatrix : stream.next();
    if (here) add_gated(x, a, slot, bias + 5 * W, modulation + 5 * W);
    normalise(mine, x, modulation + 6 * W, modulation + 7 * W);
    gather(a, mine);
    add_mlp(x, a, stream, fc1_bias, bias + 6 * W, modulation + 8 * W, hidden);
  }
};

}  // namespace rohydr

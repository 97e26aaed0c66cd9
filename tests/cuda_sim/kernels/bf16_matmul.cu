// SPDX-License-Identifier: MIT
// C = A W^T, (m, k) times (n, k) bfloat16, both row-major, to (m, n) float32. A block of 4 warps owns 64 x 64 of C, a warp
// 16 rows of it. Slices of 32 columns of A and W come by cp.async into two buffers in turn. k must be a multiple of 8.
// Shared memory: 2 (64 + 64) (32 + 8) bfloat16, 20480 bytes.
#include "device.cuh"

namespace rohydr {
namespace {

constexpr int kTile = 64;
constexpr int kSlice = 32;
constexpr int kThreads = 128;
constexpr int kPitch = kSlice + 8;  // 8 more elements: the rows of an ldmatrix lie in different banks
constexpr int kPieces = kSlice / 8;
constexpr int kBuffer = 2 * kTile * kPitch;
constexpr int kSharedBytes = 2 * kBuffer * static_cast<int>(sizeof(__nv_bfloat16));

__global__ void __launch_bounds__(kThreads)
    bf16_matmul_kernel(const __nv_bfloat16* a, const __nv_bfloat16* w, float* c, int m, int n, int k) {
  ROHYDR_SHARED(shared_bytes);
  __nv_bfloat16* buffers = reinterpret_cast<__nv_bfloat16*>(shared_bytes);
  const int warp = static_cast<int>(threadIdx.x) / 32;
  const int lane = static_cast<int>(threadIdx.x) % 32;
  const int first_row = static_cast<int>(blockIdx.x) * kTile;
  const int first_column = static_cast<int>(blockIdx.y) * kTile;

  const auto fetch = [&](int slice) {
    __nv_bfloat16* to_a = buffers + slice % 2 * kBuffer;
    __nv_bfloat16* to_w = to_a + kTile * kPitch;
    for (int i = static_cast<int>(threadIdx.x); i < kTile * kPieces; i += kThreads) {
      const int row = i / kPieces;
      const int piece = i % kPieces * 8;
      const int column = slice * kSlice + piece;
      const bool in_a = first_row + row < m && column < k;
      const bool in_w = first_column + row < n && column < k;
      const std::int64_t at_a = in_a ? static_cast<std::int64_t>(first_row + row) * k + column : 0;
      const std::int64_t at_w = in_w ? static_cast<std::int64_t>(first_column + row) * k + column : 0;
      ptx::cp_async_16_or_zero(to_a + row * kPitch + piece, a + at_a, in_a);
      ptx::cp_async_16_or_zero(to_w + row * kPitch + piece, w + at_w, in_w);
    }
    ptx::cp_async_commit();
  };

  float sums[kTile / 8][4] = {};
  const int slices = (k + kSlice - 1) / kSlice;
  fetch(0);
  for (int slice = 0; slice < slices; ++slice) {
    if (slice + 1 < slices) {
      fetch(slice + 1);
      ptx::cp_async_wait<1>();  // this slice is there, the next one under way
    } else {
      ptx::cp_async_wait<0>();
    }
    __syncthreads();  // the other threads' copies are there too
    const __nv_bfloat16* tile_a = buffers + slice % 2 * kBuffer;
    const __nv_bfloat16* tile_w = tile_a + kTile * kPitch;
#pragma unroll
    for (int step = 0; step < kSlice; step += 16) {
      std::uint32_t left[4];
      ptx::ldmatrix_x4(left, tile_a + (warp * 16 + lane % 16) * kPitch + step + lane / 16 * 8);
#pragma unroll
      for (int column = 0; column < kTile; column += 16) {
        std::uint32_t right[4];
        ptx::ldmatrix_x4(right, tile_w + (column + lane % 8 + lane / 16 * 8) * kPitch + step + lane / 8 % 2 * 8);
        ptx::mma_bf16(sums[column / 8], left, right[0], right[1]);
        ptx::mma_bf16(sums[column / 8 + 1], left, right[2], right[3]);
      }
    }
    __syncthreads();  // nobody reads this buffer any more: the next round fills it
  }

#pragma unroll
  for (int tile = 0; tile < kTile / 8; ++tile) {
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      const int row = first_row + warp * 16 + lane / 4 + i / 2 * 8;
      const int column = first_column + tile * 8 + lane % 4 * 2 + i % 2;
      if (row < m && column < n) c[static_cast<std::int64_t>(row) * n + column] = sums[tile][i];
    }
  }
}

}  // namespace
}  // namespace rohydr

extern "C" int launch_bf16_matmul(const __nv_bfloat16* a, const __nv_bfloat16* w, float* c, std::int64_t m,
                                  std::int64_t n, std::int64_t k) {
  using namespace rohydr;
  const dim3 grid(static_cast<unsigned>((m + kTile - 1) / kTile), static_cast<unsigned>((n + kTile - 1) / kTile));
  return ROHYDR_LAUNCH(bf16_matmul_kernel, grid, kThreads, kSharedBytes, nullptr, a, w, c, static_cast<int>(m),
                       static_cast<int>(n), static_cast<int>(k));
}

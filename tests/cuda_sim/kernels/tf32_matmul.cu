// SPDX-License-Identifier: MIT
// C = A B, (m, k) times (k, n) float32, row-major, products in tf32. A block of 2 warps owns 32 x 32 of C, a warp 16 rows.
// Slices of 16 go through shared memory, rounded to tf32 on the way. Shared memory: 32 (16 + 4) + 16 (32 + 8) float32.
#include "device.cuh"

namespace rohydr {
namespace {

constexpr int kTile = 32;
constexpr int kSlice = 16;
constexpr int kThreads = 64;
constexpr int kPitchA = kSlice + 4;  // the paddings keep the lanes of a fragment in different banks
constexpr int kPitchB = kTile + 8;
constexpr int kSharedBytes = (kTile * kPitchA + kSlice * kPitchB) * static_cast<int>(sizeof(float));

__global__ void __launch_bounds__(kThreads)
    tf32_matmul_kernel(const float* a, const float* b, float* c, int m, int n, int k) {
  ROHYDR_SHARED(shared_bytes);
  std::uint32_t* tile_a = reinterpret_cast<std::uint32_t*>(shared_bytes);
  std::uint32_t* tile_b = tile_a + kTile * kPitchA;
  const int thread = static_cast<int>(threadIdx.x);
  const int warp = thread / 32;
  const int group = thread % 32 / 4;
  const int member = thread % 4;
  const int first_row = static_cast<int>(blockIdx.x) * kTile;
  const int first_column = static_cast<int>(blockIdx.y) * kTile;

  float sums[kTile / 8][4] = {};
  for (int start = 0; start < k; start += kSlice) {
    for (int i = thread; i < kTile * kSlice; i += kThreads) {
      const int row = first_row + i / kSlice;
      const int inner = start + i % kSlice;
      const float value = row < m && inner < k ? a[static_cast<std::int64_t>(row) * k + inner] : 0.0f;
      tile_a[i / kSlice * kPitchA + i % kSlice] = ptx::round_tf32(value);
    }
    for (int i = thread; i < kSlice * kTile; i += kThreads) {
      const int inner = start + i / kTile;
      const int column = first_column + i % kTile;
      const float value = inner < k && column < n ? b[static_cast<std::int64_t>(inner) * n + column] : 0.0f;
      tile_b[i / kTile * kPitchB + i % kTile] = ptx::round_tf32(value);
    }
    __syncthreads();  // the slice is complete
#pragma unroll
    for (int step = 0; step < kSlice; step += 8) {
      std::uint32_t left[4];
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        left[i] = tile_a[(warp * 16 + group + i % 2 * 8) * kPitchA + step + member + i / 2 * 4];
      }
#pragma unroll
      for (int tile = 0; tile < kTile / 8; ++tile) {
        const std::uint32_t* right = tile_b + (step + member) * kPitchB + tile * 8 + group;
        ptx::mma_tf32(sums[tile], left, right[0], right[4 * kPitchB]);
      }
    }
    __syncthreads();  // nobody reads the slice any more
  }

#pragma unroll
  for (int tile = 0; tile < kTile / 8; ++tile) {
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      const int row = first_row + warp * 16 + group + i / 2 * 8;
      const int column = first_column + tile * 8 + member * 2 + i % 2;
      if (row < m && column < n) c[static_cast<std::int64_t>(row) * n + column] = sums[tile][i];
    }
  }
}

}  // namespace
}  // namespace rohydr

extern "C" int launch_tf32_matmul(const float* a, const float* b, float* c, std::int64_t m, std::int64_t n,
                                  std::int64_t k) {
  using namespace rohydr;
  const dim3 grid(static_cast<unsigned>((m + kTile - 1) / kTile), static_cast<unsigned>((n + kTile - 1) / kTile));
  return ROHYDR_LAUNCH(tf32_matmul_kernel, grid, kThreads, kSharedBytes, nullptr, a, b, c, static_cast<int>(m),
                       static_cast<int>(n), static_cast<int>(k));
}

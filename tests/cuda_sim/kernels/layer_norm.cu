// SPDX-License-Identifier: MIT
// y = (x - mean) / sqrt(variance + eps) (1 + scale) + shift for each row of x (rows, width), bfloat16; scale and shift are
// (width) float32. One warp owns a row, a lane every 32nd element; sums go through shuffles. x is read three times.
#include "device.cuh"

namespace rohydr {
namespace {

constexpr int kThreads = 128;
constexpr int kRowsPerBlock = kThreads / 32;

__device__ float warp_sum(float value) {
  for (int distance = 16; distance > 0; distance /= 2) value += __shfl_xor_sync(0xFFFFFFFFu, value, distance);
  return value;
}

__global__ void __launch_bounds__(kThreads)
    layer_norm_kernel(const __nv_bfloat16* x, const float* scale, const float* shift, __nv_bfloat16* y, int rows,
                      int width, float eps) {
  const int row = static_cast<int>(blockIdx.x) * kRowsPerBlock + static_cast<int>(threadIdx.x) / 32;
  const int lane = static_cast<int>(threadIdx.x) % 32;
  if (row >= rows) return;  // a whole warp
  const __nv_bfloat16* in = x + static_cast<std::int64_t>(row) * width;
  __nv_bfloat16* out = y + static_cast<std::int64_t>(row) * width;
  float sum = 0.0f;
  for (int i = lane; i < width; i += 32) sum += __bfloat162float(in[i]);
  const float mean = warp_sum(sum) / static_cast<float>(width);
  float squares = 0.0f;
  for (int i = lane; i < width; i += 32) {
    const float distance = __bfloat162float(in[i]) - mean;
    squares += distance * distance;
  }
  const float inverse = rsqrtf(warp_sum(squares) / static_cast<float>(width) + eps);
  for (int i = lane; i < width; i += 32) {
    out[i] = __float2bfloat16((__bfloat162float(in[i]) - mean) * inverse * (1.0f + scale[i]) + shift[i]);
  }
}

}  // namespace
}  // namespace rohydr

extern "C" int launch_layer_norm(const __nv_bfloat16* x, const float* scale, const float* shift, __nv_bfloat16* y,
                                 std::int64_t rows, std::int64_t width, double eps) {
  using namespace rohydr;
  const unsigned blocks = static_cast<unsigned>((rows + kRowsPerBlock - 1) / kRowsPerBlock);
  return ROHYDR_LAUNCH(layer_norm_kernel, blocks, kThreads, 0, nullptr, x, scale, shift, y, static_cast<int>(rows),
                       static_cast<int>(width), static_cast<float>(eps));
}

// SPDX-License-Identifier: MIT
// Philox numbers for (samples, count) outputs. One thread makes the four numbers of one block and strides over the
// grid: blocks of all rows are numbered through, b = sample * blocks_per_row + block. Memory traffic: the output once,
// plus one id per block (cached). No shared memory, no synchronisation. Index arithmetic is int64: samples * count may
// exceed 2^31. Stores are scalar because a row need not start at a multiple of 16 bytes.
#include <cstdint>

#include "device_guard.cuh"
#include "rohydr/box_muller.h"
#include "rohydr/launch.h"
#include "rohydr/philox.h"

namespace rohydr {
namespace {

struct ToBits {
  using Value = std::int64_t;
  static __device__ void convert(const PhiloxBlock& block, Value (&values)[4]) {
    for (int i = 0; i < 4; ++i) values[i] = block.word[i];
  }
};

struct ToUniform {
  using Value = float;
  static __device__ void convert(const PhiloxBlock& block, Value (&values)[4]) {
    for (int i = 0; i < 4; ++i) values[i] = philox_uniform(block.word[i]);
  }
};

struct ToNormal {
  using Value = float;
  static __device__ void convert(const PhiloxBlock& block, Value (&values)[4]) { normal_block(block, values); }
};

template <typename To>
__global__ void philox_kernel(PhiloxRequest request, std::int64_t blocks_per_row, typename To::Value* out) {
  const std::int64_t blocks = request.samples * blocks_per_row;
  const std::int64_t stride = static_cast<std::int64_t>(gridDim.x) * blockDim.x;
  std::int64_t b = static_cast<std::int64_t>(blockIdx.x) * blockDim.x + threadIdx.x;
  for (; b < blocks; b += stride) {
    const std::int64_t sample = b / blocks_per_row;
    const std::int64_t block = b - sample * blocks_per_row;
    typename To::Value values[4];
    To::convert(philox_block(request, request.sample_ids[sample], block), values);
    typename To::Value* place = out + sample * request.count + 4 * block;
    const std::int64_t left = request.count - 4 * block;
    for (int i = 0; i < 4; ++i) {
      if (i < left) place[i] = values[i];
    }
  }
}

template <typename To>
int launch(const PhiloxRequest& request, typename To::Value* out, int device, void* cuda_stream) {
  constexpr int kThreads = 256;
  constexpr std::int64_t kMaxGrid = 65535;
  if (request.samples == 0 || request.count == 0) return cudaSuccess;
  const DeviceGuard guard(device);
  if (guard.error() != 0) return guard.error();
  const std::int64_t blocks_per_row = philox_blocks_per_row(request.count);
  const std::int64_t wanted = (request.samples * blocks_per_row + kThreads - 1) / kThreads;
  const unsigned grid = static_cast<unsigned>(wanted < kMaxGrid ? wanted : kMaxGrid);
  return ROHYDR_LAUNCH((philox_kernel<To>), grid, kThreads, 0, cuda_stream, request, blocks_per_row, out);
}

}  // namespace

int launch_philox_bits_cuda(const PhiloxRequest& request, std::int64_t* out, int device, void* cuda_stream) {
  return launch<ToBits>(request, out, device, cuda_stream);
}

int launch_philox_uniform_cuda(const PhiloxRequest& request, float* out, int device, void* cuda_stream) {
  return launch<ToUniform>(request, out, device, cuda_stream);
}

int launch_philox_normal_cuda(const PhiloxRequest& request, float* out, int device, void* cuda_stream) {
  return launch<ToNormal>(request, out, device, cuda_stream);
}

int cuda_device_count() {
  int count = 0;
  if (cudaGetDeviceCount(&count) == cudaSuccess) return count;
  cudaGetLastError();  // no device or no driver: not an error, and it must not reach the next launch check
  return 0;
}

const char* cuda_error_text(int error) { return cudaGetErrorString(static_cast<cudaError_t>(error)); }

}  // namespace rohydr

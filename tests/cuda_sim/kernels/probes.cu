// SPDX-License-Identifier: MIT
// One kernel for each thing that a simulator must do as a device does, or must refuse.
#include "device.cuh"

namespace rohydr {
namespace {

// out: (14, 64) words, one row for each function. Two warps.
__global__ void warp_functions_kernel(const std::uint32_t* in, std::uint32_t* out) {
  const unsigned thread = threadIdx.x;
  const unsigned lane = thread % 32;
  const std::uint32_t value = in[thread];
  int row = 0;
  const auto put = [&](std::uint32_t result) { out[64 * row++ + thread] = result; };
  put(__shfl_sync(0xFFFFFFFFu, value, static_cast<int>(value % 32)));
  put(__shfl_sync(0xFFFFFFFFu, value, 3, 8));
  put(__shfl_xor_sync(0xFFFFFFFFu, value, 5));
  put(__shfl_xor_sync(0xFFFFFFFFu, value, 12, 8));
  put(__shfl_up_sync(0xFFFFFFFFu, value, 3));
  put(__shfl_up_sync(0xFFFFFFFFu, value, 3, 16));
  put(__shfl_down_sync(0xFFFFFFFFu, value, 7));
  put(__shfl_down_sync(0xFFFFFFFFu, value, 7, 16));
  put(__ballot_sync(0xFFFFFFFFu, value % 3 == 0));
  put(static_cast<std::uint32_t>(__any_sync(0xFFFFFFFFu, value % 64 == 1) + 2 * __all_sync(0xFFFFFFFFu, value > 9)));
  put(__reduce_add_sync(0xFFFFFFFFu, value) ^ __reduce_max_sync(0xFFFFFFFFu, value));
  put(static_cast<std::uint32_t>(__syncthreads_count(value % 5 == 0)));
  put(static_cast<std::uint32_t>(__syncthreads_or(value % 7 == 0) + 2 * __syncthreads_and(value > 9)));
  std::uint32_t half = 0;
  if (lane < 16) {
    half = __shfl_xor_sync(0x0000FFFFu, value, 1);
  } else {
    half = __shfl_down_sync(0xFFFF0000u, value, 2);
  }
  put(half);
}

// out: (8, 64) words.
__global__ void bit_functions_kernel(const std::uint32_t* in, std::uint32_t* out) {
  const unsigned thread = threadIdx.x;
  const std::uint32_t a = in[thread];
  const std::uint32_t b = in[63 - thread];
  int row = 0;
  const auto put = [&](std::uint32_t result) { out[64 * row++ + thread] = result; };
  put(__umulhi(a, b));
  put(static_cast<std::uint32_t>(__mulhi(static_cast<int>(a), static_cast<int>(b))));
  put(static_cast<std::uint32_t>(__popc(a) + 64 * __clz(static_cast<int>(b)) + 4096 * __ffs(static_cast<int>(a & b))));
  put(__brev(a));
  put(__byte_perm(a, b, 0x6172));
  put(__funnelshift_l(a, b, b % 32));
  put(__funnelshift_r(a, b, a % 32));
  put(ptx::pack_bf16(__uint_as_float(a % 0x7F000000u), __uint_as_float(b % 0x7F000000u)) ^
      ptx::round_tf32(__uint_as_float(b % 0x7F000000u)));
}

// out: (4, 64) float32.
__global__ void approximations_kernel(const float* in, float* out) {
  const float x = in[threadIdx.x];
  out[threadIdx.x] = ptx::exp2_approx(x);
  out[64 + threadIdx.x] = ptx::rcp_approx(x);
  out[128 + threadIdx.x] = ptx::tanh_approx(x);
  out[192 + threadIdx.x] = fmaf(x, 1.2345f, rsqrtf(fabsf(x))) + fminf(x, 0.5f);
}

// Every thread of every block adds its number to one of 4 counters.
__global__ void atomics_kernel(int* counters) {
  const int number = static_cast<int>(blockIdx.x * blockDim.x + threadIdx.x);
  atomicAdd(&counters[number % 3], number);
  atomicMax(&counters[3], number);
}

// Each 8 x 8 matrix is written row by row, read by ldmatrix, and stored as the fragment lies.
__global__ void matrices_kernel(const std::uint16_t* in, std::uint32_t* out) {
  ROHYDR_SHARED(shared);
  std::uint16_t* tile = reinterpret_cast<std::uint16_t*>(shared);
  for (unsigned i = threadIdx.x; i < 256; i += 32) tile[i] = in[i];
  __syncwarp();
  std::uint32_t four[4], two[2];
  const std::uint16_t* row = tile + threadIdx.x * 8;
  ptx::ldmatrix_x4(four, row);
  for (int i = 0; i < 4; ++i) out[32 * i + threadIdx.x] = four[i];
  ptx::ldmatrix_x4_trans(four, row);
  for (int i = 0; i < 4; ++i) out[128 + 32 * i + threadIdx.x] = four[i];
  ptx::ldmatrix_x2(two, tile + threadIdx.x % 16 * 8);
  for (int i = 0; i < 2; ++i) out[256 + 32 * i + threadIdx.x] = two[i];
  ptx::ldmatrix_x2_trans(two, tile + threadIdx.x % 16 * 8);
  for (int i = 0; i < 2; ++i) out[320 + 32 * i + threadIdx.x] = two[i];
}

// What must be refused: `what` chooses. The thread that does it is (5, 1, 0) of block (1, 0, 0).
__global__ void misdeeds_kernel(int what, float* data, int count) {
  ROHYDR_SHARED(shared);
  float* words = reinterpret_cast<float*>(shared);  // 32
  const bool me = blockIdx.x == 1 && threadIdx.x == 5 && threadIdx.y == 1;
  if (what == 0 && me) data[count] = 1.0f;
  if (what == 1 && me) data[-1 - count] = 1.0f;
  if (what == 2 && me) words[32] = 1.0f;
  if (what == 3 && me) data[0] = words[32 + count];
  if (what == 4 && threadIdx.y == 1) __syncthreads();
  if (what == 4 && threadIdx.y == 0) __syncwarp();
  if (what == 5 && !me) data[0] = __shfl_xor_sync(0xFFFFFFFFu, 1.0f, 1);
  if (what == 6) ptx::cp_async_16(words, data + 1);
  if (what == 7 && me) __trap();
  if (what == 8) {
    if (threadIdx.x == 0) {
      __syncwarp();
    } else {
      data[0] = __shfl_sync(0xFFFFFFFFu, 1.0f, 0);
    }
  }
}

}  // namespace
}  // namespace rohydr

extern "C" {

int launch_warp_functions(const std::uint32_t* in, std::uint32_t* out) {
  return ROHYDR_LAUNCH(rohydr::warp_functions_kernel, 1, 64, 0, nullptr, in, out);
}
int launch_bit_functions(const std::uint32_t* in, std::uint32_t* out) {
  return ROHYDR_LAUNCH(rohydr::bit_functions_kernel, 1, 64, 0, nullptr, in, out);
}
int launch_approximations(const float* in, float* out) {
  return ROHYDR_LAUNCH(rohydr::approximations_kernel, 1, 64, 0, nullptr, in, out);
}
int launch_atomics(int* counters, std::int64_t blocks, std::int64_t threads) {
  const dim3 grid(static_cast<unsigned>(blocks));
  return ROHYDR_LAUNCH(rohydr::atomics_kernel, grid, static_cast<unsigned>(threads), 0, nullptr, counters);
}
int launch_matrices(const std::uint16_t* in, std::uint32_t* out) {
  return ROHYDR_LAUNCH(rohydr::matrices_kernel, 1, 32, 512, nullptr, in, out);
}
int launch_misdeeds(float* data, std::int64_t what, std::int64_t count, std::int64_t shared_bytes) {
  return ROHYDR_LAUNCH(rohydr::misdeeds_kernel, 2, dim3(16, 2), static_cast<std::size_t>(shared_bytes), nullptr,
                       static_cast<int>(what), data, static_cast<int>(count));
}

}  // extern "C"

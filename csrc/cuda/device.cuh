// SPDX-License-Identifier: MIT
// What a kernel uses beyond plain CUDA C++. With ROHYDR_CUDA_SIM the same names come from the simulator of
// tests/cuda_sim, so that one unchanged source runs on a GPU and on a CPU; docs/cuda.md tells how to write for both.
//
//   ROHYDR_LAUNCH(kernel, grid, block, shared_bytes, stream, ...)  launches, gives a cudaError_t as int; stream: void*
//   ROHYDR_SHARED(name)                                            this block's dynamic shared memory, 128-byte aligned
//   ptx::...                                                       instructions that CUDA C++ has no name for
//
// The inline PTX needs sm_80. Matrix fragments are those of the PTX ISA: with g = lane / 4 and t = lane % 4, and with
// rows and columns counted from 0,
//   bf16 m16n8k16: a[i] holds A[g + 8 (i % 2)][2 t + 8 (i / 2) + {0, 1}], b_i holds B[2 t + 8 i + {0, 1}][g];
//   tf32 m16n8k8:  a[i] holds A[g + 8 (i % 2)][t + 4 (i / 2)],             b_i holds B[t + 4 i][g];
//   both:          d[i] holds D[g + 8 (i / 2)][2 t + i % 2].
#pragma once

#if defined(ROHYDR_CUDA_SIM)
#include "simulator/simulator.h"
#else
#include <cuda_bf16.h>
#include <cuda_runtime.h>

#include <cstddef>
#include <cstdint>

#define ROHYDR_LAUNCH(kernel, grid, block, shared_bytes, stream, ...) \
  (::rohydr::launch_kernel((kernel), (grid), (block), (shared_bytes), (stream), __VA_ARGS__))
#define ROHYDR_SHARED(name) extern __shared__ __align__(128) unsigned char name[]

namespace rohydr {

// Of a multiprocessor's memory one block's need is made shared, and the rest a first cache, where no multiprocessor has
// more than one block; else the device decides. A hint: where it fails, nothing is lost.
template <typename Kernel>
void divide_memory(Kernel kernel, std::size_t shared_bytes, dim3 grid) {
  int device = 0, count = 0, most = 0;
  const bool known = cudaGetDevice(&device) == cudaSuccess &&
                     cudaDeviceGetAttribute(&count, cudaDevAttrMultiProcessorCount, device) == cudaSuccess &&
                     cudaDeviceGetAttribute(&most, cudaDevAttrMaxSharedMemoryPerMultiprocessor, device) == cudaSuccess;
  constexpr std::size_t kReserved = 1024;  // of each block, by the system
  int percent = cudaSharedmemCarveoutDefault;
  if (known && grid.x <= static_cast<unsigned>(count)) {
    percent = static_cast<int>((100 * (shared_bytes + kReserved) + most - 1) / most);
  }
  if (cudaFuncSetAttribute(kernel, cudaFuncAttributePreferredSharedMemoryCarveout, percent) != cudaSuccess) {
    cudaGetLastError();
  }
}

// More than 48 KiB of dynamic shared memory are given only to a kernel that was marked for it.
template <typename... Parameters, typename... Arguments>
int launch_kernel(void (*kernel)(Parameters...), dim3 grid, dim3 block, std::size_t shared_bytes, void* stream,
                  Arguments&&... arguments) {
  constexpr std::size_t kUnmarkedLimit = 48 * 1024;
  if (shared_bytes > kUnmarkedLimit) {
    const cudaError_t error = cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize,
                                                   static_cast<int>(shared_bytes));
    if (error != cudaSuccess) return static_cast<int>(error);
    divide_memory(kernel, shared_bytes, grid);
  }
  kernel<<<grid, block, shared_bytes, static_cast<cudaStream_t>(stream)>>>(static_cast<Parameters>(arguments)...);
  return static_cast<int>(cudaGetLastError());
}

namespace ptx {

// threadIdx.x, which the compiler must ask for again: what is computed from it is then not kept in registers from one
// part of a long kernel to the next.
__device__ __forceinline__ int thread_index() {
  int index;
  asm volatile("mov.u32 %0, %%tid.x;" : "=r"(index));
  return index;
}

// x, of which the compiler knows nothing: what is computed from it is computed again, as above.
__device__ __forceinline__ int fresh(int x) {
  asm volatile("" : "+r"(x));
  return x;
}

__device__ __forceinline__ std::uint32_t shared_address(const void* pointer) {
  return static_cast<std::uint32_t>(__cvta_generic_to_shared(pointer));
}

// d += a b, (16, 16) bfloat16 row-major times (16, 8) bfloat16 column-major.
__device__ __forceinline__ void mma_bf16(float (&d)[4], const std::uint32_t (&a)[4], std::uint32_t b0,
                                         std::uint32_t b1) {
  asm volatile(
      "mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, "
      "{%0, %1, %2, %3};"
      : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
}

// d = a b.
__device__ __forceinline__ void mma_bf16_first(float (&d)[4], const std::uint32_t (&a)[4], std::uint32_t b0,
                                               std::uint32_t b1) {
  asm volatile(
      "mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, "
      "{%10, %10, %10, %10};"
      : "=f"(d[0]), "=f"(d[1]), "=f"(d[2]), "=f"(d[3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1), "f"(0.0f));
}

// d += a b, (16, 8) times (8, 8), operands in float32 of which the low 13 bits are not read.
__device__ __forceinline__ void mma_tf32(float (&d)[4], const std::uint32_t (&a)[4], std::uint32_t b0,
                                         std::uint32_t b1) {
  asm volatile(
      "mma.sync.aligned.m16n8k8.row.col.f32.tf32.tf32.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, "
      "{%0, %1, %2, %3};"
      : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
}

// Matrices of 8 x 8 16-bit elements: lane 8 m + r gives the shared address of row r of matrix m, 16-byte aligned, and
// r[m] of a lane receives row lane / 4, columns 2 (lane % 4) + {0, 1}; rows and columns swapped in the _trans forms.
__device__ __forceinline__ void ldmatrix_x2(std::uint32_t (&r)[2], const void* row) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x2.shared.b16 {%0, %1}, [%2];"
               : "=r"(r[0]), "=r"(r[1])
               : "r"(shared_address(row)));
}

__device__ __forceinline__ void ldmatrix_x2_trans(std::uint32_t (&r)[2], const void* row) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x2.trans.shared.b16 {%0, %1}, [%2];"
               : "=r"(r[0]), "=r"(r[1])
               : "r"(shared_address(row)));
}

__device__ __forceinline__ void ldmatrix_x4(std::uint32_t (&r)[4], const void* row) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];"
               : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
               : "r"(shared_address(row)));
}

__device__ __forceinline__ void ldmatrix_x4_trans(std::uint32_t (&r)[4], const void* row) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0, %1, %2, %3}, [%4];"
               : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
               : "r"(shared_address(row)));
}

// 16 bytes of global memory that no kernel writes meanwhile. Stays where it is written: a load that the compiler moves
// ahead takes registers, and one that it moves back is waited for.
__device__ __forceinline__ uint4 load_16(const uint4* global) {
  uint4 v;
  asm volatile("ld.global.nc.v4.u32 {%0, %1, %2, %3}, [%4];"
               : "=r"(v.x), "=r"(v.y), "=r"(v.z), "=r"(v.w)
               : "l"(__cvta_generic_to_global(global)));
  return v;
}

// Asks for the line of global memory in the second cache.
__device__ __forceinline__ void prefetch(const void* global) {
  asm volatile("prefetch.global.L2 [%0];" ::"l"(__cvta_generic_to_global(global)));
}

// 16 bytes from global to shared memory, both 16-byte aligned; there after a wait for their group.
__device__ __forceinline__ void cp_async_16(void* shared, const void* global) {
  asm volatile("cp.async.cg.shared.global [%0], [%1], 16;" ::"r"(shared_address(shared)), "l"(global) : "memory");
}

// The same, both `kBytes` further on.
template <int kBytes>
__device__ __forceinline__ void cp_async_16_at(void* shared, const void* global) {
  asm volatile("cp.async.cg.shared.global [%0 + %2], [%1 + %2], 16;" ::"r"(shared_address(shared)), "l"(global),
               "n"(kBytes)
               : "memory");
}

// As cp_async_16, or 16 zero bytes where `valid` is false: then `global` is not read, and must only be aligned.
__device__ __forceinline__ void cp_async_16_or_zero(void* shared, const void* global, bool valid) {
  const int bytes = valid ? 16 : 0;
  asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(shared_address(shared)), "l"(global), "r"(bytes)
               : "memory");
}

__device__ __forceinline__ void cp_async_commit() { asm volatile("cp.async.commit_group;" ::: "memory"); }

// Waits until at most N of this thread's groups are under way. Other threads' copies are seen after a barrier only.
template <int N>
__device__ __forceinline__ void cp_async_wait() {
  asm volatile("cp.async.wait_group %0;" ::"n"(N) : "memory");
}

// 2^x, error at most 2 ulp; subnormal numbers count as 0 here and below.
__device__ __forceinline__ float exp2_approx(float x) {
  float y;
  asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
  return y;
}

// 1 / x, error at most 1 ulp.
__device__ __forceinline__ float rcp_approx(float x) {
  float y;
  asm("rcp.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
  return y;
}

// Relative error at most 2^-11.
__device__ __forceinline__ float tanh_approx(float x) {
  float y;
  asm("tanh.approx.f32 %0, %1;" : "=f"(y) : "f"(x));
  return y;
}

// Two bfloat16 in one word, each rounded to nearest even.
__device__ __forceinline__ std::uint32_t pack_bf16(float lo, float hi) {
  std::uint32_t word;
  asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(word) : "f"(hi), "f"(lo));
  return word;
}

// The operand of mma_tf32 nearest to x, ties away from zero. Unrounded operands are cut, which doubles the error.
__device__ __forceinline__ std::uint32_t round_tf32(float x) {
  std::uint32_t word;
  asm("cvt.rna.tf32.f32 %0, %1;" : "=r"(word) : "f"(x));
  return word;
}

}  // namespace ptx
}  // namespace rohydr
#endif

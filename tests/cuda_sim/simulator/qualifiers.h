// SPDX-License-Identifier: MIT
// NVIDIA's headers give the types (dim3, float4, __nv_bfloat16 with its exact roundings); the keywords of CUDA C++ become
// those of C++. A static __shared__ variable would be one for all blocks, so it does not compile here.
#pragma once

#if !defined(ROHYDR_CUDA_SIM)
#error "The simulator stands in for CUDA only where ROHYDR_CUDA_SIM is defined."
#endif

#include <cuda_bf16.h>
#include <cuda_runtime_api.h>
#include <vector_functions.h>
#include <vector_types.h>

#undef __constant__
#undef __device__
#undef __forceinline__
#undef __global__
#undef __grid_constant__
#undef __host__
#undef __launch_bounds__
#undef __noinline__
#undef __shared__

#define __constant__ const
#define __device__
#define __forceinline__ inline
#define __global__
#define __grid_constant__
#define __host__
#define __launch_bounds__(...)
#define __noinline__
#define __shared__ static_assert(false, "Declare shared memory with ROHYDR_SHARED(name).");

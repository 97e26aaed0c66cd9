// SPDX-License-Identifier: MIT
// Every function that bindings.cpp can call: the line between Python-facing code and kernels. No torch, no pybind11.
// CPU functions write all of `out`, (samples, count) row-major, on the calling thread. CUDA functions take device
// pointers, launch on `cuda_stream` (a cudaStream_t) of device number `device`, do not wait, and return a cudaError_t.
#pragma once

#include <cstdint>

#include "rohydr/philox.h"

namespace rohydr {

void launch_philox_bits_cpu(const PhiloxRequest& request, std::int64_t* out);
void launch_philox_uniform_cpu(const PhiloxRequest& request, float* out);

int launch_philox_bits_cuda(const PhiloxRequest& request, std::int64_t* out, int device, void* cuda_stream);
int launch_philox_uniform_cuda(const PhiloxRequest& request, float* out, int device, void* cuda_stream);
int launch_philox_normal_cuda(const PhiloxRequest& request, float* out, int device, void* cuda_stream);

int cuda_device_count();                   // 0 without a device or without a driver
const char* cuda_error_text(int error);  // static storage

}  // namespace rohydr

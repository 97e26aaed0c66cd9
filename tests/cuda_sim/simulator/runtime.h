// SPDX-License-Identifier: MIT
// The functions of the CUDA runtime that launch functions call: one device, where all work is done when a call returns.
#pragma once

#include "launch.h"
#include "qualifiers.h"

#define ROHYDR_SIM_RUNTIME extern "C" __attribute__((weak))

ROHYDR_SIM_RUNTIME cudaError_t cudaGetDeviceCount(int* count) {
  *count = 1;
  return cudaSuccess;
}
ROHYDR_SIM_RUNTIME cudaError_t cudaGetDevice(int* device) {
  *device = 0;
  return cudaSuccess;
}
ROHYDR_SIM_RUNTIME cudaError_t cudaSetDevice(int device) {
  return device == 0 ? cudaSuccess : cudaErrorInvalidDevice;
}
ROHYDR_SIM_RUNTIME cudaError_t cudaGetLastError() { return cudaSuccess; }
ROHYDR_SIM_RUNTIME cudaError_t cudaPeekAtLastError() { return cudaSuccess; }
ROHYDR_SIM_RUNTIME cudaError_t cudaDeviceGetAttribute(int* value, cudaDeviceAttr attribute, int /*device*/) {
  switch (attribute) {  // an H100's
    case cudaDevAttrMultiProcessorCount:
      *value = 132;
      return cudaSuccess;
    case cudaDevAttrMaxSharedMemoryPerBlockOptin:
      *value = static_cast<int>(rohydr::sim::most_shared_memory());
      return cudaSuccess;
    case cudaDevAttrComputeCapabilityMajor:
      *value = 9;
      return cudaSuccess;
    case cudaDevAttrComputeCapabilityMinor:
      *value = 0;
      return cudaSuccess;
    default:
      return cudaErrorInvalidValue;
  }
}
ROHYDR_SIM_RUNTIME const char* cudaGetErrorString(cudaError_t error) {
  return error == cudaSuccess ? "no error" : "an error of the simulated device";
}

#undef ROHYDR_SIM_RUNTIME

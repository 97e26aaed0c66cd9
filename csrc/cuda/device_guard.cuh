// SPDX-License-Identifier: MIT
// The current device of this thread, changed for a launch and then changed back.
#pragma once

#include "device.cuh"

namespace rohydr {

class DeviceGuard {
 public:
  explicit DeviceGuard(int device) : device_(device) {
    error_ = cudaGetDevice(&previous_);
    if (error_ == cudaSuccess && previous_ != device_) error_ = cudaSetDevice(device_);
  }
  DeviceGuard(const DeviceGuard&) = delete;
  ~DeviceGuard() {
    if (error_ == cudaSuccess && previous_ != device_) cudaSetDevice(previous_);
  }

  int error() const { return static_cast<int>(error_); }  // nothing may be launched unless it is 0

 private:
  int device_, previous_ = 0;
  cudaError_t error_;
};

}  // namespace rohydr

// SPDX-License-Identifier: MIT
// Runs CUDA kernels on the CPU. csrc/cuda/device.cuh includes this file where ROHYDR_CUDA_SIM is defined.
#pragma once

#include "control.h"
#include "intrinsics.h"
#include "launch.h"
#include "ptx.h"
#include "runtime.h"
#include "warp.h"

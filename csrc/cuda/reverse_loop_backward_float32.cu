// SPDX-License-Identifier: MIT
#include "reverse_loop_backward.cuh"

namespace rohydr {

template int launch_loop_backward<float, 32>(const CudaLoopGradient&);
template int launch_loop_backward<float, 64>(const CudaLoopGradient&);
template int launch_loop_backward<float, 128>(const CudaLoopGradient&);

}  // namespace rohydr

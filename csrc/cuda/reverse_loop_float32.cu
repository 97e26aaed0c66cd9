// SPDX-License-Identifier: MIT
#include "reverse_loop_launch.cuh"

namespace rohydr {

template int loop_max_tokens<float, 32>();
template int loop_shared_bytes<float, 32>(const CudaLoopRequest&);
template int launch_loop<float, 32>(const CudaLoopRequest&);
template int loop_max_tokens<float, 64>();
template int loop_shared_bytes<float, 64>(const CudaLoopRequest&);
template int launch_loop<float, 64>(const CudaLoopRequest&);
template int loop_max_tokens<float, 128>();
template int loop_shared_bytes<float, 128>(const CudaLoopRequest&);
template int launch_loop<float, 128>(const CudaLoopRequest&);

}  // namespace rohydr

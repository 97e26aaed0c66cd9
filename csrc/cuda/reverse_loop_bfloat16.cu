// SPDX-License-Identifier: MIT
#include "reverse_loop_launch.cuh"

namespace rohydr {

template int loop_max_tokens<Bf16, 32>();
template int loop_shared_bytes<Bf16, 32>(const CudaLoopRequest&);
template int launch_loop<Bf16, 32>(const CudaLoopRequest&);
template int loop_max_tokens<Bf16, 64>();
template int loop_shared_bytes<Bf16, 64>(const CudaLoopRequest&);
template int launch_loop<Bf16, 64>(const CudaLoopRequest&);
template int loop_max_tokens<Bf16, 128>();
template int loop_shared_bytes<Bf16, 128>(const CudaLoopRequest&);
template int launch_loop<Bf16, 128>(const CudaLoopRequest&);

}  // namespace rohydr

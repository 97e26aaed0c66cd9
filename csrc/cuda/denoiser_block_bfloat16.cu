// SPDX-License-Identifier: MIT
#include "denoiser_block.cuh"

namespace rohydr {

template int launch_block<Bf16, 32>(const CudaBlockRequest&);
template int launch_block_backward<Bf16, 32>(const CudaBlockRequest&);
template int launch_block<Bf16, 64>(const CudaBlockRequest&);
template int launch_block_backward<Bf16, 64>(const CudaBlockRequest&);
template int launch_block<Bf16, 128>(const CudaBlockRequest&);
template int launch_block_backward<Bf16, 128>(const CudaBlockRequest&);

}  // namespace rohydr

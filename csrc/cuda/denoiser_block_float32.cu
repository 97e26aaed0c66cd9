// SPDX-License-Identifier: MIT
#include "denoiser_block.cuh"

namespace rohydr {

template int launch_block<float, 32>(const CudaBlockRequest&);
template int launch_block_backward<float, 32>(const CudaBlockRequest&);
template int launch_block<float, 64>(const CudaBlockRequest&);
template int launch_block_backward<float, 64>(const CudaBlockRequest&);
template int launch_block<float, 128>(const CudaBlockRequest&);
template int launch_block_backward<float, 128>(const CudaBlockRequest&);

}  // namespace rohydr

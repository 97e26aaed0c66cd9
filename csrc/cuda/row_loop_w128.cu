// SPDX-License-Identifier: MIT
#include "row_loop_launch.cuh"

namespace rohydr {

template <>
int loop_max_tokens<Bf16, 128>() {
  return 128;
}
template <>
int loop_shared_bytes<Bf16, 128>(const CudaLoopRequest& request) {
  return for_split<128>(request, RowBytes<128>{request});
}
template <>
ScratchLayout loop_scratch<Bf16, 128>(const CudaLoopModality& modality) {
  return row_or_tile_scratch<128>(modality);
}
template <>
int launch_loop<Bf16, 128>(const CudaLoopRequest& request) {
  return for_split<128>(request, RowLaunch<128>{request});
}

}  // namespace rohydr

// SPDX-License-Identifier: MIT
#include "row_loop_launch.cuh"

namespace rohydr {

template <>
int loop_max_tokens<Bf16, 64>() {
  return 128;
}
template <>
int loop_shared_bytes<Bf16, 64>(const CudaLoopRequest& request) {
  return for_split<64>(request, RowBytes<64>{request});
}
template <>
ScratchLayout loop_scratch<Bf16, 64>(const CudaLoopModality& modality) {
  return row_or_tile_scratch<64>(modality);
}
template <>
int launch_loop<Bf16, 64>(const CudaLoopRequest& request) {
  return for_split<64>(request, RowLaunch<64>{request});
}

}  // namespace rohydr

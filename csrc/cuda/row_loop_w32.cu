// SPDX-License-Identifier: MIT
#include "row_loop_launch.cuh"

namespace rohydr {

template <>
int loop_max_tokens<Bf16, 32>() {
  return 128;
}
template <>
int loop_shared_bytes<Bf16, 32>(const CudaLoopRequest& request) {
  return for_split<32>(request, RowBytes<32>{request});
}
template <>
ScratchLayout loop_scratch<Bf16, 32>(const CudaLoopModality& modality) {
  return row_or_tile_scratch<32>(modality);
}
template <>
int launch_loop<Bf16, 32>(const CudaLoopRequest& request) {
  return for_split<32>(request, RowLaunch<32>{request});
}

}  // namespace rohydr

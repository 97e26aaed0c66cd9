// SPDX-License-Identifier: MIT
#include "reverse_loop_launch.cuh"

namespace rohydr {

template <>
int loop_max_tokens<float, 32>() {
  return tile_max_tokens<float, 32>();
}
template <>
int loop_shared_bytes<float, 32>(const CudaLoopRequest& request) {
  return tile_shared_bytes<float, 32>(request);
}
template <>
ScratchLayout loop_scratch<float, 32>(const CudaLoopModality& modality) {
  return tile_scratch<float, 32>(modality);
}
template <>
int launch_loop<float, 32>(const CudaLoopRequest& request) {
  return launch_tiles<float, 32>(request);
}

template <>
int loop_max_tokens<float, 64>() {
  return tile_max_tokens<float, 64>();
}
template <>
int loop_shared_bytes<float, 64>(const CudaLoopRequest& request) {
  return tile_shared_bytes<float, 64>(request);
}
template <>
ScratchLayout loop_scratch<float, 64>(const CudaLoopModality& modality) {
  return tile_scratch<float, 64>(modality);
}
template <>
int launch_loop<float, 64>(const CudaLoopRequest& request) {
  return launch_tiles<float, 64>(request);
}

template <>
int loop_max_tokens<float, 128>() {
  return tile_max_tokens<float, 128>();
}
template <>
int loop_shared_bytes<float, 128>(const CudaLoopRequest& request) {
  return tile_shared_bytes<float, 128>(request);
}
template <>
ScratchLayout loop_scratch<float, 128>(const CudaLoopModality& modality) {
  return tile_scratch<float, 128>(modality);
}
template <>
int launch_loop<float, 128>(const CudaLoopRequest& request) {
  return launch_tiles<float, 128>(request);
}

}  // namespace rohydr

// SPDX-License-Identifier: MIT
// The host's side of the way back: what is refused, scratch memory, and which kernel it is.
#include "reverse_loop_backward.h"

#include "device_guard.cuh"
#include "gradient_refusal.h"
#include "reverse_loop_backward_launch.h"

namespace rohydr {
namespace {

template <class E>
int launch(const CudaLoopGradient& r) {
  if (r.width == 32) return launch_loop_backward<E, 32>(r);
  return r.width == 64 ? launch_loop_backward<E, 64>(r) : launch_loop_backward<E, 128>(r);
}

}  // namespace

std::string reverse_loop_backward_cuda_refusal(const CudaLoopGradient& r) { return gradient_refusal(sizes_of(r)); }

int reverse_loop_backward_cuda_shared_bytes(const CudaLoopGradient& r) { return GradientShared(sizes_of(r)).bytes; }

std::int64_t reverse_loop_backward_cuda_scratch(const CudaLoopGradient& r) { return scratch_of(r).bytes; }

int launch_reverse_loop_backward_cuda(const CudaLoopGradient& r) {
  if (r.loop.samples == 0 || r.loop.steps == 0) return 0;
  const DeviceGuard guard(r.device);
  if (guard.error() != 0) return guard.error();
  return r.type == CudaType::kBfloat16 ? launch<Bf16>(r) : launch<float>(r);
}

}  // namespace rohydr

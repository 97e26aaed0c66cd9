// SPDX-License-Identifier: MIT
// The host's side of a block of the denoiser: what is refused, scratch memory, and which kernel it is.
#include "denoiser_block.h"

#include "denoiser_block_launch.h"
#include "device_guard.cuh"
#include "gradient_refusal.h"

namespace rohydr {
namespace {

template <class E>
int launch(const CudaBlockRequest& r, bool backward) {
  if (r.width == 32) return backward ? launch_block_backward<E, 32>(r) : launch_block<E, 32>(r);
  if (r.width == 64) return backward ? launch_block_backward<E, 64>(r) : launch_block<E, 64>(r);
  return backward ? launch_block_backward<E, 128>(r) : launch_block<E, 128>(r);
}

}  // namespace

std::string denoiser_block_cuda_refusal(const CudaBlockRequest& r) { return gradient_refusal(sizes_of(r)); }

int denoiser_block_cuda_shared_bytes(const CudaBlockRequest& r) { return GradientShared(sizes_of(r)).bytes; }

std::int64_t denoiser_block_cuda_scratch(const CudaBlockRequest& r, bool backward) {
  return scratch_of(r, backward).bytes;
}

int launch_denoiser_block_cuda(const CudaBlockRequest& r, bool backward) {
  if (r.samples == 0) return 0;
  const DeviceGuard guard(r.device);
  if (guard.error() != 0) return guard.error();
  return r.type == CudaType::kBfloat16 ? launch<Bf16>(r, backward) : launch<float>(r, backward);
}

}  // namespace rohydr

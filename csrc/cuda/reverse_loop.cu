// SPDX-License-Identifier: MIT
// The host's side of the reverse loop: what is refused, scratch memory, and which kernel it is.
#include "reverse_loop.h"

#include <algorithm>

#include "device_guard.cuh"
#include "reverse_loop_launch.h"

namespace rohydr {
namespace {

// function.run<E, W>() for the width and type of the request.
template <class Function>
auto for_kernel(const CudaLoopRequest& r, const Function& function) {
  const bool half = r.type == CudaType::kBfloat16;
  if (r.width == 32) return half ? function.template run<Bf16, 32>() : function.template run<float, 32>();
  if (r.width == 64) return half ? function.template run<Bf16, 64>() : function.template run<float, 64>();
  return half ? function.template run<Bf16, 128>() : function.template run<float, 128>();
}

struct Run {
  const CudaLoopRequest& r;
  template <class E, int W>
  int run() const {
    return launch_loop<E, W>(r);
  }
};

struct Scratch {
  const CudaLoopModality& m;
  template <class E, int W>
  ScratchLayout run() const {
    return loop_scratch<E, W>(m);
  }
};

struct MaxTokens {
  template <class E, int W>
  int run() const {
    return loop_max_tokens<E, W>();
  }
};

struct Shared {
  const CudaLoopRequest& r;
  template <class E, int W>
  int run() const {
    return loop_shared_bytes<E, W>(r);
  }
};

}  // namespace

std::string reverse_loop_cuda_refusal(const CudaLoopRequest& r) {
  const auto text = [](const std::string& takes, std::int64_t got) {
    return "the CUDA kernel takes " + takes + ", and this has " + std::to_string(got);
  };
  if (r.count < 1 || r.count > kLoopModalitiesMax) return text("one to three modalities", r.count);
  if (r.width != 32 && r.width != 64 && r.width != 128) return text("a width of 32, 64 or 128", r.width);
  const int size = r.heads >= 1 && r.width % r.heads == 0 ? r.width / r.heads : 0;
  if (size != 4 && size != 8 && size != 16 && size != 32 && size != 64) {
    return text("heads of 4, 8, 16, 32 or 64 channels", size);
  }
  const int most = for_kernel(r, MaxTokens{});
  const std::string takes = "up to " + std::to_string(most) + " tokens of this width and type";
  for (int i = 0; i < r.count; ++i) {
    const CudaLoopModality& m = r.modalities[i];
    if (m.tokens > most) return text(takes, m.tokens);
    if (r.type == CudaType::kBfloat16 && (r.width < 128 || m.tokens <= kRowTokens)) continue;
    const ArenaLayout arena = arena_of(m, r.width, r.type);
    if (2 * arena.state_depth() > std::max(arena.hidden, 3 * r.width)) {  // x_t, or its noise, where the MLP's are
      return text("up to half as many channels as the MLP is wide", m.channels);
    }
  }
  return "";
}

int reverse_loop_cuda_shared_bytes(const CudaLoopRequest& request) { return for_kernel(request, Shared{request}); }

ScratchLayout scratch_of(const CudaLoopModality& modality, int width, CudaType type) {
  const CudaLoopRequest request{&modality, 1, width, 1, type, 0, nullptr};
  return for_kernel(request, Scratch{modality});
}

std::int64_t reverse_loop_cuda_scratch(const CudaLoopModality& modality, int width, CudaType type) {
  return scratch_of(modality, width, type).bytes;
}

int launch_reverse_loop_cuda(const CudaLoopRequest& request) {
  const DeviceGuard guard(request.device);
  if (guard.error() != 0) return guard.error();
  // In bfloat16 chains of many tokens go alone: another kernel may take them, which adds in another order, and no bit
  // of a chain may depend on the others.
  for (const bool many : {false, true}) {
    CudaLoopModality some[kLoopModalitiesMax];
    CudaLoopRequest part = request;
    part.modalities = some;
    part.count = 0;
    for (int i = 0; i < request.count; ++i) {
      const CudaLoopModality& m = request.modalities[i];
      if ((request.type == CudaType::kBfloat16 && m.tokens > kRowTokens) == many) some[part.count++] = m;
    }
    const int error = part.count == 0 ? 0 : for_kernel(part, Run{part});
    if (error != 0) return error;
  }
  return 0;
}

}  // namespace rohydr

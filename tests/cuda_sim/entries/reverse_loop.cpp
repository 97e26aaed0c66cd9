// SPDX-License-Identifier: MIT
// C entries of csrc/cuda/reverse_loop.cu: all modalities of a launch, one after the other as lists of arguments.
#include "reverse_loop.h"

#include <cstdarg>
#include <vector>

#include "gradient_words.h"
#include "reverse_loop_backward_launch.h"
#include "reverse_loop_launch.h"

namespace {

using rohydr::CudaLoopModality;

struct Modality {
  CudaLoopModality loop;
  std::vector<const void*> weights;
};

class Arguments {
 public:
  explicit Arguments(va_list& list) : list_(list) {}

  std::int64_t integer() { return va_arg(list_, std::int64_t); }
  int size() { return static_cast<int>(integer()); }
  template <class T>
  T* pointer() {
    return static_cast<T*>(va_arg(list_, void*));
  }

  // Weights lie in one array, at `offsets` bytes.
  Modality modality() {
    Modality m{};
    CudaLoopModality& loop = m.loop;
    loop.samples = integer();
    for (int* const place : {&loop.tokens, &loop.keys, &loop.channels, &loop.layers, &loop.hidden, &loop.steps}) {
      *place = size();
    }
    loop.x = pointer<const float>();
    loop.out = pointer<float>();
    loop.position = pointer<const float>();
    loop.block_modulation = pointer<const float>();
    loop.final_modulation = pointer<const float>();
    loop.coefficients = pointer<const float>();
    loop.token_mask = pointer<const std::uint8_t>();
    loop.key_mask = pointer<const std::uint8_t>();
    loop.cond_kv = pointer<const void>();
    const char* const weights = pointer<const char>();
    const std::int64_t* const offsets = pointer<const std::int64_t>();
    for (int i = 0; i < 4 + 12 * loop.layers; ++i) m.weights.push_back(weights + offsets[i]);
    loop.sample_ids = pointer<const std::int64_t>();
    loop.seed = static_cast<std::uint64_t>(integer());
    loop.modality = static_cast<std::uint32_t>(integer());
    loop.scratch = pointer<void>();
    loop.states = pointer<float>();
    loop.kept_steps = size();
    return m;
  }

 private:
  va_list& list_;
};

}  // namespace

// The way back through one modality: `x` and `out` are as CudaLoopGradient says; four results follow.
extern "C" int reverse_loop_backward(std::int64_t width, std::int64_t heads, std::int64_t bf16, ...) {
  va_list list;
  va_start(list, bf16);
  Arguments arguments(list);
  Modality m = arguments.modality();
  m.loop.weights = m.weights.data();
  rohydr::CudaLoopGradient r{};
  r.loop = m.loop;
  r.block_modulation = arguments.pointer<float>();
  r.final_modulation = arguments.pointer<float>();
  r.cond_kv = arguments.pointer<float>();
  r.weights = arguments.pointer<float>();
  va_end(list);
  r.width = static_cast<int>(width);
  r.heads = static_cast<int>(heads);
  r.type = bf16 != 0 ? rohydr::CudaType::kBfloat16 : rohydr::CudaType::kFloat32;
  if (!rohydr::reverse_loop_backward_cuda_refusal(r).empty()) return -1;
  return rohydr::launch_reverse_loop_backward_cuda(r);
}

// Of the way back's scratch memory where part `what` starts, GradientScratch in its order, and after them: parts of the
// weight gradients, and the words of gradient_words.h.
extern "C" std::int64_t reverse_loop_backward_place(std::int64_t what, std::int64_t samples, std::int64_t tokens,
                                                    std::int64_t keys, std::int64_t channels, std::int64_t layers,
                                                    std::int64_t hidden, std::int64_t steps, std::int64_t width,
                                                    std::int64_t heads, std::int64_t bf16) {
  rohydr::CudaLoopGradient r{};
  r.loop.samples = samples;
  r.loop.tokens = static_cast<int>(tokens);
  r.loop.keys = static_cast<int>(keys);
  r.loop.channels = static_cast<int>(channels);
  r.loop.layers = static_cast<int>(layers);
  r.loop.hidden = static_cast<int>(hidden);
  r.loop.steps = static_cast<int>(steps);
  r.width = static_cast<int>(width);
  r.heads = static_cast<int>(heads);
  r.type = bf16 != 0 ? rohydr::CudaType::kBfloat16 : rohydr::CudaType::kFloat32;
  const rohydr::GradientScratch s = rohydr::scratch_of(r);
  const std::int64_t all[] = {s.weights,
                              s.biases,
                              s.transposed,
                              s.condition,
                              s.key_counts,
                              s.key_list,
                              s.row_counts,
                              s.tape,
                              s.streams,
                              s.second_tape,
                              s.modulation,
                              s.weight_parts,
                              s.bytes,
                              rohydr::plan_of(r).parts};
  constexpr std::int64_t kCount = sizeof all / sizeof *all;
  return what < kCount ? all[what] : gradient_word(rohydr::sizes_of(r), what - kCount);
}

extern "C" int reverse_loop(std::int64_t count, std::int64_t width, std::int64_t heads, std::int64_t bf16, ...) {
  std::vector<Modality> modalities;
  va_list list;
  va_start(list, bf16);
  Arguments arguments(list);
  for (std::int64_t i = 0; i < count; ++i) modalities.push_back(arguments.modality());
  va_end(list);
  std::vector<CudaLoopModality> loops;
  for (Modality& m : modalities) {
    m.loop.weights = m.weights.data();
    loops.push_back(m.loop);
  }
  const rohydr::CudaLoopRequest request{
      loops.data(), static_cast<int>(count),
      static_cast<int>(width), static_cast<int>(heads),
      bf16 != 0 ? rohydr::CudaType::kBfloat16 : rohydr::CudaType::kFloat32, 0, nullptr};
  if (!rohydr::reverse_loop_cuda_refusal(request).empty()) return -1;
  return rohydr::launch_reverse_loop_cuda(request);
}

// Byte offsets of weights, biases, condition and counts, and the size of all, by `what` from 0.
extern "C" std::int64_t reverse_loop_scratch(std::int64_t what, std::int64_t samples, std::int64_t keys,
                                             std::int64_t channels, std::int64_t layers, std::int64_t hidden,
                                             std::int64_t width, std::int64_t bf16) {
  CudaLoopModality m{};
  m.samples = samples;
  m.keys = static_cast<int>(keys);
  m.channels = static_cast<int>(channels);
  m.layers = static_cast<int>(layers);
  m.hidden = static_cast<int>(hidden);
  const rohydr::CudaType type = bf16 != 0 ? rohydr::CudaType::kBfloat16 : rohydr::CudaType::kFloat32;
  const rohydr::ScratchLayout scratch = rohydr::scratch_of(m, static_cast<int>(width), type);
  const std::int64_t all[] = {scratch.weights, scratch.biases, scratch.condition, scratch.counts, scratch.bytes};
  return all[what];
}

// Shared memory of a block of the loop.
extern "C" std::int64_t reverse_loop_shared_bytes(std::int64_t tokens, std::int64_t channels, std::int64_t hidden,
                                                  std::int64_t width, std::int64_t heads, std::int64_t bf16) {
  CudaLoopModality m{};
  m.samples = 1;
  m.tokens = static_cast<int>(tokens);
  m.channels = static_cast<int>(channels);
  m.hidden = static_cast<int>(hidden);
  const rohydr::CudaType type = bf16 != 0 ? rohydr::CudaType::kBfloat16 : rohydr::CudaType::kFloat32;
  return rohydr::reverse_loop_cuda_shared_bytes(
      {&m, 1, static_cast<int>(width), static_cast<int>(heads), type, 0, nullptr});
}

// SPDX-License-Identifier: MIT
// C entries of csrc/cuda/denoiser_block.cu. Weights lie in one array, at `offsets` bytes.
#include "denoiser_block.h"

#include "denoiser_block_launch.h"
#include "gradient_words.h"

namespace {

rohydr::CudaBlockRequest request_of(const std::int64_t* sizes) {
  rohydr::CudaBlockRequest r{};
  r.samples = sizes[0];
  r.tokens = static_cast<int>(sizes[1]);
  r.keys = static_cast<int>(sizes[2]);
  r.hidden = static_cast<int>(sizes[3]);
  r.width = static_cast<int>(sizes[4]);
  r.heads = static_cast<int>(sizes[5]);
  r.modulation_rows = static_cast<int>(sizes[6]);
  r.type = sizes[7] != 0 ? rohydr::CudaType::kBfloat16 : rohydr::CudaType::kFloat32;
  return r;
}

}  // namespace

extern "C" std::int64_t denoiser_block_scratch(std::int64_t samples, std::int64_t tokens, std::int64_t keys,
                                               std::int64_t hidden, std::int64_t width, std::int64_t heads,
                                               std::int64_t rows, std::int64_t bf16, std::int64_t backward) {
  const std::int64_t sizes[] = {samples, tokens, keys, hidden, width, heads, rows, bf16};
  return rohydr::denoiser_block_cuda_scratch(request_of(sizes), backward != 0);
}

// Where part `what` of the way back's scratch memory starts, from 0: GradientScratch in its order, and after them the
// words of gradient_words.h.
extern "C" std::int64_t denoiser_block_place(std::int64_t what, std::int64_t samples, std::int64_t tokens,
                                             std::int64_t keys, std::int64_t hidden, std::int64_t width,
                                             std::int64_t heads, std::int64_t rows, std::int64_t bf16) {
  const std::int64_t sizes[] = {samples, tokens, keys, hidden, width, heads, rows, bf16};
  const rohydr::CudaBlockRequest r = request_of(sizes);
  const rohydr::GradientScratch s = rohydr::scratch_of(r, true);
  const std::int64_t all[] = {s.weights,    s.biases,     s.transposed, s.condition,    s.key_counts, s.key_list,
                              s.row_counts, s.tape,       s.streams,    s.modulation,   s.weight_parts, s.bytes};
  constexpr std::int64_t kCount = sizeof all / sizeof *all;
  return what < kCount ? all[what] : gradient_word(rohydr::sizes_of(r), what - kCount);
}

// `sizes`: as above, and whether it is the way back; that has an out_gradient and four results, the forward one.
extern "C" int denoiser_block(const std::int64_t* sizes, const float* x, const float* modulation, const void* cond_kv,
                              const std::uint8_t* token_mask, const std::uint8_t* key_mask, const char* weights,
                              const std::int64_t* offsets, void* scratch, float* out, const float* out_gradient,
                              float* modulation_gradient, float* cond_gradient, float* weight_gradients) {
  rohydr::CudaBlockRequest r = request_of(sizes);
  const bool backward = sizes[8] != 0;
  const void* list[12];
  for (int i = 0; i < 12; ++i) list[i] = weights + offsets[i];
  r.x = x;
  r.modulation = modulation;
  r.cond_kv = cond_kv;
  r.token_mask = token_mask;
  r.key_mask = key_mask;
  r.weights = list;
  r.scratch = scratch;
  r.out = backward ? nullptr : out;
  r.x_gradient = backward ? out : nullptr;
  r.out_gradient = out_gradient;
  r.modulation_gradient = modulation_gradient;
  r.cond_gradient = cond_gradient;
  r.weight_gradients = weight_gradients;
  if (!rohydr::denoiser_block_cuda_refusal(r).empty()) return -1;
  return rohydr::launch_denoiser_block_cuda(r, backward);
}

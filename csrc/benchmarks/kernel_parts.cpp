// SPDX-License-Identifier: MIT
// What each part of a block takes on one core, as a share of the multiply-adds that the core can do: where time goes.
//   kernel_parts_avx512 [tokens] [keys] [rounds]    (docs/cpu.md says how it is built)
// One program for each instruction set. Parts run in turn, over the weights of all blocks, so that they come from where
// they do in a loop. Medians over rounds and blocks; of the way back attention alone.
#include RH_KERNELS  // kernels_<isa>.cpp: the macros of the instruction set, and every kernel

#include <algorithm>
#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <random>
#include <string>
#include <vector>

namespace rohydr {
namespace {

struct Size {
  const char* name;
  Index width, blocks, heads;
};

struct Part {
  std::string name;
  double flop;  // of one call; 0 where none are counted
  std::vector<double> seconds;
};

struct Parts {
  std::vector<Part> all;

  template <class Run>
  void time(const std::string& name, double flop, const Run& run) {
    const auto start = std::chrono::steady_clock::now();
    run();
    const double took = std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
    auto part = std::find_if(all.begin(), all.end(), [&](const Part& one) { return one.name == name; });
    if (part == all.end()) part = all.insert(part, Part{name, flop, {}});
    part->seconds.push_back(took);
  }
};

// Arrays of normal numbers, aligned to lines of the cache, with room beyond the end; never given back.
float* normals(Index count, float deviation) {
  static std::mt19937 generator(1);
  std::normal_distribution<float> draw(0, deviation);
  const std::size_t whole = static_cast<std::size_t>(round_up(count + 512, 16));
  float* const array = static_cast<float*>(std::aligned_alloc(64, whole * sizeof(float)));
  for (std::size_t i = 0; i < whole; ++i) array[i] = draw(generator);
  return array;
}

PackedMatrix<float> matrix(Index columns, Index depth) {
  return {normals(columns * depth, 0.05f), normals(columns, 0.1f), columns, depth};
}

double peak_now() {  // FLOP/s; fma_peak counts its operations
  double best = 0;
  for (int i = 0; i < 5; ++i) {
    constexpr Index kIterations = 100000;
    const auto start = std::chrono::steady_clock::now();
    const double flop = fma_peak<float>(kIterations);
    best = std::max(best, flop / std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count());
  }
  return best;
}

struct Block {
  PackedMatrix<float> qkv, out, q, fc1, fc2;
  float *condition, *modulation, *largest;
};

void run(const Size& size, Index tokens, Index keys, int rounds) {
  constexpr Index N = kLanes<float>;
  const Index width = size.width, depth = width / size.heads, lanes = round_up(tokens, larger(N, 8)) + 2 * N;
  const Index qkv_stride = 3 * width, hidden_stride = 4 * width, plane = round_up(tokens, N) + N;
  const Index most = larger(tokens, keys);
  std::vector<std::int32_t> index(static_cast<std::size_t>(most + 1));
  for (Index i = 0; i <= most; ++i) index[static_cast<std::size_t>(i)] = static_cast<std::int32_t>(i);
  std::vector<Block> blocks;
  for (Index i = 0; i < size.blocks; ++i) {
    Block block{matrix(3 * width, width), matrix(width, width), matrix(width, width), matrix(4 * width, width),
                matrix(width, 4 * width), normals(2 * keys * width, 0.5f), normals(9 * width, 0.1f), normals(width, 1)};
    largest_magnitudes(block.condition, 2 * width, index.data(), keys, width, block.largest);
    blocks.push_back(block);
  }
  const Index rows = tokens + 16;
  float *h = normals(rows * width, 1), *normal = normals(rows * width, 1), *qkv = normals(rows * qkv_stride, 1);
  float *q = normals(rows * width, 1), *hidden = normals(rows * hidden_stride, 1), *largest = normals(width, 1);
  float *q_lines = normals(width * lanes, 1), *attended = normals(width * lanes, 1);
  float *gradient = normals(width * lanes, 1), *q_gradient = normals(width * lanes, 1);
  float *norms = normals(2 * size.heads * lanes, 1);
  float *planes = normals(2 * most * plane, 1), *pairs = normals(2 * tokens * depth, 1);
  float* const key_gradient = normals(2 * most * width, 1);
  const double products = 2.0 * static_cast<double>(tokens * width * width);
  const auto attention = [&](Index count) { return 4.0 * static_cast<double>(tokens * count * width); };
  Parts parts;
  const double peak = peak_now();
  for (int round = 0; round < rounds; ++round) {
    for (Index i = 0; i < rows * width; ++i) h[i] *= 0.1f;  // stays in the size of the data
    for (const Block& block : blocks) {
      const float* const m = block.modulation;
      const RowMajor<float> rows_of{normal, width};
      const auto attend = [&](const KeysValues<float>& kv) {
        attend_heads(q_lines, lanes, tokens, kv, depth, size.heads, attended, lanes, norms, lanes);
      };
      parts.time("LayerNorm", 0, [&] { modulated_layer_norm(h, tokens, width, width, m, m + width, normal); });
      parts.time("Q, K, V", 3 * products, [&] { product(rows_of, tokens, block.qkv, Store<float>{qkv, qkv_stride}); });
      parts.time("transposition", 0, [&] { transpose(qkv, qkv_stride, tokens, width, q_lines, lanes); });
      parts.time("largest keys", 0, [&] {
        largest_magnitudes(qkv + width, qkv_stride, index.data(), tokens, width, largest);
      });
      const KeysValues<float> self{qkv + width, qkv + 2 * width, qkv_stride, index.data(), tokens, largest};
      parts.time("self-attention", attention(tokens), [&] { attend(self); });
      parts.time("out", products, [&] {
        product(ChannelMajor<float>{attended, lanes}, tokens, block.out, AddGated<float>{h, h, width, m + 2 * width});
      });
      parts.time("Q", products, [&] { product(rows_of, tokens, block.q, Store<float>{q, width}); });
      transpose(static_cast<const float*>(q), width, tokens, width, q_lines, lanes);
      const KeysValues<float> cross{block.condition, block.condition + width, 2 * width, index.data(), keys,
                                    block.largest};
      parts.time("cross-attention", attention(keys), [&] { attend(cross); });
      const HeadGradient<float> head{q_lines,  attended, gradient, q_gradient, lanes, norms, lanes, q, normal, width,
                                     width,    planes,   planes + most * plane, pairs, plane, 0.25f};
      parts.time("its way back", 2 * attention(keys), [&] {
        heads_gradients(head, tokens, cross, depth, size.heads, key_gradient, key_gradient + width, 2 * width);
      });
      parts.time("MLP in, GELU", 4 * products, [&] {
        product(rows_of, tokens, block.fc1, StoreGelu<float>{hidden, hidden_stride, nullptr});
      });
      parts.time("MLP out", 4 * products, [&] {
        product(RowMajor<float>{hidden, hidden_stride}, tokens, block.fc2, AddGated<float>{h, h, width, m + 8 * width});
      });
    }
  }
  const double known = std::max(peak, peak_now());
  std::printf("%s: W %d, %d tokens, %d keys, %.0f GFLOP/s\n", size.name, static_cast<int>(width),
              static_cast<int>(tokens), static_cast<int>(keys), known * 1e-9);
  for (Part& part : parts.all) {
    std::sort(part.seconds.begin(), part.seconds.end());
    const double median = part.seconds[part.seconds.size() / 2];
    std::printf("  %-16s %8.2f us", part.name.c_str(), median * 1e6);
    part.flop > 0 ? std::printf("  %3.0f %%\n", 100 * part.flop / median / known) : std::printf("\n");
  }
}

}  // namespace
}  // namespace rohydr

int main(int argc, char** argv) {
  const rohydr::Index tokens = argc > 1 ? std::atoi(argv[1]) : 50, keys = argc > 2 ? std::atoi(argv[2]) : 100;
  const int rounds = argc > 3 ? std::atoi(argv[3]) : 200;
  if (tokens < 1 || keys < 1 || rounds < 1) {
    std::fprintf(stderr, "kernel_parts: tokens, keys and rounds must be 1 or more. Leave them out for 50, 100 and 200.\n");
    return 2;
  }
  for (const rohydr::Size& size : {rohydr::Size{"narrow", 32, 4, 4}, {"paper", 64, 6, 4}, {"wide", 128, 6, 8}}) {
    rohydr::run(size, tokens, keys, rounds);
  }
  return 0;
}

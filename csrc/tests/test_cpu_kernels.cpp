// SPDX-License-Identifier: MIT
// The CPU kernels without Python, for sanitizers and emulators: random shapes and masks in heap buffers of exactly the
// size that a caller gives, so that one element too many is seen, read or written. Exit code 1 after a failure.
//   test_cpu_kernels [cases [first seed]]   each case on every usable instruction set with 1 and with several threads,
//                                           or on the one that ROHYDR_FAST_CPU names
//   test_cpu_kernels --callers [rounds]     threads that call at once, with shared weights (for ThreadSanitizer)
#include <unistd.h>

#include <algorithm>
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <iterator>
#include <memory>
#include <numeric>
#include <string>
#include <thread>
#include <vector>

#include "../cpu/calls.h"
#include "backward_calls.h"
#include "forward_calls.h"

namespace {

using namespace rohydr;

constexpr int kThreads[] = {2, 3, 4, 8};

int failures = 0;

void check(bool good, const std::string& what) {
  if (good) return;
  std::printf("FAILED %s\n", what.c_str());
  std::fflush(stdout);
  ++failures;
}

// The instruction sets to run: the one that is asked for, or every one.
std::vector<Isa> asked_isas() {
  return std::getenv("ROHYDR_FAST_CPU") != nullptr ? std::vector<Isa>{selected_isa()} : usable_isas();
}

constexpr std::size_t kKinds = 11;  // of calls

template <class T>
std::unique_ptr<Call<T>> random_call(std::uint64_t seed) {
  Random random(seed);
  switch (seed % kKinds) {
    case 0:
      return std::make_unique<LoopOf<T>>(random);
    case 1:
      return std::make_unique<DenoiserOf<T>>(random);
    case 2:
      return std::make_unique<BlockOf<T>>(random);
    case 3:
      return std::make_unique<AttentionOf<T>>(random);
    case 4:
      return std::make_unique<LinearsOf<T>>(random);
    case 5:
      return std::make_unique<LoopBackwardOf<T>>(random);
    case 6:
      return std::make_unique<DenoiserBackwardOf<T>>(random);
    case 7:
      return std::make_unique<BlockBackwardOf<T>>(random);
    case 8:
      return std::make_unique<DiffusionLossOf<T>>(random);
    case 9:
      return std::make_unique<ConditioningOf<T>>(random);
    default:
      return std::make_unique<ConditioningBackwardOf<T>>(random);
  }
}

template <class T>
void test_case(std::uint64_t seed) {
  const std::unique_ptr<Call<T>> call = random_call<T>(seed);
  std::size_t turn = seed / kKinds;
  for (const Isa isa : asked_isas()) {
    const std::string name = std::string(isa_name(isa)) + (sizeof(T) == 8 ? " double" : " float") + " seed " +
                             std::to_string(seed);
    const Results<T> alone = call->run(isa, 1, 0);
    check(all_finite(alone), name + ": every element is written and finite");
    const auto same_again = [&](int way, const std::string& when) {
      const int threads = kThreads[turn++ % std::size(kThreads)];
      check(same(call->run(isa, threads, way), alone),
            name + ": the same bits with " + std::to_string(threads) + " threads, way " + std::to_string(way) + when);
    };
    for (int way = 0; way < call->ways(); ++way) same_again(way, "");
    call->change_weights();
    call->run(isa, 1, 0);
    call->change_weights();
    same_again(0, ", after the weights changed and changed back");
  }
  check(call->inputs_unchanged(), "seed " + std::to_string(seed) + ": inputs are as they were");
}

// Threads that call at once, some of which find the pool busy, while instruction sets and so the layouts change.
void test_callers(int rounds) {
  constexpr std::size_t kCallers = 3;
  const std::vector<Isa> isas = usable_isas();
  for (std::size_t seed = 0; seed < static_cast<std::size_t>(rounds); ++seed) {
    std::unique_ptr<Call<float>> own[kCallers];
    std::vector<Results<float>> expected[kCallers];
    int wrong[kCallers] = {};
    std::vector<std::thread> callers;
    for (std::size_t i = 0; i < kCallers; ++i) {
      own[i] = random_call<float>(kCallers * seed + i);
      for (const Isa isa : isas) expected[i].push_back(own[i]->run(isa, 1, 0));
    }
    for (std::size_t i = 0; i < kCallers; ++i) {
      callers.emplace_back([&, i] {
        for (std::size_t turn = 0; turn < 2 * isas.size(); ++turn) {
          const std::size_t isa = (turn + i) % isas.size();
          const int threads = 1 + static_cast<int>((turn + seed) % 4), way = static_cast<int>(turn) % own[i]->ways();
          wrong[i] += !same(own[i]->run(isas[isa], threads, way), expected[i][isa]);
        }
      });
    }
    for (std::thread& caller : callers) caller.join();
    for (const int count : wrong) check(count == 0, "callers, seed " + std::to_string(seed) + ": the same bits");
  }
}

// One PackedWeights, asked by several threads for layouts in turn, every other time for the way back too: an older
// layout stays whole while it is used.
void test_shared_weights(int rounds) {
  const std::vector<Isa> isas = usable_isas();
  Random random(99);
  const DenoiserShape shape{1, 3, 20, 2, 33};
  Weights<float> weights(random, shape);
  PackedWeights<float> packed(shape, weights.arrays());
  std::vector<std::thread> callers;
  std::vector<double> sums(4);
  for (std::size_t i = 0; i < sums.size(); ++i) {
    callers.emplace_back([&, i] {
      for (int turn = 0; turn < 20 * rounds; ++turn) {
        const Kernels<float>& kernels = kernels_of<float>(isas[(static_cast<std::size_t>(turn) + i) % isas.size()]);
        const bool transposed = turn % 2 == 1;
        const auto arena = packed.current(kernels, transposed);
        for (Index k = 0; k < 20; ++k) sums[i] += static_cast<double>(arena->view.blocks[0].q.bias[k]);
        if (!transposed) continue;
        const PackedMatrix<float>& q = arena->transposed.blocks[0].q;
        const Index count = round_up(q.columns, kernels.lanes) * q.depth;
        sums[i] += std::accumulate(q.data, q.data + count, 0.0);
      }
    });
  }
  for (std::thread& caller : callers) caller.join();
  const double spread = *std::max_element(sums.begin(), sums.end()) - *std::min_element(sums.begin(), sums.end());
  check(std::abs(spread) < 1e-6 * rounds, "shared weights: every layout holds the same weights");
}

// Nothing to do is done without touching anything.
void test_nothing() {
  for (const Isa isa : asked_isas()) {
    run_reverse_loops<float>({}, isa, 3);
    run_reverse_loops_backward<float>({}, isa, 3);
    CrossAttentionRequest<float> request{};
    request.batch = {0, 5, 4, nullptr, nullptr};
    request.width = 8;
    request.heads = 2;
    run_cross_attention(request, isa, 2);
  }
}

}  // namespace

int main(int count, char** arguments) {
  alarm(900);  // a hang is a failure
  if (count > 1 && std::string(arguments[1]) == "--callers") {
    const int rounds = count > 2 ? std::atoi(arguments[2]) : 10;
    test_callers(rounds);
    test_shared_weights(rounds);
  } else {
    const int cases = count > 1 ? std::atoi(arguments[1]) : 300;
    const int first = count > 2 ? std::atoi(arguments[2]) : 0;
    test_nothing();
    for (int seed = first; seed < first + cases; ++seed) {
      test_case<float>(static_cast<std::uint64_t>(seed));
      if (static_cast<std::size_t>(seed) / kKinds % 4 == 0) test_case<double>(static_cast<std::uint64_t>(seed));
    }
    std::string names;
    for (const Isa isa : asked_isas()) names += std::string(" ") + isa_name(isa);
    std::printf("%d cases on%s\n", cases, names.c_str());
  }
  std::printf(failures == 0 ? "all good\n" : "%d failed\n", failures);
  return failures == 0 ? 0 : 1;
}

// SPDX-License-Identifier: MIT
// Checks of the native core that Python cannot make: the normals of every instruction set against box_muller.h, and the
// pool of threads with forks and exits at bad moments. Prints what it checked; exit code 1 after a failure.
//   test_cpu_core          everything
//   test_cpu_core --pool   the pool only (ThreadSanitizer: without the forks, whose children it lets start no threads;
//                          AddressSanitizer: "thread was not suspended" comes from its leak search in such children)
//   test_cpu_core --time   nanoseconds per normal and per barrier
#include <pthread.h>
#include <signal.h>
#include <sys/resource.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <cfenv>
#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <string>
#include <thread>
#include <vector>

#include "../cpu/isa.h"
#include "../cpu/noise.h"
#include "../cpu/thread_pool.h"
#include "rohydr/box_muller.h"
#include "rohydr/launch.h"

#if defined(__SANITIZE_THREAD__)
constexpr bool kThreadSanitizer = true, kSanitized = true;
#elif defined(__SANITIZE_ADDRESS__)
constexpr bool kThreadSanitizer = false, kSanitized = true;
#else
constexpr bool kThreadSanitizer = false, kSanitized = false;
#endif

namespace {

using namespace rohydr;
using Clock = std::chrono::steady_clock;

int failures = 0;

bool check(bool good, const std::string& what) {
  std::printf("%s %s\n", good ? "ok    " : "FAILED", what.c_str());
  std::fflush(stdout);  // nothing is left in the buffer for the child of a fork to print again
  failures += good ? 0 : 1;
  return good;
}

double seconds_since(Clock::time_point start) { return std::chrono::duration<double>(Clock::now() - start).count(); }

double cpu_seconds(clockid_t clock) {
  timespec time;
  clock_gettime(clock, &time);
  return static_cast<double>(time.tv_sec) + 1e-9 * static_cast<double>(time.tv_nsec);
}

void sleep_ms(int ms) { std::this_thread::sleep_for(std::chrono::milliseconds(ms)); }

template <typename Call>
std::string error_of(Call call) {
  try {
    call();
  } catch (const std::invalid_argument& error) {
    return error.what();
  }
  return "";
}

std::vector<float> expected_normals(const PhiloxRequest& request, std::int64_t id, std::int64_t first,
                                    std::int64_t blocks) {
  std::vector<float> result(static_cast<std::size_t>(4 * blocks));
  for (std::int64_t block = 0; block < blocks; ++block) {
    float four[4];
    normal_block(philox_block(request, id, first + block), four);
    std::copy_n(four, 4, result.begin() + 4 * block);
  }
  return result;
}

bool same_bits(const float* a, const std::vector<float>& b) {
  return b.empty() || std::memcmp(a, b.data(), sizeof(float) * b.size()) == 0;
}

void test_isa() {
  const std::vector<Isa> isas = usable_isas();
  std::string names;
  bool round_trip = isas.back() == Isa::kPortable;
  for (const Isa isa : isas) {
    names += std::string(" ") + isa_name(isa);
    round_trip = round_trip && isa_by_name(isa_name(isa)) == isa;
    setenv("ROHYDR_FAST_CPU", isa_name(isa), 1);
    round_trip = round_trip && selected_isa() == isa;
  }
  check(round_trip, "isa: every usable one has its name and can be selected:" + names);
  for (const char* wrong : {"sse9", "AVX2", "neon or so"}) {
    setenv("ROHYDR_FAST_CPU", wrong, 1);
    const std::string error = error_of([] { selected_isa(); });
    check(error.rfind("ROHYDR_FAST_CPU: must be one of portable", 0) == 0 && error.find(wrong) != std::string::npos,
          "isa: refused: " + error);
  }
  setenv("ROHYDR_FAST_CPU", "", 1);
  const bool empty = selected_isa() == isas.front();
  unsetenv("ROHYDR_FAST_CPU");
  check(empty && selected_isa() == isas.front(), "isa: the best one when the variable is empty or unset");
  const std::string error = error_of([] { isa_by_name("mmx"); });
  check(error.rfind("isa: name must be one of portable", 0) == 0, "isa: refused: " + error);
}

constexpr std::uint64_t kSeeds[] = {0, 0x299F31D0A4093822u, ~std::uint64_t{0}};
constexpr std::int64_t kIds[] = {0, 77, 0xABCD12345678, (std::int64_t{1} << 48) - 1};
constexpr std::int64_t kCounterEnd = std::int64_t{1} << 32;

void test_normals(Isa isa) {
  const NormalKernel normals = normal_kernel(isa);
  const std::string name = std::string("normals ") + isa_name(isa) + ": ";
  const float canary = 1234.5f;
  std::int64_t wrong = 0, rows = 0;
  for (const std::uint64_t seed : kSeeds) {
    const PhiloxRequest request{seed, nullptr, 0, 0, 0xFE, 0xFFFFFFF0u, 0x9C};
    for (const std::int64_t id : kIds) {
      for (const std::int64_t first : {std::int64_t{0}, std::int64_t{1}, std::int64_t{7}, std::int64_t{12345},
                                       kCounterEnd - 40, kCounterEnd - 1, kCounterEnd + 3}) {
        for (std::int64_t blocks = 0; blocks <= 70; ++blocks) {
          std::vector<float> row(static_cast<std::size_t>(4 * blocks + 1), canary);  // +1: one float off alignment too
          normals(request, id, first, blocks, row.data());
          ++rows;
          wrong += !same_bits(row.data(), expected_normals(request, id, first, blocks)) || row.back() != canary;
        }
      }
    }
  }
  check(wrong == 0, name + std::to_string(rows) + " short rows with the bits of box_muller.h");
  // So many that nearly every one of the 2^24 radii and 2^24 angles is met.
  const std::int64_t blocks = std::int64_t{1} << (kSanitized ? 18 : 24);
  const std::int64_t part = 1 << 16;
  const PhiloxRequest request{2024, nullptr, 0, 0, 1, 2, 3};
  std::vector<float> numbers(static_cast<std::size_t>(4 * part + 1));
  for (std::int64_t first = 0; first < blocks; first += part) {
    normals(request, 5, first, part, numbers.data() + 1);
    wrong += !same_bits(numbers.data() + 1, expected_normals(request, 5, first, part));
  }
  check(wrong == 0, name + std::to_string(4 * blocks) + " numbers of one row, not aligned");
}

void test_launch(Isa isa) {
  setenv("ROHYDR_FAST_CPU", isa_name(isa), 1);
  bool good = true;
  const std::vector<std::int64_t> ids(std::begin(kIds), std::end(kIds));
  for (std::int64_t count = 0; count <= 150; ++count) {
    const PhiloxRequest request{99, ids.data(), static_cast<std::int64_t>(ids.size()), count, 2, 3, 4};
    std::vector<float> out(ids.size() * static_cast<std::size_t>(count));
    launch_philox_normal_cpu(request, normal_kernel(selected_isa()), out.data());
    for (std::size_t row = 0; row < ids.size(); ++row) {
      std::vector<float> expected = expected_normals(request, ids[row], 0, philox_blocks_per_row(count));
      expected.resize(static_cast<std::size_t>(count));
      good = good && same_bits(out.data() + row * expected.size(), expected);
    }
  }
  unsetenv("ROHYDR_FAST_CPU");
  check(good, std::string("launch ") + isa_name(isa) + ": rows of 0 to 150 numbers");
}

// Each thread writes its own cell and, after a barrier, reads everybody's: wrong, and a race, if the barrier leaks.
struct Team {
  explicit Team(int threads) : barrier(threads), size(threads), cell(static_cast<std::size_t>(threads)) {}
  Barrier barrier;
  int size;
  std::vector<int> cell;
  std::atomic<int> wrong{0};
};

void meet(void* context, int index) {
  Team& team = *static_cast<Team*>(context);
  for (int phase = 1; phase <= 3; ++phase) {
    team.cell[static_cast<std::size_t>(index)] = phase;
    team.barrier.wait();
    for (const int value : team.cell) team.wrong += value != phase;
    team.barrier.wait();
  }
}

bool run_team(int threads) {
  Team team(threads);
  return run_on_threads(threads, meet, &team) && team.wrong == 0 && team.cell == std::vector<int>(team.cell.size(), 3);
}

// What the child of a fork says: true when `child` returned true in it within half a minute.
template <typename Child>
bool in_child(Child child) {
  const pid_t pid = fork();
  if (pid == 0) {
    alarm(30);
    _exit(child() ? 0 : 1);
  }
  int status = 0;
  return pid > 0 && waitpid(pid, &status, 0) == pid && WIFEXITED(status) && WEXITSTATUS(status) == 0;
}

void test_pool_runs() {
  int good = 0;
  const int runs = kSanitized ? 4000 : 20000;
  const auto start = Clock::now();
  for (int run = 0; run < runs; ++run) good += run_team(1 + run % 8);
  check(good == runs, "pool: " + std::to_string(runs) + " runs of 1 to 8 threads with 6 barriers each, " +
                          std::to_string(seconds_since(start)) + " s");
  check(!run_on_threads(kMaxThreads + 1, meet, nullptr), "pool: more than kMaxThreads is false");
  const std::string error = error_of([] { run_on_threads(0, meet, nullptr); });
  check(error.rfind("run_on_threads: threads must be 1 or more, got 0", 0) == 0, "pool: refused: " + error);
  check(run_team(64) && run_team(2) && run_team(64), "pool: grows to 64");
}

void test_pool_callers() {
  const auto nested = [](void* context, int) { *static_cast<std::atomic<int>*>(context) += run_team(2) ? 100 : 1; };
  std::atomic<int> refused{0};
  check(run_on_threads(3, nested, &refused) && refused == 3, "pool: a run inside a run is false");

  std::atomic<int> state{0};
  std::thread holder([&] {
    run_on_threads(2, [](void* context, int index) {
      auto& stage = *static_cast<std::atomic<int>*>(context);
      if (index == 0) stage = 1;
      while (stage != 2) std::this_thread::yield();
    }, &state);
  });
  while (state != 1) std::this_thread::yield();
  const bool second = run_team(2);
  state = 2;
  holder.join();
  check(!second && run_team(2), "pool: a second caller gets false, and true afterwards");

  std::atomic<int> done{0};
  std::vector<std::thread> callers;
  for (int caller = 0; caller < 4; ++caller) {
    callers.emplace_back([&, caller] {
      for (int run = 0; run < 200; ++run) {
        while (!run_team(2 + caller)) std::this_thread::yield();
        ++done;
      }
    });
  }
  for (std::thread& caller : callers) caller.join();
  check(done == 800, "pool: four callers in turn");
}

void test_pool_threads() {
  const int before = std::fegetround();
  std::fesetround(FE_UPWARD);
  std::atomic<int> upward{0}, interrupted{0};
  struct Both {
    std::atomic<int>&upward, &interrupted;
  } both{upward, interrupted};
  run_on_threads(4, [](void* context, int index) {
    const Both& counts = *static_cast<Both*>(context);
    counts.upward += std::fegetround() == FE_UPWARD;
    sigset_t mask;
    pthread_sigmask(SIG_SETMASK, nullptr, &mask);
    counts.interrupted += index > 0 && sigismember(&mask, SIGINT) == 0;
  }, &both);
  std::fesetround(before);
  check(upward == 4, "pool: the workers compute in the caller's floating-point environment");
  check(interrupted == 0, "pool: the workers leave signals to the other threads");

  run_team(4);
  sleep_ms(20);
  const double idle = cpu_seconds(CLOCK_PROCESS_CPUTIME_ID);
  sleep_ms(200);
  check(cpu_seconds(CLOCK_PROCESS_CPUTIME_ID) - idle < 0.02, "pool: idle workers sleep");

  struct Late {
    Barrier barrier{2};
    double cpu = 0;
  } late;
  run_on_threads(2, [](void* context, int index) {
    Late& team = *static_cast<Late*>(context);
    const double start = cpu_seconds(CLOCK_THREAD_CPUTIME_ID);
    if (index == 0) sleep_ms(50);
    team.barrier.wait();
    if (index == 1) team.cpu = cpu_seconds(CLOCK_THREAD_CPUTIME_ID) - start;
  }, &late);
  check(late.cpu < (kSanitized ? 0.005 : 0.001),
        "barrier: 50 ms of waiting cost " + std::to_string(1e6 * late.cpu) + " us of CPU time");
}

void test_pool_forks() {
  const auto child = [] { return run_team(2) && run_team(5); };
  int good = 0;
  for (int i = 0; i < 20; ++i) good += in_child(child) && run_team(3);
  check(good == 20, "fork: between runs, child and parent run on");
  check(in_child([&] { return child() && in_child(child) && child(); }), "fork: a child's child");

  std::atomic<bool> stop{false};
  std::atomic<int> runs{0};
  std::thread runner([&] {
    while (!stop) runs += run_team(4);
  });
  good = 0;
  for (int i = 0; i < 30; ++i) good += in_child(child);
  stop = true;
  runner.join();
  check(good == 30 && runs > 0 && run_team(4), "fork: while another thread was in the middle of runs");

  const auto start = Clock::now();
  check(in_child([] {
          const bool ran = run_team(4);
          sleep_ms(30);  // now the workers sleep
          std::exit(ran ? 0 : 1);
          return false;
        }) && in_child([] {
          std::thread([] {
            for (;;) run_team(3);
          }).detach();
          sleep_ms(30);
          std::exit(0);
          return false;
        }) && seconds_since(start) < 10,
        "exit: with sleeping workers, and in the middle of a run");

  if (kSanitized) return;  // their shadow memory needs more than the limit
  check(in_child([] {
          const rlimit limit{std::size_t{256} << 20, std::size_t{256} << 20};  // a few stacks of 8 MiB
          return setrlimit(RLIMIT_AS, &limit) == 0 && !run_team(200) && !run_team(200) && run_team(2);
        }),
        "pool: false when the threads cannot start, and usable for fewer");
}

void time_normals() {
  for (const Isa isa : usable_isas()) {
    const NormalKernel normals = normal_kernel(isa);
    for (const std::int64_t blocks : {8, 64, 4096}) {
      std::vector<float> out(static_cast<std::size_t>(4 * blocks));
      const PhiloxRequest request{123, nullptr, 0, 0, 0, 1, 2};
      const std::int64_t rows = 100000 / blocks;
      double best = 1e9;
      for (int attempt = 0; attempt < 20; ++attempt) {
        const auto start = Clock::now();
        for (std::int64_t row = 0; row < rows; ++row) normals(request, row, 0, blocks, out.data());
        best = std::min(best, seconds_since(start));
      }
      std::printf("normals %-8s rows of %5d: %5.2f ns per normal\n", isa_name(isa), static_cast<int>(4 * blocks),
                  1e9 * best / static_cast<double>(4 * blocks * rows));
    }
  }
}

void time_pool() {
  for (const int threads : {2, 4}) {
    constexpr int kTimes = 20000;
    Barrier barrier(threads);
    const auto start = Clock::now();
    run_on_threads(threads, [](void* context, int) {
      for (int i = 0; i < kTimes; ++i) static_cast<Barrier*>(context)->wait();
    }, &barrier);
    const double met = seconds_since(start);
    const auto again = Clock::now();
    for (int i = 0; i < kTimes; ++i) run_on_threads(threads, [](void*, int) {}, nullptr);
    const double ran = seconds_since(again);
    std::printf("pool of %d: %6.2f us per barrier, %6.2f us per empty run\n", threads, 1e6 * met / kTimes,
                1e6 * ran / kTimes);
  }
}

}  // namespace

int main(int count, char** arguments) {
  const std::string option = count > 1 ? arguments[1] : "";
  alarm(600);  // a hang is a failure
  if (option == "--time") {
    time_normals();
    time_pool();
    return 0;
  }
  if (option != "--pool") {
    test_isa();
    for (const Isa isa : usable_isas()) {
      test_normals(isa);
      test_launch(isa);
    }
  }
  test_pool_runs();
  test_pool_callers();
  test_pool_threads();
  if (!kThreadSanitizer) test_pool_forks();
  std::printf(failures == 0 ? "all good\n" : "%d failed\n", failures);
  return failures == 0 ? 0 : 1;
}

// SPDX-License-Identifier: MIT
// The one pool of worker threads of this process, and the barrier for teams inside it.
#pragma once

#include <atomic>
#include <cstdint>

namespace rohydr {

enum class Patience { kOfTheIdle, kOfATeam };

// A number to wait on. The count of sleepers beside it saves the system call when nobody sleeps.
struct WaitWord {
  std::atomic<std::uint32_t> value{0};
  std::atomic<std::uint32_t> sleepers{0};

  // Returns when value is another number: spins for microseconds, those of a team for tens of them, then sleeps.
  void wait_while(std::uint32_t old, Patience patience);
  void wake();  // after value was changed, sequentially consistent
};

// A barrier for `size` threads that backs off: it spins for some time, then sleeps until the last one comes.
// It can be used again at once, and must outlive the team's work (a thread may still be waking the others).
class Barrier {
 public:
  explicit Barrier(int size) : size_(static_cast<std::uint32_t>(size)) {}
  void wait();

 private:
  const std::uint32_t size_;
  std::atomic<std::uint32_t> arrived_{0};
  WaitWord generation_;
};

constexpr int kMaxThreads = 256;

// Runs body(context, index) for index 0..threads-1, each on its own thread (index 0 on the calling one), all of them at
// the same time, so that they may meet in a Barrier; returns when all have returned. The threads compute in the calling
// thread's floating-point environment (rounding, flushing of denormals). `body` must not throw and must not fork.
// Returns false, having run nothing, when the pool is busy with another caller's work (a body that calls this again
// included), cannot start its threads, or `threads` is more than kMaxThreads: the caller then does the work alone.
// kOfOpenMp: on the threads of OpenMP where the process has them, for work in which nobody waits for another. Where torch
// has just used them they still spin, each on a core. A team that meets is for our own, which sleep in between: on a busy
// machine a thread that spun has used up its share.
enum class Threads { kOwn, kOfOpenMp };
bool run_on_threads(int threads, void (*body)(void* context, int index), void* context,
                    Threads kind = Threads::kOwn);

}  // namespace rohydr

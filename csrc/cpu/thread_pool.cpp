// SPDX-License-Identifier: MIT
#include "thread_pool.h"

#include <pthread.h>
#include <signal.h>
#if defined(__linux__)
#include <linux/futex.h>
#include <sys/syscall.h>
#include <unistd.h>
#endif

#include <cfenv>
#include <chrono>
#include <climits>
#include <exception>
#include <new>
#include <thread>
#include <type_traits>

#include "openmp_team.h"
#include "rohydr/check.h"

namespace rohydr {
namespace {

// Members of a team that sleep at a meeting make each other late: waking one takes longer than the work up to the next
// meeting, and the kernel wakes it on the core of who wakes it, while another is idle. So they spin for longer, until
// that was in vain some times in a row: then somebody else has their core, and spinning keeps the other member from it.
// Now and then it is tried again.
constexpr std::chrono::microseconds kShortSpin{5}, kLongSpin{200};
constexpr unsigned kMissesInARow = 10, kMissesBetweenTrials = 32;
thread_local constinit unsigned misses = 0;  // long spins in vain, and the waits that slept since

constexpr int kPausesPerClock = 8;

void pause() {
#if defined(__x86_64__) || defined(__i386__)
  __builtin_ia32_pause();
#elif defined(__aarch64__)
  asm volatile("yield");
#endif
}

// On Linux the system call itself: std::atomic::wait of libstdc++ yields before it sleeps, and beside a busy process
// each of these yields can cost a time slice of milliseconds.
#if defined(__linux__)
static_assert(sizeof(std::atomic<std::uint32_t>) == sizeof(std::uint32_t));

void sleep_while(std::atomic<std::uint32_t>& value, std::uint32_t old) {
  while (value.load() == old) syscall(SYS_futex, &value, FUTEX_WAIT_PRIVATE, old, nullptr, nullptr, 0);
}

void wake_all(std::atomic<std::uint32_t>& value) {
  syscall(SYS_futex, &value, FUTEX_WAKE_PRIVATE, INT_MAX, nullptr, nullptr, 0);
}
#else
void sleep_while(std::atomic<std::uint32_t>& value, std::uint32_t old) { value.wait(old); }
void wake_all(std::atomic<std::uint32_t>& value) { value.notify_all(); }
#endif

struct alignas(64) Worker {
  WaitWord ticket;  // one more for each run that this worker takes part in
};

// One run at a time: whoever turned `busy` from false to true owns every other field. The workers read the job after
// their ticket, and the caller reads nothing of theirs before `remaining` is 0.
struct Pool {
  std::atomic<bool> busy{false};
  int workers = 0;  // started; they never end
  void (*body)(void* context, int index) = nullptr;
  void* context = nullptr;
  std::fenv_t environment{};
  alignas(64) WaitWord remaining;
  Worker worker[kMaxThreads - 1];
};

// In static memory with nothing to destroy: sleeping workers are neither joined nor left with freed memory when the
// process exits, and no lock guards its construction, which a fork could copy in its locked state.
constinit Pool pool;
static_assert(std::is_trivially_destructible_v<Pool>);

// The child of a fork has none of the parent's threads and may have been copied in the middle of a run: it starts anew.
void start_anew_in_child() {
  new (&pool) Pool();
  in_child_of_openmp();
}

// Registered before the first worker starts. Twice, if two first callers race, does no harm.
bool register_for_forks() {
  constinit static std::atomic<bool> registered{false};
  if (!registered.load()) {
    registered.store(pthread_atfork(before_fork_of_openmp, nullptr, start_anew_in_child) == 0);
  }
  return registered.load();
}

void work(int number) {
  WaitWord& ticket = pool.worker[number].ticket;
  for (std::uint32_t seen = 0;; ++seen) {
    ticket.wait_while(seen, Patience::kOfTheIdle);
    std::fesetenv(&pool.environment);
    pool.body(pool.context, number + 1);
    if (pool.remaining.value.fetch_sub(1) == 1) pool.remaining.wake();
  }
}

// Brings the pool to `workers`; what was started before a failure stays for the next run.
bool grow(int workers) {
  if (pool.workers >= workers) return true;
  sigset_t blocked, previous;
  sigfillset(&blocked);
  for (const int fault : {SIGSEGV, SIGBUS, SIGFPE, SIGILL}) sigdelset(&blocked, fault);
  pthread_sigmask(SIG_SETMASK, &blocked, &previous);  // inherited: the host's signals go to the host's own threads
  try {
    for (; pool.workers < workers; ++pool.workers) std::thread(work, pool.workers).detach();
  } catch (const std::exception&) {  // no thread or no memory left
  }
  pthread_sigmask(SIG_SETMASK, &previous, nullptr);
  return pool.workers >= workers;
}

// Whether `value` changes meanwhile.
bool spin_while(const std::atomic<std::uint32_t>& value, std::uint32_t old, std::chrono::microseconds time) {
  const auto end = std::chrono::steady_clock::now() + time;
  do {
    for (int i = 0; i < kPausesPerClock; ++i) {
      pause();
      if (value.load(std::memory_order_acquire) != old) return true;
    }
  } while (std::chrono::steady_clock::now() < end);
  return false;
}

}  // namespace

void WaitWord::wait_while(std::uint32_t old, Patience patience) {
  if (value.load(std::memory_order_acquire) != old) return;
  const bool longer = patience == Patience::kOfATeam &&
                      (misses < kMissesInARow || misses % kMissesBetweenTrials == 0);
  if (spin_while(value, old, longer ? kLongSpin : kShortSpin)) {
    if (longer) misses = 0;
    return;
  }
  if (patience == Patience::kOfATeam) ++misses;
  // Both sides are sequentially consistent: either wake() sees the sleeper, or the sleeper sees the new value.
  sleepers.fetch_add(1);
  sleep_while(value, old);
  sleepers.fetch_sub(1);
}

void WaitWord::wake() {
  if (sleepers.load() != 0) wake_all(value);
}

void Barrier::wait() {
  if (size_ == 1) return;
  const std::uint32_t generation = generation_.value.load(std::memory_order_acquire);
  if (arrived_.fetch_add(1) + 1 < size_) {
    generation_.wait_while(generation, Patience::kOfATeam);
    return;
  }
  arrived_.store(0, std::memory_order_relaxed);  // before the others are let go: they may be back at once
  generation_.value.fetch_add(1);
  generation_.wake();
}

bool run_on_threads(int threads, void (*body)(void* context, int index), void* context, Threads kind) {
  RH_CHECK(threads >= 1, "run_on_threads: threads must be 1 or more, got " << threads << ". Ask for 1 or more.");
  if (threads == 1) {
    body(context, 0);
    return true;
  }
  if (threads > kMaxThreads || !register_for_forks() || pool.busy.exchange(true)) return false;
  if (kind == Threads::kOfOpenMp && run_on_openmp(threads, body, context)) {
    pool.busy.store(false);
    return true;
  }
  const int workers = threads - 1;
  if (!grow(workers)) {
    pool.busy.store(false);
    return false;
  }
  pool.body = body;
  pool.context = context;
  std::fegetenv(&pool.environment);
  pool.remaining.value.store(static_cast<std::uint32_t>(workers));
  for (int i = 0; i < workers; ++i) {
    pool.worker[i].ticket.value.fetch_add(1);
    pool.worker[i].ticket.wake();
  }
  body(context, 0);
  while (const std::uint32_t left = pool.remaining.value.load(std::memory_order_acquire)) {
    pool.remaining.wait_while(left, Patience::kOfATeam);
  }
  pool.busy.store(false);
  return true;
}

}  // namespace rohydr

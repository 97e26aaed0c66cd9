// SPDX-License-Identifier: MIT
#include "openmp_team.h"

#include <dlfcn.h>

#include <atomic>
#include <cfenv>

namespace rohydr {
namespace {

constexpr int kPauseSoft = 1;  // omp_pause_soft

// Of libgomp, and of the runtimes of LLVM and Intel, which have its entries too. Looked up, not linked: a library of our
// own would bring threads of its own.
struct Runtime {
  void (*parallel)(void (*body)(void*), void* data, unsigned threads, unsigned flags);
  int (*thread_number)();
  int (*thread_count)();
  int (*in_parallel)();
  int (*pause)(int kind);  // may be missing
};

template <class Function>
void look_up(const char* name, Function*& function) {
  function = reinterpret_cast<Function*>(dlsym(RTLD_DEFAULT, name));
}

Runtime look_up_runtime() {
  Runtime found{};
  look_up("GOMP_parallel", found.parallel);
  look_up("omp_get_thread_num", found.thread_number);
  look_up("omp_get_num_threads", found.thread_count);
  look_up("omp_in_parallel", found.in_parallel);
  look_up("omp_pause_resource_all", found.pause);
  return found;
}

// Looked up at the first run that needs threads: after torch, or in a process without it.
const Runtime& runtime() {
  static const Runtime found = look_up_runtime();
  return found;
}

constinit std::atomic<bool> used{false};
constinit std::atomic<bool> lost{false};  // in the child of a fork that the runtime was not told of
constinit std::atomic<bool> told{true};   // of the fork that is under way

struct Run {
  const Runtime& runtime;
  int threads;
  void (*body)(void* context, int index);
  void* context;
  std::fenv_t environment;
  std::atomic<bool> complete{true};
};

void member(void* data) {
  Run& run = *static_cast<Run*>(data);
  if (run.runtime.thread_count() != run.threads) {  // the same for all members
    run.complete.store(false);
    return;
  }
  std::fenv_t own;
  std::fegetenv(&own);
  std::fesetenv(&run.environment);
  run.body(run.context, run.runtime.thread_number());
  std::fesetenv(&own);
}

}  // namespace

bool run_on_openmp(int threads, void (*body)(void* context, int index), void* context) {
  const Runtime& found = runtime();
  const bool there = found.parallel && found.thread_number && found.thread_count && found.in_parallel;
  if (!there || lost.load() || found.in_parallel() != 0) return false;
  used.store(true);
  Run run{found, threads, body, context, {}, {true}};
  std::fegetenv(&run.environment);
  found.parallel(member, &run, static_cast<unsigned>(threads), 0);
  return run.complete.load();
}

void before_fork_of_openmp() {
  if (!used.load()) return;
  told.store(runtime().pause != nullptr && runtime().pause(kPauseSoft) == 0);
}

void in_child_of_openmp() {
  if (!told.load()) lost.store(true);
}

}  // namespace rohydr

// SPDX-License-Identifier: MIT
#include "openmp_team.h"

#include <dlfcn.h>

#include <algorithm>
#include <atomic>
#include <cfenv>
#include <fstream>
#include <sstream>
#include <string>

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

// Whether this process is the child of a fork, and has not become another program since: Linux says so.
bool is_forked() {
  constexpr unsigned long kForkNoExec = 0x40;  // PF_FORKNOEXEC
  std::ifstream file("/proc/self/stat");
  std::string line;
  std::getline(file, line);
  std::istringstream fields(line.substr(std::min(line.rfind(')') + 1, line.size())));  // the program's name can be anything
  std::string state;
  long parent, group, session, terminal, foreground;
  unsigned long flags = 0;
  fields >> state >> parent >> group >> session >> terminal >> foreground >> flags;
  return (flags & kForkNoExec) != 0;
}

constinit std::atomic<bool> used{false};
constinit std::atomic<bool> told{false};  // of the fork that is under way
constinit std::atomic<bool> lost{false};  // in a child whose parent's threads the runtime may still count on

// Without a lock, which a fork could copy in its locked state: one run at a time comes here.
constinit std::atomic<bool> looked_up{false};
constinit Runtime runtime{};

// At the first run: after torch, or in a process without it. A fork before that was not noticed here.
void look_up_runtime() {
  look_up("GOMP_parallel", runtime.parallel);
  look_up("omp_get_thread_num", runtime.thread_number);
  look_up("omp_get_num_threads", runtime.thread_count);
  look_up("omp_in_parallel", runtime.in_parallel);
  look_up("omp_pause_resource_all", runtime.pause);
  if (is_forked()) lost.store(true);
  looked_up.store(true);
}

struct Run {
  int threads;
  void (*body)(void* context, int index);
  void* context;
  std::fenv_t environment;
  std::atomic<bool> complete{true};
};

void member(void* data) {
  Run& run = *static_cast<Run*>(data);
  if (runtime.thread_count() != run.threads) {  // the same for all members
    run.complete.store(false);
    return;
  }
  std::fenv_t own;
  std::fegetenv(&own);
  std::fesetenv(&run.environment);
  run.body(run.context, runtime.thread_number());
  std::fesetenv(&own);
}

}  // namespace

bool run_on_openmp(int threads, void (*body)(void* context, int index), void* context) {
  if (!looked_up.load()) look_up_runtime();
  const bool there = runtime.parallel && runtime.thread_number && runtime.thread_count && runtime.in_parallel;
  if (!there || lost.load() || runtime.in_parallel() != 0) return false;
  used.store(true);
  Run run{threads, body, context, {}, {true}};
  std::fegetenv(&run.environment);
  runtime.parallel(member, &run, static_cast<unsigned>(threads), 0);
  return run.complete.load();
}

void before_fork_of_openmp() {
  told.store(used.load() && runtime.pause != nullptr && runtime.pause(kPauseSoft) == 0);
}

void in_child_of_openmp() {
  if (!told.load()) lost.store(true);
}

}  // namespace rohydr

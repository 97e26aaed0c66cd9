// SPDX-License-Identifier: MIT
// The GIL is given up while kernels run. A thread that asks for it again when the interpreter is ending is ended by
// CPython (before 3.14) with pthread_exit, which unwinds through C++ and aborts the process. So it must not ask: once
// the process is ending, threads that come back sleep, as CPython 3.14 lets them.
#pragma once

#include <pybind11/pybind11.h>

#include <atomic>
#include <chrono>
#include <thread>

namespace rohydr {

inline std::atomic<bool> interpreter_ends{false};
inline std::atomic<int> threads_coming_back{0};  // past the question whether it ends, without the GIL yet
inline std::thread::id ending_thread;

class ReleasedGil {
 public:
  ReleasedGil() : state_(PyEval_SaveThread()) {}
  ReleasedGil(const ReleasedGil&) = delete;
  ~ReleasedGil() {
    threads_coming_back.fetch_add(1);
    if (interpreter_ends.load() && std::this_thread::get_id() != ending_thread) {
      threads_coming_back.fetch_sub(1);
      for (;;) std::this_thread::sleep_for(std::chrono::hours(1));
    }
    PyEval_RestoreThread(state_);
    threads_coming_back.fetch_sub(1);
  }

 private:
  PyThreadState* state_;
};

// To be called by atexit: from then on only this thread comes back, and whoever was about to has.
inline void keep_threads_away() {
  ending_thread = std::this_thread::get_id();
  interpreter_ends.store(true);
  PyThreadState* const state = PyEval_SaveThread();
  // In the child of a fork the count may hold threads that it does not have: not for ever.
  for (int i = 0; i < 1000 && threads_coming_back.load() > 0; ++i) {
    std::this_thread::sleep_for(std::chrono::milliseconds(1));
  }
  PyEval_RestoreThread(state);
}

}  // namespace rohydr

// SPDX-License-Identifier: MIT
// Work that may run in any order, shared out to threads.
#pragma once

#include <algorithm>
#include <exception>
#include <mutex>

#include "prepared.h"
#include "thread_pool.h"

namespace rohydr {

template <class Body>
class SharedOut {
 public:
  SharedOut(std::int64_t pieces, const Body& body) : pieces_(pieces), body_(body) {}

  void run(int threads, Threads kind) {
    threads_ = threads;
    if (threads_ == 1 || !run_on_threads(threads_, &SharedOut::part, this, kind)) {
      threads_ = 1;  // the pool is busy
      part(this, 0);
    }
    if (thrown_) std::rethrow_exception(thrown_);
  }

 private:
  static void part(void* context, int thread) {
    auto& all = *static_cast<SharedOut*>(context);
    const std::int64_t end = all.pieces_ * (thread + 1) / all.threads_;
    try {
      for (std::int64_t piece = all.pieces_ * thread / all.threads_; piece < end; ++piece) all.body_(piece, thread);
    } catch (...) {  // a thread of a pool must not throw
      const std::lock_guard<std::mutex> lock(all.mutex_);
      all.thrown_ = std::current_exception();
    }
  }

  const std::int64_t pieces_;
  const Body& body_;
  int threads_ = 1;
  std::mutex mutex_;
  std::exception_ptr thrown_;
};

// The threads that so many pieces of so much work together are worth waking, of those that are given.
inline int useful_threads(std::int64_t pieces, double flop, int threads) {
  const double useful = std::min(flop / kFlopOfThread + 1, static_cast<double>(std::max<std::int64_t>(pieces, 1)));
  return std::min(threads, static_cast<int>(std::min(useful, 1e6)));
}

// Runs body(piece, thread) for every piece 0..pieces-1, each thread 0..threads-1 as many as another.
template <class Body>
void share_out(std::int64_t pieces, int threads, Threads kind, const Body& body) {
  SharedOut<Body>(pieces, body).run(threads, kind);
}

}  // namespace rohydr

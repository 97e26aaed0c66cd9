// SPDX-License-Identifier: MIT
// One block at a time: its threads are fibers that run one after the other, each until it has to wait, and a warp goes on
// while any of its threads can, so that warps are as far apart as barriers let them be. Which warp and which lane runs first
// is a choice of the caller (forward, reverse, random): a kernel without races gives the same bits in any order.
// A failure ends the launch; the fibers are abandoned where they stand.
#pragma once

#include <algorithm>
#include <bit>
#include <deque>
#include <functional>
#include <memory>
#include <random>
#include <source_location>

#include "memory.h"
#include "qualifiers.h"

namespace rohydr::sim {

using Location = std::source_location;
constexpr unsigned kWarpSize = 32;
constexpr std::uint32_t kFullMask = 0xFFFFFFFFu;

enum class Order { kForward, kReverse, kRandom };

struct Schedule {
  Order order = Order::kForward;
  std::uint64_t seed = 0;
};

inline Schedule& schedule() {
  static Schedule value;
  return value;
}

inline std::string text_of(const Location& at) {
  const std::string path = at.file_name();
  return format("%s:%u", path.substr(path.rfind('/') + 1).c_str(), static_cast<unsigned>(at.line()));
}

inline bool same_place(const Location& a, const Location& b) {
  return a.line() == b.line() && a.column() == b.column() && std::strcmp(a.file_name(), b.file_name()) == 0;
}

// Lanes of one mask that meet to exchange values. Buffered twice: a lane may meet the others for the next time while
// some have yet to read.
struct Meeting {
  static constexpr std::size_t kPayload = 32;

  std::uint32_t mask = 0;
  std::uint32_t arrived = 0;
  std::uint32_t took_part[2] = {};
  const char* kind = nullptr;
  Location site;
  std::uint64_t generation = 0;
  alignas(16) unsigned char slots[2][kWarpSize][kPayload];
};

struct Warp {
  std::uint32_t present = 0;  // lanes that exist and have not exited
  std::vector<std::unique_ptr<Meeting>> meetings;

  static void complete(Meeting& meeting) {
    meeting.took_part[meeting.generation & 1] = meeting.arrived;
    meeting.arrived = 0;
    ++meeting.generation;
  }

  void leave(unsigned lane) {
    present &= ~(1u << lane);
    for (auto& meeting : meetings) {
      if (meeting->arrived != 0 && meeting->arrived == (meeting->mask & present)) complete(*meeting);
    }
  }
};

// Copies of cp.async that one thread has issued: bytes land when it waits for their group, not before.
struct AsyncCopy {
  unsigned char* to;
  const unsigned char* from;  // null: zeros
};

struct Thread {
  Context context;
  Stack stack;
  uint3 index{};
  unsigned lane = 0;
  Warp* warp = nullptr;
  bool done = false;
  const std::uint64_t* counter = nullptr;  // waits until *counter differs from `seen`
  std::uint64_t seen = 0;
  const char* waits_in = nullptr;
  Location waits_at;
  std::vector<AsyncCopy> open_copies;
  std::deque<std::vector<AsyncCopy>> copy_groups;

  bool waiting() const { return counter != nullptr && *counter == seen; }
};

class Block {
 public:
  Block(dim3 grid, dim3 block, std::size_t shared_bytes)
      : grid_(grid), block_(block), shared_(shared_bytes, 128), threads_(std::size_t{block.x} * block.y * block.z),
        warps_((threads_.size() + kWarpSize - 1) / kWarpSize) {}

  // Runs all threads of the block at `index` through body(); false when that failed, with the reason in error().
  bool run(uint3 index, const std::function<void()>& body);

  [[noreturn]] void fail(const std::string& what) {
    describe_failure(what);
    switch_context(current_->context, main_, true);
    __builtin_unreachable();
  }

  // Puts the failure into error() without a switch, for a signal handler.
  void describe_failure(const std::string& what) {
    error_ = format("block (%u, %u, %u), thread (%u, %u, %u): ", index_.x, index_.y, index_.z, current_->index.x,
                    current_->index.y, current_->index.z) + what;
  }

  void wait(const std::uint64_t& counter, const char* kind, const Location& at) {
    Thread& me = *current_;
    me.counter = &counter;
    me.seen = counter;
    me.waits_in = kind;
    me.waits_at = at;
    switch_context(me.context, main_);
    me.counter = nullptr;
  }

  // Waits for all threads that have not exited; returns how many of them gave a true predicate.
  int barrier(bool predicate, const Location& at) {
    if (barrier_arrived_ == 0) {
      barrier_site_ = at;
    } else if (!same_place(barrier_site_, at)) {
      fail(format("divergent barrier: this thread waits at %s, others of its block at %s", text_of(at).c_str(),
                  text_of(barrier_site_).c_str()));
    }
    const std::uint64_t phase = barrier_generation_ & 1;
    barrier_votes_[phase] += predicate;
    if (++barrier_arrived_ == live_) {
      release_barrier();
    } else {
      wait(barrier_generation_, "__syncthreads", at);
    }
    return barrier_votes_[phase];
  }

  // Meets the lanes of `mask`; each brings `bytes` of payload.
  const Meeting& meet(std::uint32_t mask, const void* payload, std::size_t bytes, const char* kind,
                      const Location& at, unsigned& phase);

  Thread& current() { return *current_; }
  const Thread* current_or_null() const { return current_; }
  const GuardedRegion& shared() const { return shared_; }
  dim3 grid() const { return grid_; }
  dim3 block() const { return block_; }
  uint3 index() const { return index_; }
  const std::string& error() const { return error_; }

 private:
  static void thread_entry();
  void prepare_threads();
  bool run_warp(std::size_t warp, std::mt19937_64& random);
  void release_barrier() {
    barrier_arrived_ = 0;
    ++barrier_generation_;
    barrier_votes_[barrier_generation_ & 1] = 0;
  }
  void thread_exits();
  std::string deadlock() const;

  dim3 grid_, block_;
  GuardedRegion shared_;
  std::vector<Thread> threads_;
  std::vector<Warp> warps_;
  uint3 index_{};
  const std::function<void()>* body_ = nullptr;
  Context main_;
  Thread* current_ = nullptr;
  unsigned live_ = 0;
  unsigned barrier_arrived_ = 0;
  std::uint64_t barrier_generation_ = 0;
  int barrier_votes_[2] = {};
  Location barrier_site_;
  std::string error_;
};

inline Block*& running_block() {
  static Block* block = nullptr;
  return block;
}

inline const Meeting& Block::meet(std::uint32_t mask, const void* payload, std::size_t bytes, const char* kind,
                                  const Location& at, unsigned& phase) {
  Thread& me = *current_;
  Warp& warp = *me.warp;
  if ((mask >> me.lane & 1u) == 0) {
    fail(format("%s at %s: the calling lane %u is not in mask 0x%08x", kind, text_of(at).c_str(), me.lane, mask));
  }
  const auto same_mask = [mask](const auto& meeting) { return meeting->mask == mask; };
  auto place = std::find_if(warp.meetings.begin(), warp.meetings.end(), same_mask);
  if (place == warp.meetings.end()) {
    warp.meetings.push_back(std::make_unique<Meeting>());
    place = warp.meetings.end() - 1;
    (*place)->mask = mask;
  }
  Meeting& meeting = **place;
  if (meeting.arrived == 0) {
    meeting.kind = kind;
    meeting.site = at;
  } else if (std::strcmp(meeting.kind, kind) != 0) {
    fail(format("divergent warp: lane %u is in %s at %s, others of mask 0x%08x in %s at %s", me.lane, kind,
                text_of(at).c_str(), mask, meeting.kind, text_of(meeting.site).c_str()));
  }
  phase = meeting.generation & 1;
  std::memcpy(meeting.slots[phase][me.lane], payload, bytes);
  meeting.arrived |= 1u << me.lane;
  if (meeting.arrived == (mask & warp.present)) {
    Warp::complete(meeting);
  } else {
    wait(meeting.generation, kind, at);
  }
  return meeting;
}

inline void Block::thread_entry() {
  Block& block = *running_block();
  entered(block.main_);
  (*block.body_)();
  block.thread_exits();
  switch_context(block.current_->context, block.main_, true);
}

inline void Block::thread_exits() {
  current_->done = true;
  current_->warp->leave(current_->lane);
  --live_;
  if (barrier_arrived_ != 0 && barrier_arrived_ == live_) release_barrier();
}

inline void Block::prepare_threads() {
  for (Warp& warp : warps_) warp = Warp{};
  for (unsigned i = 0; i < threads_.size(); ++i) {
    Thread& thread = threads_[i];
    prepare(thread.context, thread.stack, thread_entry);
    thread.index = {i % block_.x, i / block_.x % block_.y, i / (block_.x * block_.y)};
    thread.lane = i % kWarpSize;
    thread.warp = &warps_[i / kWarpSize];
    thread.warp->present |= 1u << thread.lane;
    thread.done = false;
    thread.counter = nullptr;
    thread.open_copies.clear();
    thread.copy_groups.clear();
  }
  live_ = static_cast<unsigned>(threads_.size());
  barrier_arrived_ = 0;
  barrier_votes_[0] = barrier_votes_[1] = 0;
}

// Lets each thread of a warp that does not wait run until it does; false when all wait.
inline bool Block::run_warp(std::size_t warp, std::mt19937_64& random) {
  const std::size_t first = warp * kWarpSize;
  const unsigned lanes = static_cast<unsigned>(std::min(threads_.size() - first, std::size_t{kWarpSize}));
  const unsigned start = schedule().order == Order::kRandom ? static_cast<unsigned>(random() % lanes) : 0;
  bool progress = false;
  for (unsigned i = 0; i < lanes; ++i) {
    const unsigned lane = schedule().order == Order::kReverse ? lanes - 1 - i : (start + i) % lanes;
    Thread& thread = threads_[first + lane];
    if (thread.done || thread.waiting()) continue;
    progress = true;
    current_ = &thread;
    switch_context(main_, thread.context);
    if (!error_.empty()) break;
  }
  return progress;
}

inline bool Block::run(uint3 index, const std::function<void()>& body) {
  index_ = index;
  body_ = &body;
  shared_.poison();
  prepare_threads();
  const Order order = schedule().order;
  std::mt19937_64 random(schedule().seed ^ (std::uint64_t{index.x} << 40 | std::uint64_t{index.y} << 20 | index.z));
  std::vector<std::size_t> turns(warps_.size());
  for (std::size_t i = 0; i < turns.size(); ++i) turns[i] = order == Order::kReverse ? turns.size() - 1 - i : i;
  while (live_ > 0) {
    if (order == Order::kRandom) std::shuffle(turns.begin(), turns.end(), random);
    bool progress = false;
    for (const std::size_t warp : turns) {
      while (run_warp(warp, random)) {
        progress = true;
        if (!error_.empty()) return false;
        if (order == Order::kRandom && random() % 4 == 0) break;
      }
    }
    if (!progress) {
      error_ = deadlock();
      return false;
    }
  }
  current_ = nullptr;
  const std::string damage = shared_.damage();
  if (damage.empty()) return true;
  error_ = format("block (%u, %u, %u): a store to shared memory %s", index.x, index.y, index.z, damage.c_str());
  return false;
}

// One line for each place where threads wait.
inline std::string Block::deadlock() const {
  std::string text = format("block (%u, %u, %u): deadlock", index_.x, index_.y, index_.z);
  std::vector<std::string> seen;
  for (const Thread& thread : threads_) {
    if (thread.done) continue;
    const std::string place = format("%s at %s", thread.waits_in, text_of(thread.waits_at).c_str());
    if (std::find(seen.begin(), seen.end(), place) != seen.end()) continue;
    seen.push_back(place);
    text += format("; thread (%u, %u, %u) waits in %s", thread.index.x, thread.index.y, thread.index.z, place.c_str());
  }
  return text;
}

}  // namespace rohydr::sim

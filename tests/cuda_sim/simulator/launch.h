// SPDX-License-Identifier: MIT
// A launch runs every block to its end before it returns. Limits are those of sm_90. An access to a guard is
// caught, and reported with the thread that made it.
#pragma once

#include <csetjmp>
#include <csignal>
#include <cstdlib>
#include <tuple>

#include "block.h"

#define ROHYDR_LAUNCH(kernel, grid, block, shared_bytes, stream, ...) \
  (::rohydr::sim::launch_kernel(#kernel, (kernel), (grid), (block), (shared_bytes), (stream), __VA_ARGS__))
#define ROHYDR_SHARED(name) unsigned char* name = ::rohydr::sim::running_block()->shared().start()

namespace rohydr::sim {

// Of a block, in bytes: an H100's, or what ROHYDR_SIM_SHARED_MEMORY says.
inline std::size_t most_shared_memory() {
  const char* const told = std::getenv("ROHYDR_SIM_SHARED_MEMORY");
  return told != nullptr ? std::strtoul(told, nullptr, 10) : std::size_t{227 * 1024};
}

// What tests read after a call; see control.h.
struct Report {
  std::string error;
  std::string launched;  // kernel names as the sources give them, one a line
};

inline Report& report() {
  static Report value;
  return value;
}

class FaultHandler {
 public:
  FaultHandler() : stack_(SIGSTKSZ) {
    stack_t alternative{};
    alternative.ss_sp = stack_.data();
    alternative.ss_size = stack_.size();
    sigaltstack(&alternative, &previous_stack_);
    struct sigaction action{};
    action.sa_sigaction = on_fault;
    action.sa_flags = SA_SIGINFO | SA_ONSTACK | SA_NODEFER;
    sigaction(SIGSEGV, &action, &previous_[0]);
    sigaction(SIGBUS, &action, &previous_[1]);
  }
  ~FaultHandler() {
    sigaction(SIGSEGV, &previous_[0], nullptr);
    sigaction(SIGBUS, &previous_[1], nullptr);
    sigaltstack(&previous_stack_, nullptr);
  }

  static sigjmp_buf& way_out() {
    static sigjmp_buf buffer;
    return buffer;
  }

 private:
  static void on_fault(int, siginfo_t* info, void*) {
    Block& block = *running_block();
    block.describe_failure(describe(block, info->si_addr));
    siglongjmp(way_out(), 1);
  }

  static std::string describe(Block& block, const void* address) {
    if (block.current().stack.overflowed_at(address)) return "its stack overflowed";
    if (block.shared().maps(address)) return "an access to shared memory " + block.shared().place_of(address);
    if (const GuardedRegion* region = device_memory().find(address)) {
      return format("an access to device allocation %d, %s", device_memory().index_of(*region),
                    region->place_of(address).c_str());
    }
    return format("an access to %p, which belongs to no allocation", address);
  }

  std::vector<unsigned char> stack_;
  stack_t previous_stack_{};
  struct sigaction previous_[2]{};
};

// False when a block failed.
inline bool run_blocks(Block& block, dim3 grid, const std::function<void()>& body) {
  std::vector<uint3> indices;
  for (unsigned z = 0; z < grid.z; ++z) {
    for (unsigned y = 0; y < grid.y; ++y) {
      for (unsigned x = 0; x < grid.x; ++x) indices.push_back({x, y, z});
    }
  }
  if (schedule().order == Order::kReverse) std::reverse(indices.begin(), indices.end());
  std::mt19937_64 random(schedule().seed);
  if (schedule().order == Order::kRandom) std::shuffle(indices.begin(), indices.end(), random);
  for (const uint3 index : indices) {
    if (!block.run(index, body)) return false;
  }
  return true;
}

// The same; an access to a guard ends it. Not inlined: no variable may live across the jump.
[[gnu::noinline]] inline bool run_guarded(Block& block, dim3 grid, const std::function<void()>& body) {
  const FaultHandler handler;
  if (sigsetjmp(FaultHandler::way_out(), 1) != 0) return false;
  return run_blocks(block, grid, body);
}

inline int launch(const char* name, dim3 grid, dim3 block_size, std::size_t shared_bytes,
                  const std::function<void()>& body) {
  constexpr unsigned kMaxThreads = 1024;
  const std::uint64_t threads = std::uint64_t{block_size.x} * block_size.y * block_size.z;
  const bool empty = threads == 0 || grid.x == 0 || grid.y == 0 || grid.z == 0;
  if (empty || threads > kMaxThreads || block_size.z > 64 || grid.y > 65535 || grid.z > 65535) {
    return cudaErrorInvalidConfiguration;
  }
  if (shared_bytes > most_shared_memory()) return cudaErrorInvalidValue;
  report().launched += std::string(name) + "\n";
  Block block(grid, block_size, shared_bytes);
  running_block() = &block;
  const bool good = run_guarded(block, grid, body);
  running_block() = nullptr;
  const std::string error = good ? device_memory().damage() : block.error();
  if (error.empty()) return cudaSuccess;
  report().error = std::string(name) + ": " + error;
  return cudaErrorLaunchFailure;
}

template <typename... Parameters, typename... Arguments>
int launch_kernel(const char* name, void (*kernel)(Parameters...), dim3 grid, dim3 block, std::size_t shared_bytes,
                  void* /*stream*/, Arguments&&... arguments) {
  const std::tuple<std::remove_const_t<Parameters>...> values(static_cast<Parameters>(arguments)...);
  return launch(name, grid, block, shared_bytes, [&] { std::apply(kernel, values); });
}

}  // namespace rohydr::sim

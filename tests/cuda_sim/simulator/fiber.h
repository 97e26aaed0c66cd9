// SPDX-License-Identifier: MIT
// One fiber for each CUDA thread: a stack of its own, and a switch that only the running fiber itself can cause. On
// x86-64 the switch is twelve instructions; elsewhere, or with ROHYDR_SIM_UCONTEXT, it is swapcontext.
// AddressSanitizer is told of every switch.
#pragma once

#include <sys/mman.h>
#include <unistd.h>

#include <cstddef>
#include <cstdint>
#include <cstdlib>

#if !defined(__x86_64__) && !defined(ROHYDR_SIM_UCONTEXT)
#define ROHYDR_SIM_UCONTEXT 1
#endif
#if defined(ROHYDR_SIM_UCONTEXT)
#include <ucontext.h>
#endif
#if defined(__SANITIZE_ADDRESS__)
#include <sanitizer/asan_interface.h>
#include <sanitizer/common_interface_defs.h>
#endif

namespace rohydr::sim {

inline std::size_t page_size() {
  static const std::size_t size = static_cast<std::size_t>(sysconf(_SC_PAGESIZE));
  return size;
}

inline std::size_t round_up(std::size_t value, std::size_t multiple) {
  return (value + multiple - 1) / multiple * multiple;
}

// Address space that cannot be touched yet; abort is right when there is none, since no kernel can be run then.
inline unsigned char* reserve(std::size_t bytes) {
  void* memory = mmap(nullptr, bytes, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  if (memory == MAP_FAILED) std::abort();
  return static_cast<unsigned char*>(memory);
}

// A stack with a page below it that cannot be touched, so that an overflow stops at once.
class Stack {
 public:
#if defined(__SANITIZE_ADDRESS__)
  static constexpr std::size_t kBytes = 512 * 1024;  // redzones make frames several times as large
#else
  static constexpr std::size_t kBytes = 128 * 1024;
#endif

  Stack() : memory_(reserve(kBytes + page_size())) { mprotect(bottom(), kBytes, PROT_READ | PROT_WRITE); }
  ~Stack() {
    unpoison();
    munmap(memory_, kBytes + page_size());
  }
  Stack(const Stack&) = delete;
  Stack& operator=(const Stack&) = delete;

  unsigned char* bottom() const { return memory_ + page_size(); }

  // An abandoned fiber leaves AddressSanitizer's marks around its variables.
  void unpoison() const {
#if defined(__SANITIZE_ADDRESS__)
    __asan_unpoison_memory_region(bottom(), kBytes);
#endif
  }

  bool overflowed_at(const void* address) const {
    const auto* place = static_cast<const unsigned char*>(address);
    return place >= memory_ && place < bottom();
  }

 private:
  unsigned char* memory_;
};

struct Context {
#if defined(ROHYDR_SIM_UCONTEXT)
  ucontext_t state;
#else
  void* stack_pointer = nullptr;
#endif
  void* fake_stack = nullptr;  // AddressSanitizer's
  const void* bottom = nullptr;
  std::size_t size = 0;
};

#if !defined(ROHYDR_SIM_UCONTEXT)
// Saves what the System V ABI asks a callee to keep, and goes on where `load` was saved.
[[gnu::naked, gnu::noinline]] inline void switch_stacks(void** /*save*/, void* /*load*/) {
  asm(R"(
    pushq %rbp
    pushq %rbx
    pushq %r12
    pushq %r13
    pushq %r14
    pushq %r15
    movq %rsp, (%rdi)
    movq %rsi, %rsp
    popq %r15
    popq %r14
    popq %r13
    popq %r12
    popq %rbx
    popq %rbp
    ret
  )");
}
#endif

// `context` will begin in entry() on `stack`. entry() calls entered() first, and never returns.
inline void prepare(Context& context, const Stack& stack, void (*entry)()) {
  context.fake_stack = nullptr;
  context.bottom = stack.bottom();
  context.size = Stack::kBytes;
  stack.unpoison();
#if defined(ROHYDR_SIM_UCONTEXT)
  getcontext(&context.state);
  context.state.uc_stack.ss_sp = stack.bottom();
  context.state.uc_stack.ss_size = Stack::kBytes;
  context.state.uc_link = nullptr;
  makecontext(&context.state, entry, 0);
#else
  void** top = reinterpret_cast<void**>(stack.bottom() + Stack::kBytes);
  constexpr int kSavedRegisters = 6;
  *--top = nullptr;  // where entry() would return to; keeps the alignment that the ABI wants
  *--top = reinterpret_cast<void*>(entry);
  for (int i = 0; i < kSavedRegisters; ++i) *--top = nullptr;
  context.stack_pointer = top;
#endif
}

// What a new fiber calls first; `previous` is the context that switched to it.
inline void entered([[maybe_unused]] Context& previous) {
#if defined(__SANITIZE_ADDRESS__)
  __sanitizer_finish_switch_fiber(nullptr, &previous.bottom, &previous.size);
#endif
}

// Leaves `from` for `to`; returns when somebody switches back. A `last` switch ends the fiber.
inline void switch_context(Context& from, Context& to, [[maybe_unused]] bool last = false) {
#if defined(__SANITIZE_ADDRESS__)
  __sanitizer_start_switch_fiber(last ? nullptr : &from.fake_stack, to.bottom, to.size);
#endif
#if defined(ROHYDR_SIM_UCONTEXT)
  swapcontext(&from.state, &to.state);
#else
  switch_stacks(&from.stack_pointer, to.stack_pointer);
#endif
#if defined(__SANITIZE_ADDRESS__)
  __sanitizer_finish_switch_fiber(from.fake_stack, nullptr, nullptr);
#endif
}

}  // namespace rohydr::sim

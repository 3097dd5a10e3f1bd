// Fibers: stacks of their own, switched by hand. One runs each CUDA thread; the scheduler is the fiber that was there
// before.
//
// A switch saves the registers that a called function must preserve, and nothing else: a system call (as in
// swapcontext, which saves the signal mask) would cost more than the kernel code between two switches.
// EMULATOR_UCONTEXT selects swapcontext all the same, for processors without an assembly switch here.
#pragma once

#include <sys/mman.h>
#include <unistd.h>

#include "base.h"

#if !defined(__x86_64__) && !defined(__aarch64__)
#define EMULATOR_UCONTEXT
#endif
#ifdef EMULATOR_UCONTEXT
#include <ucontext.h>
#endif
#ifdef __SANITIZE_ADDRESS__
#include <sanitizer/asan_interface.h>
#include <sanitizer/common_interface_defs.h>
#endif

#ifndef EMULATOR_UCONTEXT
// Saves the registers on the current stack and its pointer in `*from`; continues on the stack `to`. Weak: every
// translation unit that includes this has one, the linker keeps one.
extern "C" __attribute__((visibility("hidden"))) void emulator_switch_stack(void** from, void* to);
#ifdef __x86_64__
asm(R"(
.text
.weak emulator_switch_stack
.hidden emulator_switch_stack
.type emulator_switch_stack, @function
emulator_switch_stack:
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
.size emulator_switch_stack, . - emulator_switch_stack
)");
#else
asm(R"(
.text
.weak emulator_switch_stack
.hidden emulator_switch_stack
.type emulator_switch_stack, %function
emulator_switch_stack:
  sub sp, sp, #160
  stp x19, x20, [sp, #0]
  stp x21, x22, [sp, #16]
  stp x23, x24, [sp, #32]
  stp x25, x26, [sp, #48]
  stp x27, x28, [sp, #64]
  stp x29, x30, [sp, #80]
  stp d8, d9, [sp, #96]
  stp d10, d11, [sp, #112]
  stp d12, d13, [sp, #128]
  stp d14, d15, [sp, #144]
  mov x9, sp
  str x9, [x0]
  mov sp, x1
  ldp x19, x20, [sp, #0]
  ldp x21, x22, [sp, #16]
  ldp x23, x24, [sp, #32]
  ldp x25, x26, [sp, #48]
  ldp x27, x28, [sp, #64]
  ldp x29, x30, [sp, #80]
  ldp d8, d9, [sp, #96]
  ldp d10, d11, [sp, #112]
  ldp d12, d13, [sp, #128]
  ldp d14, d15, [sp, #144]
  add sp, sp, #160
  ret
.size emulator_switch_stack, . - emulator_switch_stack
)");
#endif
#endif

namespace emulator __attribute__((visibility("hidden"))) {

struct Fiber {
#ifdef EMULATOR_UCONTEXT
  ucontext_t context;
#else
  void* stack_pointer = nullptr;
#endif
  // The sanitizer is told where the stack is; for the scheduler's it tells us.
  const void* stack = nullptr;
  size_t stack_bytes = 0;
  void* fake_stack = nullptr;
};

// Makes `fiber` start at `entry`, with the stack pointer `offset` bytes below the top. `entry` must not return.
inline void prepare(Fiber& fiber, char* stack, size_t bytes, size_t offset, void (*entry)()) {
  fiber.stack = stack;
  fiber.stack_bytes = bytes;
  fiber.fake_stack = nullptr;
#ifdef __SANITIZE_ADDRESS__
  __asan_unpoison_memory_region(stack, bytes);  // frames that a fault abandoned
#endif
#ifdef EMULATOR_UCONTEXT
  getcontext(&fiber.context);
  fiber.context.uc_stack.ss_sp = stack;
  fiber.context.uc_stack.ss_size = bytes - offset;
  fiber.context.uc_link = nullptr;
  makecontext(&fiber.context, entry, 0);
#elif defined(__x86_64__)
  // Six registers to pop, the return address, and a null above it: at entry the stack pointer is 8 off a multiple of
  // 16.
  void** top = reinterpret_cast<void**>(stack + bytes - offset) - 8;
  memset(top, 0, 64);
  top[6] = reinterpret_cast<void*>(entry);
  fiber.stack_pointer = top;
#else
  char* top = stack + bytes - offset - 160;
  memset(top, 0, 160);
  memcpy(top + 88, &entry, sizeof entry);  // x30, the return address
  fiber.stack_pointer = top;
#endif
}

enum class Leave { for_now, for_good };

inline void switch_fiber(Fiber& from, Fiber& to, Leave leave) {
#ifdef __SANITIZE_ADDRESS__
  __sanitizer_start_switch_fiber(leave == Leave::for_good ? nullptr : &from.fake_stack, to.stack, to.stack_bytes);
#else
  (void)leave;
#endif
#ifdef EMULATOR_UCONTEXT
  swapcontext(&from.context, &to.context);
#else
  emulator_switch_stack(&from.stack_pointer, to.stack_pointer);
#endif
#ifdef __SANITIZE_ADDRESS__
  __sanitizer_finish_switch_fiber(from.fake_stack, nullptr, nullptr);
#endif
}

// First thing in a fiber: ends the switch that started it. `from` is the fiber that made it.
inline void entered(Fiber& from) {
#ifdef __SANITIZE_ADDRESS__
  __sanitizer_finish_switch_fiber(nullptr, &from.stack, &from.stack_bytes);
#else
  (void)from;
#endif
}

// The stacks of a block's threads, each above a page that must not be touched.
class Stacks {
 public:
  static constexpr size_t BYTES = 256 << 10;
  static constexpr size_t PAGE = 64 << 10;  // the largest page size of the processors meant

  Stacks() = default;
  Stacks(const Stacks&) = delete;
  Stacks& operator=(const Stacks&) = delete;
  ~Stacks() { release(); }

  void reserve(u32 count) {
    if (count <= count_) return;
    release();
    void* memory = mmap(nullptr, count * STRIDE, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (memory == MAP_FAILED) {
      perror("emulator: mmap of the stacks");
      abort();
    }
    memory_ = static_cast<char*>(memory);
    count_ = count;
    for (u32 i = 0; i < count; i++) mprotect(stack(i), BYTES, PROT_READ | PROT_WRITE);
  }
  char* stack(u32 i) const { return memory_ + i * STRIDE + PAGE; }
  // Where thread `i` starts below the top of its stack. All threads use the same few kilobytes of their stacks at a
  // time; at equal offsets these would fall on the same sets of the caches.
  static size_t offset(u32 i) { return i % 64 * (17 * 64); }

 private:
  static constexpr size_t STRIDE = BYTES + PAGE;

  void release() {
    if (memory_) munmap(memory_, count_ * STRIDE);
    memory_ = nullptr;
    count_ = 0;
  }

  char* memory_ = nullptr;
  u32 count_ = 0;
};

}  // namespace emulator

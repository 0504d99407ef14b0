// Stacks that threads.cpp switches between, and what AddressSanitizer has to know of that.
#pragma once

#include <sys/mman.h>
#include <ucontext.h>

#include <cstddef>
#include <new>

#if !defined(__SANITIZE_ADDRESS__) && defined(__has_feature)
#if __has_feature(address_sanitizer)
#define __SANITIZE_ADDRESS__ 1  // as GCC has it
#endif
#endif
#if defined(__SANITIZE_ADDRESS__)
#include <sanitizer/asan_interface.h>
#include <sanitizer/common_interface_defs.h>
#endif

namespace ammnet_sparse::emulation {

constexpr size_t kStackSize = size_t{1} << 16;

// What a sanitizer has to know of a change of stacks.
struct Stack {
  const void* bottom = nullptr;
  size_t size = 0;
};
#if defined(__SANITIZE_ADDRESS__)
inline void before_switch(void** saved, const Stack& target) {
  __sanitizer_start_switch_fiber(saved, target.bottom, target.size);
}
inline void after_switch(void* saved, Stack* origin) {
  __sanitizer_finish_switch_fiber(saved, origin ? &origin->bottom : nullptr, origin ? &origin->size : nullptr);
}
#else
inline void before_switch(void**, const Stack&) {}
inline void after_switch(void*, Stack*) {}
#endif

struct Thread;

// A stack, and where its thread stands.
struct Fiber {
  ucontext_t context{};
  Stack stack;
  Thread* thread = nullptr;
  void* saved = nullptr;

  Fiber() {
    void* memory = mmap(nullptr, kStackSize, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_STACK, -1, 0);
    if (memory == MAP_FAILED) {
      throw std::bad_alloc();
    }
    stack = {memory, kStackSize};
  }
  ~Fiber() { munmap(const_cast<void*>(stack.bottom), kStackSize); }

  // The next switch to it calls `function`, which must not return.
  void prepare(void (*function)()) {
#if defined(__SANITIZE_ADDRESS__)
    __asan_unpoison_memory_region(stack.bottom, stack.size);  // of what an error left
#endif
    getcontext(&context);
    context.uc_stack.ss_sp = const_cast<void*>(stack.bottom);
    context.uc_stack.ss_size = stack.size;
    context.uc_link = nullptr;
    makecontext(&context, function, 0);
  }

  Fiber(const Fiber&) = delete;
  Fiber& operator=(const Fiber&) = delete;
};

}  // namespace ammnet_sparse::emulation

#include "fibers.h"

#include <sys/mman.h>

#include <cstdlib>
#include <new>

#if FASTCL_EMULATOR_TSAN
#include <sanitizer/tsan_interface.h>
extern "C" {
void AnnotateIgnoreReadsBegin(const char* file, int line);
void AnnotateIgnoreReadsEnd(const char* file, int line);
void AnnotateIgnoreWritesBegin(const char* file, int line);
void AnnotateIgnoreWritesEnd(const char* file, int line);
void __tsan_read_range(void* address, unsigned long bytes);
void __tsan_write_range(void* address, unsigned long bytes);
}
#endif
#if FASTCL_EMULATOR_ASAN
#include <sanitizer/common_interface_defs.h>
#endif

namespace fastcl::emulator {
namespace {

constexpr std::size_t kPage = 4096;
// Sanitized code needs more for its locals; pages that are never touched cost nothing.
constexpr std::size_t kStackBytes = (FASTCL_EMULATOR_TSAN || FASTCL_EMULATOR_ASAN ? 512 : 128) * 1024;

// The one context outside all fibers, which resumes them.
void* outside_stack_pointer = nullptr;
#if FASTCL_EMULATOR_TSAN
void* outside_tsan = nullptr;
#endif
#if FASTCL_EMULATOR_ASAN
void* outside_fake_stack = nullptr;
const void* outside_stack = nullptr;
std::size_t outside_stack_bytes = 0;
#endif

// Saves what the System V ABI says a call preserves, and goes on where `to` left off. noipa: the compiler may know
// nothing of what happens inside.
__attribute__((naked, noinline, noipa)) void switch_stacks(void** /*from*/, void* /*to*/) {
  __asm__ volatile(
      "pushq %rbp\n pushq %rbx\n pushq %r12\n pushq %r13\n pushq %r14\n pushq %r15\n"
      "movq %rsp, (%rdi)\n movq %rsi, %rsp\n"
      "popq %r15\n popq %r14\n popq %r13\n popq %r12\n popq %rbx\n popq %rbp\n ret\n");
}

char* new_stack() {
  void* memory =
      mmap(nullptr, kPage + kStackBytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  if (memory == MAP_FAILED) throw std::bad_alloc();
  mprotect(memory, kPage, PROT_NONE);  // an overflow faults at once
  return static_cast<char*>(memory) + kPage;
}

}  // namespace

FASTCL_EMULATOR_UNSEEN void Fiber::start(void (*entry)(), int set) {
  // Two stacks as well: one thread's locals and another's at one address would be a race to TSan.
  if (!stacks_[set]) stacks_[set] = new_stack();
  stack_ = stacks_[set];
  void** top = reinterpret_cast<void**>(stack_ + kStackBytes - 64);
  *--top = nullptr;  // where `entry` would return to; keeps the stack aligned as at a call
  *--top = reinterpret_cast<void*>(entry);
  for (int saved = 0; saved < 6; ++saved) *--top = nullptr;
  stack_pointer_ = top;
#if FASTCL_EMULATOR_TSAN
  if (!tsan_[set]) tsan_[set] = __tsan_create_fiber(0);
  tsan_current_ = tsan_[set];
#endif
}

FASTCL_EMULATOR_UNSEEN void Fiber::resume() {
#if FASTCL_EMULATOR_TSAN
  outside_tsan = __tsan_get_current_fiber();
  __tsan_switch_to_fiber(tsan_current_, __tsan_switch_to_fiber_no_sync);
#endif
#if FASTCL_EMULATOR_ASAN
  __sanitizer_start_switch_fiber(&outside_fake_stack, stack_, kStackBytes);
#endif
  switch_stacks(&outside_stack_pointer, stack_pointer_);
#if FASTCL_EMULATOR_ASAN
  __sanitizer_finish_switch_fiber(outside_fake_stack, nullptr, nullptr);
#endif
}

FASTCL_EMULATOR_UNSEEN void Fiber::suspend() {
#if FASTCL_EMULATOR_TSAN
  __tsan_switch_to_fiber(outside_tsan, __tsan_switch_to_fiber_no_sync);
#endif
#if FASTCL_EMULATOR_ASAN
  __sanitizer_start_switch_fiber(&fake_stack_, outside_stack, outside_stack_bytes);
#endif
  switch_stacks(&stack_pointer_, outside_stack_pointer);
#if FASTCL_EMULATOR_ASAN
  __sanitizer_finish_switch_fiber(fake_stack_, nullptr, nullptr);
#endif
}

FASTCL_EMULATOR_UNSEEN void Fiber::entered() {
#if FASTCL_EMULATOR_ASAN
  __sanitizer_finish_switch_fiber(nullptr, &outside_stack, &outside_stack_bytes);
#endif
}

FASTCL_EMULATOR_UNSEEN void Fiber::exit() {
#if FASTCL_EMULATOR_TSAN
  __tsan_switch_to_fiber(outside_tsan, __tsan_switch_to_fiber_no_sync);
#endif
#if FASTCL_EMULATOR_ASAN
  __sanitizer_start_switch_fiber(nullptr, outside_stack, outside_stack_bytes);
#endif
  switch_stacks(&stack_pointer_, outside_stack_pointer);
  std::abort();  // nobody resumes what has exited
}

#if FASTCL_EMULATOR_TSAN
FASTCL_EMULATOR_UNSEEN void tsan_release(void* object) { __tsan_release(object); }
FASTCL_EMULATOR_UNSEEN void tsan_acquire(void* object) { __tsan_acquire(object); }
FASTCL_EMULATOR_UNSEEN void tsan_read(const void* address, std::size_t bytes) {
  __tsan_read_range(const_cast<void*>(address), bytes);
}
FASTCL_EMULATOR_UNSEEN void tsan_write(void* address, std::size_t bytes) { __tsan_write_range(address, bytes); }
FASTCL_EMULATOR_UNSEEN Unseen::Unseen() {
  AnnotateIgnoreReadsBegin("", 0);
  AnnotateIgnoreWritesBegin("", 0);
}
FASTCL_EMULATOR_UNSEEN Unseen::~Unseen() {
  AnnotateIgnoreWritesEnd("", 0);
  AnnotateIgnoreReadsEnd("", 0);
}
#else
void tsan_release(void*) {}
void tsan_acquire(void*) {}
void tsan_read(const void*, std::size_t) {}
void tsan_write(void*, std::size_t) {}
#endif

}  // namespace fastcl::emulator

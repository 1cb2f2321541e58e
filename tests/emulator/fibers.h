// Stackful coroutines on one thread of the operating system: every CUDA thread of a block is one. Sanitizers are told
// of each switch: TSan then sees CUDA threads as threads, ordered by nothing but what the emulator says orders them.
#pragma once

#include <cstddef>

#define FASTCL_EMULATOR_API __attribute__((visibility("default")))

#if defined(__SANITIZE_THREAD__)
#define FASTCL_EMULATOR_TSAN 1
// The emulator's own memory traffic is none of the kernel's.
#define FASTCL_EMULATOR_UNSEEN __attribute__((no_sanitize("thread"), noinline))
#else
#define FASTCL_EMULATOR_TSAN 0
#define FASTCL_EMULATOR_UNSEEN
#endif
#if defined(__SANITIZE_ADDRESS__)
#define FASTCL_EMULATOR_ASAN 1
#else
#define FASTCL_EMULATOR_ASAN 0
#endif

namespace fastcl::emulator {

class Fiber {
 public:
  // Makes the next resume() call `entry` on a fresh stack; `entry` must end in exit(). TSan takes blocks that follow
  // each other for two threads' work, so it needs fibers of two `sets`, used in turn.
  void start(void (*entry)(), int set);
  void resume();   // from outside, until the fiber suspends or exits
  void suspend();  // from inside
  void entered();  // the first call on a fresh stack
  [[noreturn]] void exit();

 private:
  void* stack_pointer_ = nullptr;  // while suspended
  char* stacks_[2] = {nullptr, nullptr};
  char* stack_ = nullptr;
#if FASTCL_EMULATOR_TSAN
  void* tsan_[2] = {nullptr, nullptr};
  void* tsan_current_ = nullptr;
#endif
#if FASTCL_EMULATOR_ASAN
  void* fake_stack_ = nullptr;
#endif
};

// Happens-before edges for TSan, by the address of what makes them; nothing otherwise.
FASTCL_EMULATOR_API void tsan_release(void* object);
FASTCL_EMULATOR_API void tsan_acquire(void* object);
// A read or write by the running fiber.
FASTCL_EMULATOR_API void tsan_read(const void* address, std::size_t bytes);
FASTCL_EMULATOR_API void tsan_write(void* address, std::size_t bytes);

// While one lives, TSan does not see what the running fiber reads and writes.
class Unseen {
 public:
#if FASTCL_EMULATOR_TSAN
  Unseen();
  ~Unseen();
#else
  Unseen() {}
#endif
  Unseen(const Unseen&) = delete;
};

}  // namespace fastcl::emulator

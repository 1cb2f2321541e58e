// The emulated device: runs a grid block by block, the threads of a block as fibers that give way where CUDA threads
// wait for each other. What it finds it throws as emulator::Error from the launch:
//
//   * a barrier or collective that not all meant threads reach, or that they reach in different places
//   * lanes missing from a mask, or masks that overlap
//   * misaligned asynchronous copies and matrix rows; more shared memory than the device has; writes beside it
//
// What it cannot see in one run shows as a difference between runs: Schedule orders blocks, warps and lanes
// differently, shared memory starts as garbage that the schedule chooses, and asynchronous copies land as late or as
// early as may be.
#pragma once

#include <cuda_runtime.h>  // dim3, uint3

#include <cstddef>
#include <cstdint>
#include <stdexcept>
#include <string>

#include "fibers.h"

namespace fastcl::emulator {

struct FASTCL_EMULATOR_API Error : std::runtime_error {
  using std::runtime_error::runtime_error;
};

// Where in the kernel's source a thread is.
struct Location {
  const char* file;
  int line;
};
// As a default argument: the caller's.
#define FASTCL_EMULATOR_HERE \
  ::fastcl::emulator::Location location = ::fastcl::emulator::Location { __builtin_FILE(), __builtin_LINE() }

enum class Schedule {
  kForward,  // blocks, warps and lanes in order; copies land when they are waited for
  kReverse,  // in reverse order; copies land at once
  kRandom,   // warps by random priorities, lanes and preemption at random; each copy lands by a coin
};

struct Settings {
  Schedule schedule = Schedule::kForward;
  uint64_t seed = 0;
  int compute_capability = 80;
};
FASTCL_EMULATOR_API Settings& settings();

// Since they were last set to zero.
struct Statistics {
  uint64_t launches = 0, blocks = 0, threads = 0;
  uint64_t switches = 0;            // of fibers
  uint64_t collectives = 0;         // counted once per lane
  uint64_t barriers = 0;            // counted once per block
  uint64_t mma = 0;                 // counted once per warp
  uint64_t ldmatrix_phases = 0;     // 8 rows of 16 bytes, which shared memory can give at once
  uint64_t ldmatrix_conflicts = 0;  // how often it had to be asked again because two rows shared banks
};
FASTCL_EMULATOR_API Statistics& statistics();

// The shared memory of one block, bytes: what cudaDevAttrMaxSharedMemoryPerBlockOptin says of a real device.
FASTCL_EMULATOR_API int shared_memory_limit(int compute_capability);

// ---- what the built-ins of cuda_emulator.h are made of; all for the running CUDA thread ----

[[noreturn]] FASTCL_EMULATOR_API void fail(const std::string& what, Location location = {"", 0});

FASTCL_EMULATOR_API const uint3& thread_index();
FASTCL_EMULATOR_API const uint3& block_index();
FASTCL_EMULATOR_API const dim3& block_size();
FASTCL_EMULATOR_API const dim3& grid_size();
FASTCL_EMULATOR_API int lane();
FASTCL_EMULATOR_API int warp();

struct Votes {
  bool any, all;
  int count;
};
// Barrier `id` of the whole block, with a vote.
FASTCL_EMULATOR_API Votes barrier(int id, bool vote, Location location);

// What the lanes of a warp exchange when they meet.
constexpr int kLaneBytes = 64;
struct Exchange {
  alignas(64) unsigned char in[32][kLaneBytes];
  alignas(64) unsigned char out[32][kLaneBytes];
};
// Called once, when all lanes of `mask` have come.
using Meeting = void (*)(Exchange& exchange, unsigned mask);

// A meeting of the lanes in `mask`. All must come with the same `name`, `variant` and location.
FASTCL_EMULATOR_API void collective(const char* name, uint64_t variant, unsigned mask, Meeting meeting, const void* in,
                                    std::size_t in_bytes, void* out, std::size_t out_bytes, Location location);

// The same, and what the lanes wrote before is seen by all after it.
FASTCL_EMULATOR_API void sync_warp(unsigned mask, Location location);

// A variable of the running block, told from others by `key`; and the array whose size the launch gave.
FASTCL_EMULATOR_API void* shared_variable(const void* key, std::size_t bytes, const char* name);
FASTCL_EMULATOR_API unsigned char* dynamic_shared();
FASTCL_EMULATOR_API std::size_t dynamic_shared_bytes();

// `bytes` are written, of which the first `source_bytes` are read and the rest zero.
FASTCL_EMULATOR_API void async_copy(void* shared, const void* source, int bytes, int source_bytes, Location location);
FASTCL_EMULATOR_API void async_commit();
FASTCL_EMULATOR_API void async_wait(int groups_left);

// Before and after each atomic; orders nothing unless fences stand around it, as on a device.
FASTCL_EMULATOR_API void before_atomic(void* address);
FASTCL_EMULATOR_API void after_atomic(void* address);
FASTCL_EMULATOR_API void fence();

// ---- launches ----

struct Launch {
  const void* kernel;                  // its address, which names it
  void (*call)(const Launch& launch);  // calls it with `arguments`
  const void* const* arguments;
  dim3 grid, block;
  std::size_t shared_bytes;
};
FASTCL_EMULATOR_API void run(const Launch& launch);

// Runs `translated` (a kernel that ptx_to_cpp.py made of nvcc's output) wherever `kernel` is launched; nullptr undoes
// it. `static_shared_bytes`: what it declares itself, at the start of its dynamic array.
using Translated = void (*)(const void* const* arguments);
FASTCL_EMULATOR_API void replace_kernel(const void* kernel, Translated translated, std::size_t static_shared_bytes);

}  // namespace fastcl::emulator

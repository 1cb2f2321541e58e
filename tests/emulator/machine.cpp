#include "machine.h"

#include <algorithm>
#include <bit>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <deque>
#include <exception>
#include <map>
#include <memory>
#include <mutex>
#include <vector>

#if FASTCL_EMULATOR_ASAN
#include <sanitizer/asan_interface.h>
#endif

namespace fastcl::emulator {
namespace {

constexpr int kWarpLanes = 32;
constexpr int kMaxThreads = 1024;
constexpr int kMaxBarriers = 16;
constexpr unsigned kAllLanes = ~0u;
// Written beside every shared variable, and looked at again at each barrier and at the end of the block.
constexpr std::size_t kFenceBytes = 128;
constexpr unsigned char kFenceValue = 0xC5;
// The fence of a kernel's own static shared memory is the launch's business, not the device's.
constexpr std::size_t kStaticLimit = 48 * 1024;

struct Random {
  uint64_t state;
  explicit Random(uint64_t seed) : state((seed + 1) * 0x9E3779B97F4A7C15ull) {}
  uint32_t next() {  // xorshift64
    state ^= state << 13;
    state ^= state >> 7;
    state ^= state << 17;
    return static_cast<uint32_t>(state >> 16);
  }
  uint32_t below(uint32_t bound) { return next() % bound; }
};

struct Copy {
  void* shared;
  const void* source;
  int bytes, source_bytes;
};

struct Warp;

struct Thread {
  Fiber fiber;
  uint3 index{};
  int linear = 0, lane = 0;
  Warp* warp = nullptr;
  bool alive = false;
  // What it waits for, for the report of a deadlock.
  const char* waits_for = nullptr;
  int waits_at_barrier = -1;
  Location waits_at{};
  std::vector<Copy> open_copies;              // not yet committed
  std::deque<std::vector<Copy>> copy_groups;  // committed, not yet landed
  // For fences: an atomic makes known what was written before a fence; a fence makes known what atomics met.
  bool fenced = false;
  void* met_atomic = nullptr;
};

struct Pending {
  const char* name;
  uint64_t variant;
  unsigned mask, arrived;
  Meeting meeting;
  Location location;
};

struct Warp {
  unsigned ready = 0, alive = 0;  // lanes
  int pending_count = 0;
  Pending pending[kWarpLanes];
  Exchange exchange;
  char tsan[2];  // of __syncwarp, for the blocks of each fiber set
};

struct Barrier {
  int arrived = 0;
  Location location{};
  Votes votes{}, result{};
  unsigned phase = 0;
  char tsan[2][2];  // for the blocks of each fiber set; for this phase and the next
};

struct SharedVariable {
  const void* key;
  const char* name;
  std::size_t bytes;
  unsigned char* data;
  unsigned char* allocation;
};

struct Machine {
  std::vector<Thread> threads{std::vector<Thread>(kMaxThreads)};
  std::vector<Warp> warps{std::vector<Warp>(kMaxThreads / kWarpLanes)};
  Barrier barriers[kMaxBarriers];
  Thread* running = nullptr;
  const Launch* launch = nullptr;
  uint3 block{};
  int thread_count = 0, warp_count = 0, alive = 0;
  std::exception_ptr error;
  std::vector<SharedVariable> shared;
  std::vector<void*> retired;  // shared memory of earlier blocks: TSan must not see an address twice in one launch
  Random random{0};
  int fiber_set = 0;             // of the running block
  char block_starts, grid_ends;  // TSan
};

Machine& machine() {
  static auto* const instance = new Machine;  // never destroyed: fibers may be suspended in it
  return *instance;
}

struct Replacement {
  Translated translated;
  std::size_t static_shared_bytes;
};
std::map<const void*, Replacement>& replacements() {
  static std::map<const void*, Replacement> table;
  return table;
}

std::string place(Location location) {
  return location.line ? std::string(location.file) + ":" + std::to_string(location.line) : "?";
}

bool same_place(Location a, Location b) {
  return a.line == b.line && (a.file == b.file || !std::strcmp(a.file, b.file));
}

std::string block_name(const Machine& m) {
  char text[64];
  std::snprintf(text, sizeof text, "block (%u, %u, %u)", m.block.x, m.block.y, m.block.z);
  return text;
}

// ---- shared memory ----

FASTCL_EMULATOR_UNSEEN void fill_garbage(unsigned char* data, std::size_t bytes) {
  switch (settings().schedule) {
    case Schedule::kForward:
      std::memset(data, 0xFF, bytes);  // NaN
      break;
    case Schedule::kReverse:
      std::memset(data, 0x7B, bytes);  // 1.3e36: unlike NaN it survives fmaxf
      break;
    case Schedule::kRandom:
      for (std::size_t i = 0; i < bytes; ++i) data[i] = static_cast<unsigned char>(machine().random.next());
      break;
  }
}

FASTCL_EMULATOR_UNSEEN unsigned char* allocate_shared(const void* key, std::size_t bytes, const char* name) {
  Machine& m = machine();
  const std::size_t padded = (bytes + 127) / 128 * 128;
  auto* allocation = static_cast<unsigned char*>(std::aligned_alloc(128, padded + 2 * kFenceBytes));
  if (!allocation) throw std::bad_alloc();
  std::memset(allocation, kFenceValue, padded + 2 * kFenceBytes);
  unsigned char* data = allocation + kFenceBytes;
  fill_garbage(data, bytes);
#if FASTCL_EMULATOR_ASAN
  __asan_poison_memory_region(allocation, kFenceBytes);
  __asan_poison_memory_region(data + bytes, padded - bytes + kFenceBytes);
#endif
  m.shared.push_back({key, name, bytes, data, allocation});
  std::size_t in_all = 0;
  for (const SharedVariable& variable : m.shared) in_all += variable.bytes;
  const int limit = shared_memory_limit(settings().compute_capability);
  if (in_all > static_cast<std::size_t>(limit))
    fail("a block uses " + std::to_string(in_all) + " bytes of shared memory, the device has " + std::to_string(limit));
  return data;
}

FASTCL_EMULATOR_UNSEEN void check_fences() {
#if !FASTCL_EMULATOR_ASAN  // which sees each access itself
  for (const SharedVariable& variable : machine().shared) {
    const std::size_t padded = (variable.bytes + 127) / 128 * 128;
    const unsigned char* end = variable.data + padded + kFenceBytes;
    for (const unsigned char* p = variable.allocation; p < variable.data; ++p)
      if (*p != kFenceValue)
        fail(std::string("a write before shared ") + variable.name + ", " + std::to_string(variable.data - p) +
             " bytes before its start");
    for (const unsigned char* p = variable.data + variable.bytes; p < end; ++p)
      if (*p != kFenceValue)
        fail(std::string("a write past shared ") + variable.name + ", at byte " + std::to_string(p - variable.data) +
             " of " + std::to_string(variable.bytes));
  }
#endif
}

FASTCL_EMULATOR_UNSEEN void retire_shared() {
  Machine& m = machine();
  for (const SharedVariable& variable : m.shared) m.retired.push_back(variable.allocation);
  m.shared.clear();
}

FASTCL_EMULATOR_UNSEEN void free_retired() {
  Machine& m = machine();
  for (void* allocation : m.retired) {
#if FASTCL_EMULATOR_ASAN
    __asan_unpoison_memory_region(allocation, kFenceBytes);
#endif
    std::free(allocation);
  }
  m.retired.clear();
}

// ---- giving way ----

FASTCL_EMULATOR_UNSEEN void wait_as(Thread& thread, const char* what, int barrier_id, Location location) {
  thread.warp->ready &= ~(1u << thread.lane);
  thread.waits_for = what;
  thread.waits_at_barrier = barrier_id;
  thread.waits_at = location;
  thread.fiber.suspend();
  thread.waits_for = nullptr;
  thread.waits_at_barrier = -1;
}

FASTCL_EMULATOR_UNSEEN void maybe_give_way(Thread& thread) {
  if (settings().schedule == Schedule::kRandom && machine().random.below(4) == 0) thread.fiber.suspend();
}

FASTCL_EMULATOR_UNSEEN void complete(Warp& warp, int which) {
  const Pending pending = warp.pending[which];
  warp.pending[which] = warp.pending[--warp.pending_count];
  if (pending.meeting) pending.meeting(warp.exchange, pending.arrived);
  warp.ready |= pending.arrived & warp.alive;
}

FASTCL_EMULATOR_UNSEEN void release_barrier(int id) {
  Machine& m = machine();
  Barrier& barrier = m.barriers[id];
  barrier.arrived = 0;
  barrier.result = barrier.votes;
  ++barrier.phase;
  ++statistics().barriers;
  for (int w = 0; w < m.warp_count; ++w)
    for (unsigned lanes = m.warps[w].alive; lanes; lanes &= lanes - 1) {
      const int lane = std::countr_zero(lanes);
      if (m.threads[w * kWarpLanes + lane].waits_at_barrier == id) m.warps[w].ready |= 1u << lane;
    }
  check_fences();
}

FASTCL_EMULATOR_UNSEEN void finish_thread(Thread& thread) {
  Machine& m = machine();
  Warp& warp = *thread.warp;
  thread.alive = false;
  warp.alive &= ~(1u << thread.lane);
  warp.ready &= ~(1u << thread.lane);
  --m.alive;
  // As on a device, lanes that have exited are no longer waited for.
  for (int i = 0; i < warp.pending_count;) {
    const Pending& pending = warp.pending[i];
    if ((pending.arrived & warp.alive) == (pending.mask & warp.alive))
      complete(warp, i);
    else
      ++i;
  }
  for (const Barrier& barrier : m.barriers)
    if (barrier.arrived && barrier.arrived == m.alive && !m.error)
      m.error = std::make_exception_ptr(Error("emulator: barrier at " + place(barrier.location) +
                                              " is not reached by every thread: thread " +
                                              std::to_string(thread.linear) + " of " + block_name(m) + " has exited"));
}

FASTCL_EMULATOR_UNSEEN void thread_main() {
  Machine& m = machine();
  Thread& thread = *m.running;
  thread.fiber.entered();
  tsan_acquire(&m.block_starts);
  try {
    m.launch->call(*m.launch);
  } catch (...) {
    if (!m.error) m.error = std::current_exception();
  }
  tsan_release(&m.grid_ends);
  {
    const Unseen unseen;
    try {
      finish_thread(thread);
    } catch (...) {
      if (!m.error) m.error = std::current_exception();
    }
  }
  thread.fiber.exit();
}

FASTCL_EMULATOR_UNSEEN std::string deadlock_report() {
  const Machine& m = machine();
  std::string report = "emulator: deadlock in " + block_name(m) + ":";
  for (int w = 0; w < m.warp_count && report.size() < 1500; ++w) {
    const Warp& warp = m.warps[w];
    if (!warp.alive) continue;
    const int lane = std::countr_zero(warp.alive);
    const Thread& thread = m.threads[w * kWarpLanes + lane];
    report += "\n  warp " + std::to_string(w) + ", lane " + std::to_string(lane) + " waits in " +
              (thread.waits_for ? thread.waits_for : "?") + " at " + place(thread.waits_at);
    for (int i = 0; i < warp.pending_count; ++i) {
      char text[96];
      std::snprintf(text, sizeof text, "; mask %08x, arrived %08x, alive %08x", warp.pending[i].mask,
                    warp.pending[i].arrived, warp.alive);
      report += text;
    }
  }
  return report;
}

// ---- the schedule ----

FASTCL_EMULATOR_UNSEEN void resume(Thread& thread) {
  Machine& m = machine();
  m.running = &thread;
  ++statistics().switches;
  thread.fiber.resume();
  m.running = nullptr;
  if (m.error) std::rethrow_exception(m.error);
}

FASTCL_EMULATOR_UNSEEN void run_in_order(bool reverse) {
  Machine& m = machine();
  while (m.alive) {
    bool any = false;
    for (int k = 0; k < m.warp_count; ++k) {
      const int w = reverse ? m.warp_count - 1 - k : k;
      while (const unsigned ready = m.warps[w].ready) {
        any = true;
        resume(m.threads[w * kWarpLanes + (reverse ? 31 - std::countl_zero(ready) : std::countr_zero(ready))]);
      }
    }
    if (!any && m.alive) throw Error(deadlock_report());
  }
}

// Uniform choice would keep warps close together; with priorities (Burckhardt et al. 2010, PCT) one may run far ahead.
FASTCL_EMULATOR_UNSEEN void run_by_priorities() {
  Machine& m = machine();
  std::vector<int> order(m.warp_count);
  for (int i = 0; i < m.warp_count; ++i) {
    order[i] = i;
    std::swap(order[i], order[m.random.below(i + 1)]);
  }
  while (m.alive) {
    if (m.random.below(32) == 0) std::swap(order[m.random.below(m.warp_count)], order[m.random.below(m.warp_count)]);
    const auto first = std::find_if(order.begin(), order.end(), [&](int w) { return m.warps[w].ready != 0; });
    if (first == order.end()) throw Error(deadlock_report());
    unsigned ready = m.warps[*first].ready;
    for (int skip = m.random.below(std::popcount(ready)); skip > 0; --skip) ready &= ready - 1;
    resume(m.threads[*first * kWarpLanes + std::countr_zero(ready)]);
  }
}

FASTCL_EMULATOR_UNSEEN void run_block(const Launch& launch, std::size_t number, int fiber_set) {
  Machine& m = machine();
  m.fiber_set = fiber_set;
  const dim3 grid = launch.grid, size = launch.block;
  m.block = {static_cast<unsigned>(number % grid.x), static_cast<unsigned>(number / grid.x % grid.y),
             static_cast<unsigned>(number / (static_cast<std::size_t>(grid.x) * grid.y))};
  m.random = Random(settings().seed * 1000003 + number);
  m.thread_count = m.alive = static_cast<int>(size.x * size.y * size.z);
  m.warp_count = (m.thread_count + kWarpLanes - 1) / kWarpLanes;
  m.error = nullptr;
  for (int w = 0; w < m.warp_count; ++w) {
    Warp& warp = m.warps[w];
    const int lanes = std::min(kWarpLanes, m.thread_count - w * kWarpLanes);
    warp.alive = warp.ready = lanes == kWarpLanes ? kAllLanes : (1u << lanes) - 1;
    warp.pending_count = 0;
  }
  for (Barrier& barrier : m.barriers) barrier.arrived = 0;
  for (int i = 0; i < m.thread_count; ++i) {
    Thread& thread = m.threads[i];
    const unsigned linear = static_cast<unsigned>(i);
    thread.index = {linear % size.x, linear / size.x % size.y, linear / (size.x * size.y)};
    thread.linear = i;
    thread.lane = i % kWarpLanes;
    thread.warp = &m.warps[i / kWarpLanes];
    thread.alive = true;
    thread.waits_for = nullptr;
    thread.waits_at_barrier = -1;
    thread.open_copies.clear();
    thread.copy_groups.clear();
    thread.fenced = false;
    thread.met_atomic = nullptr;
    thread.fiber.start(thread_main, fiber_set);
  }
  retire_shared();
  if (!FASTCL_EMULATOR_TSAN) free_retired();
  if (launch.shared_bytes) allocate_shared(nullptr, launch.shared_bytes, "dynamic array");
  tsan_release(&m.block_starts);
  if (settings().schedule == Schedule::kRandom)
    run_by_priorities();
  else
    run_in_order(settings().schedule == Schedule::kReverse);
  check_fences();
}

FASTCL_EMULATOR_UNSEEN std::vector<std::size_t> block_order(std::size_t blocks) {
  std::vector<std::size_t> order(blocks);
  for (std::size_t i = 0; i < blocks; ++i) order[i] = settings().schedule == Schedule::kReverse ? blocks - 1 - i : i;
  if (settings().schedule == Schedule::kRandom) {
    Random random(settings().seed);
    for (std::size_t i = blocks; i > 1; --i) std::swap(order[i - 1], order[random.below(static_cast<uint32_t>(i))]);
  }
  return order;
}

void check_launch(const Launch& launch) {
  const std::size_t threads = static_cast<std::size_t>(launch.block.x) * launch.block.y * launch.block.z;
  if (!threads || threads > kMaxThreads || launch.block.z > 64 || !launch.grid.x || !launch.grid.y || !launch.grid.z ||
      launch.grid.x > 0x7FFFFFFFu || launch.grid.y > 65535 || launch.grid.z > 65535)
    throw Error("emulator: invalid launch configuration: grid " + std::to_string(launch.grid.x) + "x" +
                std::to_string(launch.grid.y) + "x" + std::to_string(launch.grid.z) + ", block " +
                std::to_string(launch.block.x) + "x" + std::to_string(launch.block.y) + "x" +
                std::to_string(launch.block.z));
  const int limit = shared_memory_limit(settings().compute_capability);
  if (launch.shared_bytes > static_cast<std::size_t>(limit))
    throw Error("emulator: " + std::to_string(launch.shared_bytes) + " bytes of dynamic shared memory, sm_" +
                std::to_string(settings().compute_capability) + " has " + std::to_string(limit));
}

FASTCL_EMULATOR_UNSEEN void land(const Copy& copy) {
  if (copy.source_bytes) tsan_read(copy.source, copy.source_bytes);
  tsan_write(copy.shared, copy.bytes);
  const Unseen unseen;
  std::memcpy(copy.shared, copy.source, copy.source_bytes);
  std::memset(static_cast<char*>(copy.shared) + copy.source_bytes, 0, copy.bytes - copy.source_bytes);
}

}  // namespace

Settings& settings() {
  static Settings instance;
  return instance;
}

Statistics& statistics() {
  static Statistics instance;
  return instance;
}

int shared_memory_limit(int compute_capability) {
  switch (compute_capability) {
    case 75:
      return 64 * 1024;
    case 80:
    case 87:
      return 163 * 1024;
    case 86:
    case 89:
    case 120:
      return 99 * 1024;
    case 90:
    case 100:
      return 227 * 1024;
    default:
      throw Error("emulator: no device of compute capability " + std::to_string(compute_capability));
  }
}

void fail(const std::string& what, Location location) {
  const Machine& m = machine();
  std::string message = "emulator: " + what;
  if (location.line) message += " at " + place(location);
  if (m.running) message += " [" + block_name(m) + ", thread " + std::to_string(m.running->linear) + "]";
  throw Error(message);
}

FASTCL_EMULATOR_UNSEEN const uint3& thread_index() { return machine().running->index; }
FASTCL_EMULATOR_UNSEEN const uint3& block_index() { return machine().block; }
FASTCL_EMULATOR_UNSEEN const dim3& block_size() { return machine().launch->block; }
FASTCL_EMULATOR_UNSEEN const dim3& grid_size() { return machine().launch->grid; }
FASTCL_EMULATOR_UNSEEN int lane() { return machine().running->lane; }
FASTCL_EMULATOR_UNSEEN int warp() { return machine().running->linear / kWarpLanes; }

FASTCL_EMULATOR_UNSEEN Votes barrier(int id, bool vote, Location location) {
  const Unseen unseen;
  Machine& m = machine();
  Thread& thread = *m.running;
  Barrier& barrier = m.barriers[id];
  const unsigned phase = barrier.phase;
  void* const order = &barrier.tsan[m.fiber_set][phase & 1];
  tsan_release(order);
  if (barrier.arrived == 0) {
    barrier.location = location;
    barrier.votes = {false, true, 0};
  } else if (!same_place(barrier.location, location)) {
    fail("divergent barrier: other threads wait at " + place(barrier.location) + ", this one", location);
  }
  ++barrier.arrived;
  barrier.votes = {barrier.votes.any || vote, barrier.votes.all && vote, barrier.votes.count + vote};
  if (barrier.arrived == m.alive) {
    if (m.alive < m.thread_count) fail("barrier is not reached by every thread: some have exited", location);
    release_barrier(id);
    maybe_give_way(thread);
  } else {
    wait_as(thread, "a barrier", id, location);
  }
  tsan_acquire(order);
  return barrier.result;
}

FASTCL_EMULATOR_UNSEEN void collective(const char* name, uint64_t variant, unsigned mask, Meeting meeting,
                                       const void* in, std::size_t in_bytes, void* out, std::size_t out_bytes,
                                       Location location) {
  const Unseen unseen;
  Thread& thread = *machine().running;
  Warp& warp = *thread.warp;
  const unsigned bit = 1u << thread.lane;
  ++statistics().collectives;
  if (!(mask & bit)) fail(std::string(name) + ": the calling lane is not in its own mask", location);
  if (in_bytes) std::memcpy(warp.exchange.in[thread.lane], in, in_bytes);
  int which = 0;
  while (which < warp.pending_count && !(warp.pending[which].mask & mask)) ++which;
  if (which == warp.pending_count) warp.pending[warp.pending_count++] = {name, variant, mask, 0, meeting, location};
  Pending& pending = warp.pending[which];
  if (pending.mask != mask)
    fail(std::string(name) + ": masks overlap but differ (the other at " + place(pending.location) + ")", location);
  if (std::strcmp(pending.name, name) || pending.variant != variant || !same_place(pending.location, location))
    fail(std::string(name) + ": lanes of one warp meet in different collectives (others in " + pending.name + " at " +
             place(pending.location) + ")",
         location);
  pending.arrived |= bit;
  if ((pending.arrived & warp.alive) == (mask & warp.alive))
    complete(warp, which);
  else
    wait_as(thread, name, -1, location);
  if (out_bytes) std::memcpy(out, warp.exchange.out[thread.lane], out_bytes);
  maybe_give_way(thread);
}

FASTCL_EMULATOR_UNSEEN void sync_warp(unsigned mask, Location location) {
  void* const order = &machine().running->warp->tsan[machine().fiber_set];
  tsan_release(order);
  collective("__syncwarp", 0, mask, nullptr, nullptr, 0, nullptr, 0, location);
  tsan_acquire(order);
}

FASTCL_EMULATOR_UNSEEN void* shared_variable(const void* key, std::size_t bytes, const char* name) {
  const Unseen unseen;
  for (const SharedVariable& variable : machine().shared)
    if (variable.key == key) return variable.data;
  std::size_t in_all = bytes;
  for (const SharedVariable& variable : machine().shared) in_all += variable.key ? variable.bytes : 0;
  if (in_all > kStaticLimit) fail(std::string(name) + ": more than 48 KiB of static shared memory");
  return allocate_shared(key, bytes, name);
}

FASTCL_EMULATOR_UNSEEN unsigned char* dynamic_shared() {
  const Unseen unseen;
  for (const SharedVariable& variable : machine().shared)
    if (!variable.key) return variable.data;
  fail("a kernel uses dynamic shared memory, its launch asked for none");
}

FASTCL_EMULATOR_UNSEEN std::size_t dynamic_shared_bytes() { return machine().launch->shared_bytes; }

FASTCL_EMULATOR_UNSEEN void async_copy(void* shared, const void* source, int bytes, int source_bytes,
                                       Location location) {
  const auto misaligned = [bytes](const void* p) { return reinterpret_cast<uintptr_t>(p) % bytes != 0; };
  if (misaligned(shared) || misaligned(source)) fail("misaligned asynchronous copy", location);
  if (source_bytes < 0 || source_bytes > bytes) fail("asynchronous copy of a size it does not have", location);
  const Copy copy{shared, source, bytes, source_bytes};
  Machine& m = machine();
  const Schedule schedule = settings().schedule;
  // TSan orders a copy like a write of its own thread's, so it goes where the thread stands.
  const bool at_once = FASTCL_EMULATOR_TSAN || settings().compute_capability < 80 || schedule == Schedule::kReverse ||
                       (schedule == Schedule::kRandom && (m.random.next() & 1));
  if (at_once) {
    land(copy);
    return;
  }
  const Unseen unseen;
  m.running->open_copies.push_back(copy);
}

FASTCL_EMULATOR_UNSEEN void async_commit() {
  const Unseen unseen;
  Thread& thread = *machine().running;
  thread.copy_groups.push_back(std::move(thread.open_copies));
  thread.open_copies.clear();
}

FASTCL_EMULATOR_UNSEEN void async_wait(int groups_left) {
  const Unseen unseen;
  Thread& thread = *machine().running;
  while (static_cast<int>(thread.copy_groups.size()) > groups_left) {
    for (const Copy& copy : thread.copy_groups.front()) land(copy);
    thread.copy_groups.pop_front();
  }
}

FASTCL_EMULATOR_UNSEEN void before_atomic(void* address) {
  if (machine().running->fenced) tsan_release(address);
}

FASTCL_EMULATOR_UNSEEN void after_atomic(void* address) { machine().running->met_atomic = address; }

FASTCL_EMULATOR_UNSEEN void fence() {
  Thread& thread = *machine().running;
  thread.fenced = true;
  if (thread.met_atomic) tsan_acquire(thread.met_atomic);
}

FASTCL_EMULATOR_UNSEEN void run(const Launch& launch) {
  static std::mutex one_grid_at_a_time;
  const std::lock_guard<std::mutex> lock(one_grid_at_a_time);
  const Unseen unseen;
  Machine& m = machine();
  Launch replaced = launch;
  if (const auto found = replacements().find(launch.kernel); found != replacements().end()) {
    // The call finds the translated kernel where it looks for the kernel.
    replaced.kernel = reinterpret_cast<const void*>(found->second.translated);
    replaced.call = [](const Launch& self) {
      reinterpret_cast<Translated>(const_cast<void*>(self.kernel))(self.arguments);
    };
    replaced.shared_bytes += found->second.static_shared_bytes;
  }
  check_launch(replaced);
  m.launch = &replaced;
  const std::size_t blocks = static_cast<std::size_t>(launch.grid.x) * launch.grid.y * launch.grid.z;
  ++statistics().launches;
  statistics().blocks += blocks;
  statistics().threads += blocks * launch.block.x * launch.block.y * launch.block.z;
  const auto clean_up = [&m] {
    m.running = nullptr;
    tsan_acquire(&m.grid_ends);
    retire_shared();
    free_retired();
  };
  try {
    int set = 0;
    for (const std::size_t number : block_order(blocks)) run_block(replaced, number, set ^= 1);
  } catch (...) {
    clean_up();
    throw;
  }
  clean_up();
}

void replace_kernel(const void* kernel, Translated translated, std::size_t static_shared_bytes) {
  if (translated)
    replacements()[kernel] = {translated, static_shared_bytes};
  else
    replacements().erase(kernel);
}

// ---- for Python (ctypes) ----

extern "C" {
FASTCL_EMULATOR_API void fastcl_emulator_set(int schedule, uint64_t seed, int compute_capability) {
  settings() = {static_cast<Schedule>(schedule), seed, compute_capability};
}
FASTCL_EMULATOR_API const Statistics* fastcl_emulator_statistics() { return &statistics(); }
FASTCL_EMULATOR_API void fastcl_emulator_reset_statistics() { statistics() = {}; }
FASTCL_EMULATOR_API void fastcl_emulator_replace_kernel(const void* kernel, void* translated, std::size_t bytes) {
  replace_kernel(kernel, reinterpret_cast<Translated>(translated), bytes);
}
}

}  // namespace fastcl::emulator

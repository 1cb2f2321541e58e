#include <torch/csrc/stable/ops.h>

#include <algorithm>
#include <atomic>
#include <chrono>

#include "common/parallel.h"

namespace fastcl {
namespace {

using Clock = std::chrono::steady_clock;

// A thread whose core another process has may not run before a time slice is over, some milliseconds, and torch's pool
// waits for all of its threads, whether there is anything left to do or not. Where that took longer than the work of
// those few would have taken the caller, it works alone for as long again, and twice as long each time that this
// happens once more soon afterwards.
constexpr int kFewThreads = 4;  // of more the caller could not do the work
constexpr Clock::rep kLongWait = Clock::duration(std::chrono::milliseconds(1)).count();
constexpr Clock::rep kMostWaits = 32;  // alone; a wait then costs that part of the time
std::atomic<Clock::rep> alone_until{0}, waits_alone{1};

Clock::rep now() { return Clock::now().time_since_epoch().count(); }

bool works_alone() { return now() < alone_until.load(std::memory_order_relaxed); }

void work_alone(Clock::rep from, Clock::rep waited) {
  const bool soon = from - alone_until.load(std::memory_order_relaxed) < kMostWaits * waited;
  const Clock::rep waits = soon ? std::min(2 * waits_alone.load(std::memory_order_relaxed), kMostWaits) : 1;
  waits_alone.store(waits, std::memory_order_relaxed);
  alone_until.store(from + waits * waited, std::memory_order_relaxed);
}

}  // namespace

int thread_count() {
  const int threads = static_cast<int>(torch::stable::get_num_threads());
  return threads > 1 && threads <= kFewThreads && works_alone() ? 1 : threads;
}

void parallel_range(int64_t n, int64_t grain, void (*body)(void*, int64_t, int64_t), void* context) {
  const int threads = n > grain ? thread_count() : 1;
  if (threads == 1) {
    if (n > 0) body(context, 0, n);
    return;
  }
  const Clock::rep begun = now();
  Clock::rep done = begun;
  torch::stable::parallel_for(0, n, grain, [&](int64_t begin, int64_t end) {
    body(context, begin, end);
    if (begin == 0) done = now();  // the caller's own
  });
  const Clock::rep end = now(), waited = end - done;
  if (threads <= kFewThreads && waited > kLongWait && waited > (threads - 1) * (done - begun)) work_alone(end, waited);
}

}  // namespace fastcl

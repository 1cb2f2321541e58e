#include <torch/csrc/stable/ops.h>

#include <atomic>
#include <chrono>

#include "common/parallel.h"

namespace fastcl {
namespace {

using Clock = std::chrono::steady_clock;

// A thread whose core another process has may not run before a time slice is over, some milliseconds, and torch's pool
// waits for all of its threads, whether there is anything left to do or not. Where that took longer than the work of
// those few would have taken the caller, it works alone for a while.
constexpr int kFewThreads = 4;  // of more the caller could not do the work
constexpr Clock::duration kLongWait = std::chrono::milliseconds(1);
constexpr int kWaitsAlone = 20;  // for how many times that wait; it then costs a twentieth
std::atomic<Clock::rep> alone_until{0};

bool works_alone() { return Clock::now().time_since_epoch().count() < alone_until.load(std::memory_order_relaxed); }

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
  const Clock::time_point begun = Clock::now();
  Clock::time_point done = begun;
  torch::stable::parallel_for(0, n, grain, [&](int64_t begin, int64_t end) {
    body(context, begin, end);
    if (begin == 0) done = Clock::now();  // the caller's own
  });
  const Clock::time_point now = Clock::now();
  const Clock::duration waited = now - done;
  if (threads <= kFewThreads && waited > kLongWait && waited > (threads - 1) * (done - begun))
    alone_until.store((now + kWaitsAlone * waited).time_since_epoch().count(), std::memory_order_relaxed);
}

}  // namespace fastcl

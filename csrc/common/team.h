// Threads for an op of several steps, woken once: each call of common/parallel.h's parallel_for wakes the pool and
// waits for all of it, which takes longer than a step of a small problem, and as long as a time slice where another
// process has one of the processors.
#pragma once

#include <algorithm>
#include <atomic>
#include <cstdint>
#include <exception>

#include "common/cpu.h"
#include "common/parallel.h"

namespace fastcl {

// Waits until a value is no longer `old`: spins for a moment, some hundred microseconds, then sleeps, so that an idle
// processor can take over the thread that is waited for, should another process have taken its own.
template <class T>
void wait_while(const std::atomic<T>& value, T old) {
  constexpr int kSpins = 5000;
  for (int spins = 0; value.load(std::memory_order_acquire) == old;)
    if (++spins > kSpins)
      value.wait(old, std::memory_order_acquire);
    else
      cpu_relax();
}

class Team {
 public:
  // Calls lead(team) once, and returns when it has; `threads` at most work on what it shares out.
  template <class Lead>
  static void run(int64_t threads, Lead&& lead) {
    Team team(threads);
    std::exception_ptr error;
    fastcl::parallel_for(threads, 1, [&](int64_t begin, int64_t end) {
      for (int64_t i = begin; i < end; ++i) {
        // The first to come leads: if these calls come one after another, nobody waits for one that is yet to come.
        if (team.members_.fetch_add(1) > 0) {
          team.help();
          continue;
        }
        try {
          lead(team);
        } catch (...) {
          error = std::current_exception();
        }
        team.dismiss();
      }
    });
    if (error) std::rethrow_exception(error);
  }

  int64_t threads() const { return threads_; }

  // The grain for items of `elements` floats each, touched once or twice.
  static int64_t grain_of(int64_t elements) { return std::max<int64_t>(1, fastcl::grain_of(elements) / 4); }

  // Calls f(begin, end) over ranges of `grain` items that cover [0, n), by whoever is free; returns when all are done.
  // For the leader alone. f must not throw.
  template <class F>
  void parallel_for(int64_t n, int64_t grain, F&& f) {
    if (n <= 0) return;
    if (threads_ == 1 || n <= grain) return f(int64_t(0), n);
    Job job{[](void* context, int64_t begin, int64_t end) {
              (*static_cast<std::remove_reference_t<F>*>(context))(begin, end);
            },
            const_cast<void*>(static_cast<const void*>(&f)), n, grain};
    job_.store(&job);
    turn_.fetch_add(1);
    turn_.notify_all();
    job.work();
    // Whoever comes now finds no job; whoever has found this one is inside.
    job_.store(nullptr);
    for (int inside; (inside = inside_.load()) != 0;) wait_while(inside_, inside);
  }

 private:
  struct Job {
    void (*body)(void* context, int64_t begin, int64_t end);
    void* context;
    int64_t n, grain;
    std::atomic<int64_t> next{0};

    void work() {
      for (int64_t begin; (begin = next.fetch_add(grain)) < n;) body(context, begin, std::min(n, begin + grain));
    }
  };

  explicit Team(int64_t threads) : threads_(threads) {}

  void help() {
    for (uint32_t seen = 0;;) {
      wait_while(turn_, seen);
      seen = turn_.load();
      if (dismissed_.load()) return;
      inside_.fetch_add(1);
      if (Job* job = job_.load()) job->work();
      inside_.fetch_sub(1);
      inside_.notify_all();
    }
  }

  void dismiss() {
    dismissed_.store(true);
    turn_.fetch_add(1);
    turn_.notify_all();
  }

  const int64_t threads_;
  std::atomic<int> members_{0}, inside_{0};
  std::atomic<uint32_t> turn_{0};  // jobs that were given out
  std::atomic<Job*> job_{nullptr};
  std::atomic<bool> dismissed_{false};
};

}  // namespace fastcl

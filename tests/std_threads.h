// common/parallel.h on std::thread: what the kernels run on where there is no torch.
#pragma once

#include <algorithm>
#include <thread>
#include <vector>

#include "common/parallel.h"

namespace fastcl {

static thread_local int threads = 1;
int thread_count() { return threads; }

void parallel_range(int64_t n, int64_t grain, void (*body)(void*, int64_t, int64_t), void* context) {
  const int64_t parts = std::min<int64_t>(threads, (n + grain - 1) / grain);
  if (parts <= 1) {
    if (n > 0) body(context, 0, n);
    return;
  }
  std::vector<std::thread> pool;
  for (int64_t i = 0; i < parts; ++i) pool.emplace_back(body, context, n * i / parts, n * (i + 1) / parts);
  for (std::thread& thread : pool) thread.join();
}

}  // namespace fastcl

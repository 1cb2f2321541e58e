// The one door from kernels to a thread pool. Kernels see no torch: the extension opens it onto torch's pool
// (parallel_torch.cpp), the torch-free tests onto std::thread.
#pragma once

#include <cstdint>
#include <type_traits>

namespace fastcl {

// Threads that parallel_range may use at once, at least 1.
int thread_count();

// Calls body(context, begin, end) over disjoint ranges that cover [0, n), each of at least `grain` items but the last,
// and returns when all are done. body must not throw. Ranges may run one after another on a single thread.
void parallel_range(int64_t n, int64_t grain, void (*body)(void* context, int64_t begin, int64_t end), void* context);

// The grain for items of `elements` floats each, touched once or twice: less is not worth waking a thread for.
inline int64_t grain_of(int64_t elements) {
  const int64_t items = (int64_t(1) << 15) / (elements > 0 ? elements : 1);
  return items > 1 ? items : 1;
}

template <class F>
void parallel_for(int64_t n, int64_t grain, F&& f) {
  parallel_range(
      n, grain,
      [](void* context, int64_t begin, int64_t end) {
        (*static_cast<std::remove_reference_t<F>*>(context))(begin, end);
      },
      const_cast<void*>(static_cast<const void*>(&f)));
}

}  // namespace fastcl

// Memory for large arrays.
#pragma once

#include <cstddef>
#include <cstdint>

#if defined(__linux__)
#include <sys/mman.h>
#if !defined(MADV_COLLAPSE)
#define MADV_COLLAPSE 25  // of Linux 6.1; older C libraries do not name it
#endif
#endif

namespace fastcl {

constexpr size_t kHugePage = size_t(2) << 20;

// Calls f(begin, length) on the whole huge pages that lie in an array, if any do.
template <class F>
void on_huge_pages(void* data, size_t bytes, F&& f) {
  const uintptr_t begin = (reinterpret_cast<uintptr_t>(data) + kHugePage - 1) / kHugePage * kHugePage;
  const uintptr_t end = (reinterpret_cast<uintptr_t>(data) + bytes) / kHugePage * kHugePage;
  if (end > begin) f(reinterpret_cast<void*>(begin), end - begin);
}

// Asks for huge pages under memory that has not been touched yet, where it holds whole ones. A fresh output of 32 MB
// otherwise costs 8192 page faults.
inline void prefer_huge_pages(void* data, size_t bytes) {
#if defined(__linux__) && defined(MADV_HUGEPAGE)
  on_huge_pages(data, bytes, [](void* pages, size_t length) { madvise(pages, length, MADV_HUGEPAGE); });
#else
  (void)data;
  (void)bytes;
#endif
}

// Moves memory that has been touched, as most of what the heap gives was, to huge pages: a weight of several MB that is
// read once per call is limited by TLB misses.
inline void move_to_huge_pages(void* data, size_t bytes) {
#if defined(__linux__)
  on_huge_pages(data, bytes, [](void* pages, size_t length) { madvise(pages, length, MADV_COLLAPSE); });
#else
  (void)data;
  (void)bytes;
#endif
}

}  // namespace fastcl

// Memory for kernels, as scratch and for large results: 64-byte aligned, uninitialised, and handed on from call to
// call, because fresh pages from the system cost more than many a kernel's work on them.
#pragma once

#include <cstddef>
#include <cstdint>
#include <utility>

namespace fastcl {

constexpr size_t kBufferAlignment = 64;
constexpr size_t kMostKeptBytes = size_t(64) << 20;  // by all released buffers together

// At least `bytes`; throws std::bad_alloc. What is released is kept for later calls; beyond the limit, what was
// released longest ago is freed.
void* acquire_buffer(size_t bytes);
void release_buffer(void* data) noexcept;

template <class T>
class Buffer {
 public:
  Buffer() = default;
  explicit Buffer(int64_t count) : data_(static_cast<T*>(acquire_buffer(size_t(count > 0 ? count : 1) * sizeof(T)))) {}
  Buffer(Buffer&& other) noexcept : data_(std::exchange(other.data_, nullptr)) {}
  Buffer& operator=(Buffer&& other) noexcept {
    std::swap(data_, other.data_);
    return *this;
  }
  ~Buffer() { release_buffer(data_); }

  T* get() const { return data_; }
  T& operator[](int64_t i) const { return data_[i]; }

 private:
  T* data_ = nullptr;
};

}  // namespace fastcl

// Scratch memory as arrays.
#pragma once

#include <cstddef>

namespace fastcl {

// Cuts scratch memory into arrays; with no memory it only measures.
class Cutter {
 public:
  explicit Cutter(void* data) : data_(static_cast<unsigned char*>(data)) {}
  template <class T>
  T* array(size_t count) {
    unsigned char* begin = data_ ? data_ + used_ : nullptr;
    used_ += (count * sizeof(T) + 255) / 256 * 256;
    return reinterpret_cast<T*>(begin);
  }
  size_t used() const { return used_; }

 private:
  unsigned char* data_;
  size_t used_ = 0;
};

}  // namespace fastcl

// The torch side of the CUDA kernels: their device, their stream and their place in the dispatcher. Compiled for the
// emulator (-DFASTCL_EMULATED), the same code serves CPU tensors under `fastcl_emulated`, which only tests declare.
//
//   Tensor ntxent_cuda(const Tensor& z0, ...) {
//     check_on_device("ntxent", "z0", z0, z0);
//     const DeviceScope scope(z0);
//     ... launches on current_stream(z0)
//   }
//   FASTCL_CUDA_LIBRARY(m) { m.impl("ntxent", TORCH_BOX(&ntxent_cuda)); }
#pragma once

#include <torch/csrc/stable/accelerator.h>
#include <torch/csrc/stable/library.h>

#include <string>

#include "common/cuda/launch.h"
#include "common/tensor_ops.h"

namespace fastcl {

#if defined(FASTCL_EMULATED)

#define FASTCL_CUDA_LIBRARY(m) STABLE_TORCH_LIBRARY_IMPL(fastcl_emulated, CPU, m)

struct DeviceScope {
  explicit DeviceScope(const Tensor&) {}
};

inline cuda::Stream current_stream(const Tensor&) { return nullptr; }

inline bool on_device_of(const Tensor& tensor, const Tensor&) { return tensor.is_cpu(); }

#else

#define FASTCL_CUDA_LIBRARY(m) STABLE_TORCH_LIBRARY_IMPL(fastcl, CUDA, m)

// Makes the tensor's device the current one, until the end of the scope.
struct DeviceScope {
  torch::stable::accelerator::DeviceGuard guard;
  explicit DeviceScope(const Tensor& tensor) : guard(tensor.get_device_index()) {}
};

inline cuda::Stream current_stream(const Tensor& tensor) {
  return static_cast<cuda::Stream>(
      torch::stable::accelerator::getCurrentStream(tensor.get_device_index()).nativeHandle());
}

inline bool on_device_of(const Tensor& tensor, const Tensor& like) {
  return tensor.is_cuda() && tensor.get_device_index() == like.get_device_index();
}

#endif

inline std::string device_name(const Tensor& tensor) {
  return tensor.is_cpu() ? "cpu" : "device " + std::to_string(tensor.get_device_index());
}

// The kernel reads `tensor` through its address, so it must lie where `like` does.
inline void check_on_device(const char* op, const char* name, const Tensor& tensor, const Tensor& like) {
  FASTCL_CHECK(on_device_of(tensor, like), op, ": ", name, " must be on the device that the op runs on, ",
               device_name(like), ", got ", device_name(tensor));
}

// Scratch memory from torch's allocator.
inline Tensor cuda_scratch(const Tensor& like, size_t bytes) {
  return new_tensor(like, {static_cast<int64_t>(bytes)}, ScalarType::Byte);
}

}  // namespace fastcl

// Launches, shared memory and streams, the same under nvcc and under g++ (-DFASTCL_EMULATED), which compiles kernels
// for the emulator of tests/emulator. Only this header, ptx.h and common/cuda_ops.h know which compiler it is: a kernel
// that keeps to them runs on both unchanged.
//
//   __global__ void scale_rows(const float* x, float* out, int dim) {
//     FASTCL_SHARED(float, partial, [32]);       // static: float partial[32]
//     FASTCL_DYNAMIC_SHARED(tile);               // dynamic: unsigned char* tile, 128-byte aligned
//     ...
//   }
//   launch(scale_rows, dim3(rows), dim3(256), tile_bytes, stream, x, out, dim);
#pragma once

#if defined(FASTCL_EMULATED)

#include "cuda_emulator.h"

#else

#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <cuda_runtime.h>

#include <cstddef>
#include <stdexcept>
#include <string>
#include <tuple>

#define FASTCL_SHARED(type, name, dims) __shared__ __align__(16) type name dims
// One array for all kernels of a file: an extern array of one name may have one type only.
#define FASTCL_DYNAMIC_SHARED(name)                                       \
  extern __shared__ __align__(128) unsigned char fastcl_dynamic_shared[]; \
  unsigned char* const name = fastcl_dynamic_shared

namespace fastcl::cuda {

using Stream = cudaStream_t;

inline void check(cudaError_t error, const char* what) {
  if (error != cudaSuccess) throw std::runtime_error(std::string("CUDA: ") + what + ": " + cudaGetErrorString(error));
}

inline int device_attribute(cudaDeviceAttr attribute) {
  int device = 0, value = 0;
  check(cudaGetDevice(&device), "cudaGetDevice");
  check(cudaDeviceGetAttribute(&value, attribute, device), "cudaDeviceGetAttribute");
  return value;
}

// Launches on the current device; throws std::runtime_error where CUDA refuses. The arguments convert to the kernel's
// parameter types.
template <class... Parameters, class... Arguments>
void launch(void (*kernel)(Parameters...), dim3 grid, dim3 block, std::size_t shared_bytes, Stream stream,
            Arguments&&... arguments) {
  if (shared_bytes > 48 * 1024)
    check(cudaFuncSetAttribute(reinterpret_cast<const void*>(kernel), cudaFuncAttributeMaxDynamicSharedMemorySize,
                               static_cast<int>(shared_bytes)),
          "dynamic shared memory");
  std::tuple<Parameters...> values(static_cast<Parameters>(arguments)...);
  std::apply(
      [&](auto&... value) {
        void* pointers[] = {&value..., nullptr};  // never an array of none
        check(cudaLaunchKernel(reinterpret_cast<const void*>(kernel), grid, block, pointers, shared_bytes, stream),
              "launch");
      },
      values);
}

}  // namespace fastcl::cuda

#endif

namespace fastcl::cuda {

// Whether this pass of the compiler is for a device before sm_80.
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ < 800
inline constexpr bool kBeforeSm80 = true;
#else
inline constexpr bool kBeforeSm80 = false;
#endif

// 75, 80, 86, ...: of the current device.
inline int compute_capability() {
  return 10 * device_attribute(cudaDevAttrComputeCapabilityMajor) + device_attribute(cudaDevAttrComputeCapabilityMinor);
}

inline int multiprocessors() { return device_attribute(cudaDevAttrMultiProcessorCount); }

// The most dynamic and static shared memory together that one block may have, in bytes.
inline int shared_memory_per_block() { return device_attribute(cudaDevAttrMaxSharedMemoryPerBlockOptin); }

}  // namespace fastcl::cuda

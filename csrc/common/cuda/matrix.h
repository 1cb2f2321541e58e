// Rows of a user's tensors on a GPU, read and written four values at a time.
#pragma once

#include <cstddef>
#include <cstdint>

#include "common/cuda/launch.h"
#include "common/float_types.h"

namespace fastcl {

__device__ __forceinline__ float half_to_float(uint16_t bits, FloatType type) {
  return type == FloatType::kBFloat16 ? bfloat16_to_float(bits) : __half2float(__ushort_as_half(bits));
}
__device__ __forceinline__ uint16_t float_to_half(float value, FloatType type) {
  return type == FloatType::kBFloat16 ? float_to_bfloat16(value) : float_to_float16(value);
}

// A matrix of a user's tensor. `by_four`: rows start at multiples of four elements, aligned so.
struct Matrix {
  void* data;
  FloatType type;
  int dim;
  bool by_four;

  __device__ __forceinline__ float element(int64_t i, int d) const {
    const int64_t at = i * dim + d;
    return type == FloatType::kFloat32 ? static_cast<const float*>(data)[at]
                                       : half_to_float(static_cast<const uint16_t*>(data)[at], type);
  }

  // Elements d to d + 3 of row i, zero beyond the row.
  __device__ __forceinline__ float4 load(int64_t i, int d) const {
    if (by_four && d < dim) {
      const int64_t at = i * dim + d;
      if (type == FloatType::kFloat32) return *reinterpret_cast<const float4*>(static_cast<const float*>(data) + at);
      const ushort4 h = *reinterpret_cast<const ushort4*>(static_cast<const uint16_t*>(data) + at);
      return make_float4(half_to_float(h.x, type), half_to_float(h.y, type), half_to_float(h.z, type),
                         half_to_float(h.w, type));
    }
    float v[4];
#pragma unroll
    for (int e = 0; e < 4; ++e) v[e] = d + e < dim ? element(i, d + e) : 0.f;
    return make_float4(v[0], v[1], v[2], v[3]);
  }

  __device__ __forceinline__ void store(int64_t i, int d, float4 value) const {
    const int64_t at = i * dim + d;
    if (by_four) {
      if (type == FloatType::kFloat32)
        *reinterpret_cast<float4*>(static_cast<float*>(data) + at) = value;
      else
        *reinterpret_cast<ushort4*>(static_cast<uint16_t*>(data) + at) =
            make_ushort4(float_to_half(value.x, type), float_to_half(value.y, type), float_to_half(value.z, type),
                         float_to_half(value.w, type));
      return;
    }
    const float v[4] = {value.x, value.y, value.z, value.w};
#pragma unroll
    for (int e = 0; e < 4; ++e) {
      if (d + e >= dim) break;
      if (type == FloatType::kFloat32)
        static_cast<float*>(data)[at + e] = v[e];
      else
        static_cast<uint16_t*>(data)[at + e] = float_to_half(v[e], type);
    }
  }
};

inline Matrix matrix(const void* data, FloatType type, int dim) {
  const size_t alignment = 4 * size_of(type);
  return {const_cast<void*>(data), type, dim, dim % 4 == 0 && reinterpret_cast<uintptr_t>(data) % alignment == 0};
}

}  // namespace fastcl

// The floating types that ops accept, and their conversion to and from float32, row by row.
#pragma once

#include <cstdint>
#include <cstring>

#include "common/portable.h"

namespace fastcl {

enum class FloatType { kFloat32, kBFloat16, kFloat16 };

FASTCL_HD inline int64_t size_of(FloatType type) { return type == FloatType::kFloat32 ? 4 : 2; }

FASTCL_HD inline float bits_to_float(uint32_t bits) {
  float value;
  std::memcpy(&value, &bits, sizeof value);
  return value;
}

FASTCL_HD inline uint32_t float_to_bits(float value) {
  uint32_t bits;
  std::memcpy(&bits, &value, sizeof bits);
  return bits;
}

FASTCL_HD inline float bfloat16_to_float(uint16_t half) { return bits_to_float(uint32_t(half) << 16); }

// Round to nearest even; NaN stays NaN.
FASTCL_HD inline uint16_t float_to_bfloat16(float value) {
  const uint32_t bits = float_to_bits(value);
  if ((bits & 0x7fffffffu) > 0x7f800000u) return uint16_t((bits >> 16) | 0x40u);
  return uint16_t((bits + 0x7fffu + ((bits >> 16) & 1u)) >> 16);
}

FASTCL_HD inline float float16_to_float(uint16_t half) {
  const uint32_t sign = uint32_t(half & 0x8000u) << 16, rest = half & 0x7fffu;
  if (rest >= 0x7c00u) return bits_to_float(sign | 0x7f800000u | ((rest & 0x3ffu) << 13));
  // 2^112 re-biases the exponent, and makes a subnormal half a normal float, exactly.
  const float magnitude = bits_to_float(rest << 13) * bits_to_float(0x77800000u);
  return bits_to_float(sign | float_to_bits(magnitude));
}

// Round to nearest even; overflow gives infinity, NaN stays NaN.
FASTCL_HD inline uint16_t float_to_float16(float value) {
  const uint32_t bits = float_to_bits(value), sign = (bits >> 16) & 0x8000u, magnitude = bits & 0x7fffffffu;
  if (magnitude > 0x7f800000u) return uint16_t(sign | 0x7e00u);
  if (magnitude >= 0x477ff000u) return uint16_t(sign | 0x7c00u);
  if (magnitude < 0x38800000u) {  // subnormal: adding 0.5 leaves the rounded result in the lowest bits
    return uint16_t(sign | (float_to_bits(bits_to_float(magnitude) + 0.5f) - 0x3f000000u));
  }
  const uint32_t rebiased = magnitude - 0x38000000u;
  return uint16_t(sign | ((rebiased + 0xfffu + ((rebiased >> 13) & 1u)) >> 13));
}

// out[i] = the i-th of `count` values of `type` that start at element `first` of `data`.
inline void load_floats(const void* data, FloatType type, int64_t first, int64_t count, float* out) {
  if (type == FloatType::kFloat32) {
    std::memcpy(out, static_cast<const float*>(data) + first, size_t(count) * sizeof(float));
    return;
  }
  const uint16_t* half = static_cast<const uint16_t*>(data) + first;
  if (type == FloatType::kBFloat16)
    for (int64_t i = 0; i < count; ++i) out[i] = bfloat16_to_float(half[i]);
  else
    for (int64_t i = 0; i < count; ++i) out[i] = float16_to_float(half[i]);
}

inline void store_floats(const float* values, int64_t count, FloatType type, int64_t first, void* data) {
  if (type == FloatType::kFloat32) {
    std::memcpy(static_cast<float*>(data) + first, values, size_t(count) * sizeof(float));
    return;
  }
  uint16_t* half = static_cast<uint16_t*>(data) + first;
  if (type == FloatType::kBFloat16)
    for (int64_t i = 0; i < count; ++i) half[i] = float_to_bfloat16(values[i]);
  else
    for (int64_t i = 0; i < count; ++i) half[i] = float_to_float16(values[i]);
}

}  // namespace fastcl

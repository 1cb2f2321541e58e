// The per-element maths of int8_linear.h.
#pragma once

#include <cmath>
#include <cstdint>
#include <limits>

#include "common/float_types.h"
#include "int8_linear/int8_linear.h"

namespace fastcl {

// How a row is quantised: value = scale * q, q = round(value * inverse).
struct RowScale {
  float scale;    // NaN where the row holds a NaN or an infinity
  float inverse;  // 0: every q is 0
};

// From the largest bit pattern of |x| over the row: patterns order as magnitudes do, infinity and then NaN on top.
inline RowScale row_scale(uint32_t absmax_bits) {
  if (absmax_bits >= 0x7f800000u) return {std::numeric_limits<float>::quiet_NaN(), 0.f};
  if (absmax_bits < 0x0d800000u) return {0.f, 0.f};  // 2^-100: 127 / absmax stays finite above it
  const float absmax = bits_to_float(absmax_bits);
  return {absmax / 127.f, 127.f / absmax};
}

// Within [-127, 127] for |x| <= absmax: 127 / absmax errs by less than half a step at 127.
inline int8_t quantize(float x, float inverse) {
  // The product of two floats is exact in double; adding 1.5 * 2^52 rounds it, half to even, into the lowest bits.
  const double shifted = double(x) * double(inverse) + 6755399441055744.0;
  uint64_t bits;
  std::memcpy(&bits, &shifted, sizeof bits);
  return static_cast<int8_t>(bits);
}

inline float activate(float v, Activation activation) {
  switch (activation) {
    case Activation::kNone: return v;
    case Activation::kRelu: return v < 0 ? 0.f : v;  // NaN stays NaN
    case Activation::kGelu: return 0.5f * v * std::erfc(v * -0.70710678f);
    case Activation::kSilu: return v / (1.f + std::exp(-v));
  }
  return v;
}

inline float dequantize(int32_t sum, float row_scale, float weight_scale, float bias, Activation activation) {
  return activate(static_cast<float>(sum) * (row_scale * weight_scale) + bias, activation);
}

}  // namespace fastcl

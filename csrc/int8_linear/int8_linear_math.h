// The per-element maths of int8_linear.h.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <limits>

#include "common/float_types.h"
#include "int8_linear/int8_linear.h"

#if defined(_MSC_VER)
#define FASTCL_ALWAYS_INLINE __forceinline
#else
#define FASTCL_ALWAYS_INLINE inline __attribute__((always_inline))
#endif

namespace fastcl {

// How a row is quantised: value = scale * q, q = round(value * inverse); what is stored is q + zero.
struct RowScale {
  float scale;    // NaN where the row holds a NaN or an infinity
  float inverse;  // 0 where every q is 0, or the row NaN
  int32_t zero;   // of kAsymmetric and kStatic
};

// v * inverse, rounded once. In kDynamic and kInt16 it stays within the steps for |v| <= absmax: steps / absmax errs by
// less than half a step.
FASTCL_HD inline int32_t quantize(float v, float inverse) {
  // The product of two floats is exact in double; adding 1.5 * 2^52 rounds it, half to even, into the lowest bits.
  const double shifted = double(v) * double(inverse) + 6755399441055744.0;
  uint64_t bits;
  std::memcpy(&bits, &shifted, sizeof bits);
  return static_cast<int32_t>(bits);
}

// The same in float32, for a machine that fuses: the lowest bit of 1.5 * 2^23 is 1. |v * inverse| up to 2^22.
FASTCL_HD inline int32_t quantize_fused(float v, float inverse) {
  return int32_t(float_to_bits(std::fma(v, inverse, 12582912.f)) - 0x4b400000u);
}

// From the largest bit pattern of |v| over the row: patterns order as magnitudes do, infinity and then NaN on top.
FASTCL_HD inline RowScale row_scale(uint32_t absmax_bits, float steps) {
  if (absmax_bits >= 0x7f800000u) return {std::numeric_limits<float>::quiet_NaN(), 0.f, 0};
  if (absmax_bits < 0x0d800000u) return {0.f, 0.f, 0};  // 2^-100: steps / absmax stays finite above it
  const float absmax = bits_to_float(absmax_bits);
  return {absmax / steps, steps / absmax, 0};
}

// From the largest bit pattern as a signed and as an unsigned number: that of the greatest value, if there is one with
// a plus sign, and that of the least, if there is one with a minus sign.
FASTCL_HD inline RowScale row_scale_of_range(int32_t signed_bits, uint32_t unsigned_bits) {
  const float high = signed_bits >= 0 ? bits_to_float(uint32_t(signed_bits)) : 0.f;
  const float low = unsigned_bits >= 0x80000000u ? bits_to_float(unsigned_bits) : 0.f;
  RowScale row = row_scale(float_to_bits(high - low) & 0x7fffffffu, 255.f);
  if (row.inverse != 0) row.zero = quantize(-low, row.inverse);
  return row;
}

FASTCL_HD inline RowScale row_scale_static(uint32_t absmax_bits, float scale, int32_t zero) {
  if (absmax_bits >= 0x7f800000u) return {std::numeric_limits<float>::quiet_NaN(), 0.f, zero};
  return {scale, 1.f / scale, zero};
}

// Beyond [low, high] kStatic cuts off: a little wider than what rounds to 0 and 255.
struct ValueRange {
  float low, high;
};
FASTCL_HD inline ValueRange value_range(const RowScale& row, Int8Mode mode) {
  if (mode != Int8Mode::kStatic) {
    const float infinity = std::numeric_limits<float>::infinity();
    return {-infinity, infinity};
  }
  return {row.scale * -float(row.zero + 2), row.scale * float(257 - row.zero)};
}

// How y is quantised for a layer of kStatic.
struct Int8Output {
  bool quantized;  // else nothing below has a meaning
  RowScale row;
  ValueRange range;
};
inline Int8Output int8_output(const Int8Linear& p) {
  if (!p.y_quantized) return {};
  const RowScale row = row_scale_static(0, p.y_scale, p.y_zero);
  return {true, row, value_range(row, Int8Mode::kStatic)};
}
inline uint8_t quantize_output(const Int8Output& y, float v) {
  const int32_t q = quantize(std::clamp(v, y.range.low, y.range.high), y.row.inverse);
  return uint8_t(std::clamp(q, -y.row.zero, 255 - y.row.zero) + y.row.zero);
}

// Of kInt16: the sums with q >> 8 and with q & 255.
FASTCL_HD inline float int16_sum(int32_t high, int32_t low) { return float(high) * 256.f + float(low); }

FASTCL_HD inline float dequantize(float sum, float row_scale, float weight_scale, float bias) {
  return sum * (row_scale * weight_scale) + bias;
}

// a b + c, in one rounding where the caller is compiled for a machine that does it in one instruction.
template <bool kFused>
FASTCL_HD FASTCL_ALWAYS_INLINE float multiply_add(float a, float b, float c) {
  if constexpr (kFused) return std::fma(a, b, c);
  return a * b + c;
}

// e^x after Cephes, to about 1e-7. Clamped to [-80, 88], so that what it is multiplied by below stays a normal number:
// others are slow. NaN stays NaN.
template <bool kFused>
FASTCL_HD FASTCL_ALWAYS_INLINE float clamped_exp(float x) {
  x = x < -80.f ? -80.f : x;
  x = x > 88.f ? 88.f : x;
  const float shifted = multiply_add<kFused>(x, 1.44269504f, 12582912.f);  // round(x / log 2), in the lowest bits
  const float n = shifted - 12582912.f;
  const float r = multiply_add<kFused>(n, 2.12194440e-4f, multiply_add<kFused>(n, -0.693359375f, x));
  float p = 1.9875691500e-4f;
  p = multiply_add<kFused>(p, r, 1.3981999507e-3f);
  p = multiply_add<kFused>(p, r, 8.3334519073e-3f);
  p = multiply_add<kFused>(p, r, 4.1665795894e-2f);
  p = multiply_add<kFused>(p, r, 1.6666665459e-1f);
  p = multiply_add<kFused>(p, r, 0.5f);
  p = multiply_add<kFused>(p, r * r, r) + 1.f;
  return p * bits_to_float((float_to_bits(shifted) << 23) + 0x3f800000u);
}

// v / 2 erfc(-v / sqrt 2), with erfc after Abramowitz and Stegun 7.1.26: absolute error under 2e-7.
template <bool kFused>
FASTCL_HD FASTCL_ALWAYS_INLINE float gelu(float v) {
  const float z = std::fabs(v) * 0.70710678f, t = 1.f / multiply_add<kFused>(z, 0.3275911f, 1.f);
  float p = 1.061405429f;
  p = multiply_add<kFused>(p, t, -1.453152027f);
  p = multiply_add<kFused>(p, t, 1.421413741f);
  p = multiply_add<kFused>(p, t, -0.284496736f);
  p = multiply_add<kFused>(p, t, 0.254829592f);
  const float tail = (p * t) * clamped_exp<kFused>(-(z * z));
  return (0.5f * v) * (1.f + std::copysign(1.f - tail, v));  // no branch on v: it would keep the loop from vectors
}

template <bool kFused>
FASTCL_HD FASTCL_ALWAYS_INLINE float silu(float v) {
  return v / (1.f + clamped_exp<kFused>(-v));
}

// Loops without branches, which the compiler turns into vectors of whatever the caller is compiled for.
template <bool kFused>
FASTCL_HD FASTCL_ALWAYS_INLINE void activate(float* values, int64_t count, Activation activation) {
  if (activation == Activation::kRelu)
    for (int64_t i = 0; i < count; ++i) values[i] = values[i] < 0 ? 0.f : values[i];  // NaN stays NaN
  if (activation == Activation::kGelu)
    for (int64_t i = 0; i < count; ++i) values[i] = gelu<kFused>(values[i]);
  if (activation == Activation::kSilu)
    for (int64_t i = 0; i < count; ++i) values[i] = silu<kFused>(values[i]);
}

}  // namespace fastcl

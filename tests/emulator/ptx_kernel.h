// What the C++ that ptx_to_cpp.py writes is made of.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstring>
#include <limits>

#include "cuda_emulator.h"
#include "matrix.h"

namespace {

namespace emulator = fastcl::emulator;

inline float as_float(uint32_t bits) { return __builtin_bit_cast(float, bits); }
inline double as_double(uint64_t bits) { return __builtin_bit_cast(double, bits); }
inline uint32_t bits(float value) { return __builtin_bit_cast(uint32_t, value); }
inline uint64_t bits(double value) { return __builtin_bit_cast(uint64_t, value); }

// A vector access must be aligned to its size.
inline char* at(uint64_t address, unsigned bytes, int line) {
  if (address % bytes) emulator::fail("misaligned access", {"PTX", line});
  return reinterpret_cast<char*>(address);
}
inline char* shared_at(unsigned char* shared, size_t shared_bytes, uint32_t offset, unsigned bytes, int line) {
  if (offset % bytes) emulator::fail("misaligned access of shared memory", {"PTX", line});
  if (offset + size_t{bytes} > shared_bytes) emulator::fail("access outside of shared memory", {"PTX", line});
  return reinterpret_cast<char*>(shared + offset);
}
template <class T>
T load(const char* from, int index) {
  T value;
  std::memcpy(&value, from + index * sizeof(T), sizeof value);
  return value;
}
template <class T>
void store(char* to, int index, T value) {
  std::memcpy(to + index * sizeof(T), &value, sizeof value);
}

inline float saturated(float x) { return __saturatef(x); }
template <class T>
T clamped(int64_t x) {
  return static_cast<T>(std::clamp<int64_t>(x, std::numeric_limits<T>::min(), std::numeric_limits<T>::max()));
}
// To float32: 'z' towards zero, 'm' down, 'p' up.
template <char kMode>
float rounded(long double exact) {
  const float nearest = static_cast<float>(exact);
  const bool down = kMode == 'm' || (kMode == 'z' && exact > 0);
  if (down ? nearest <= exact : nearest >= exact) return nearest;
  return std::nextafter(nearest, down ? -INFINITY : INFINITY);
}
// A device gives garbage instead of a signal.
template <class T>
T divided(T a, T b) {
  return b == 0 ? static_cast<T>(-1) : a / b;
}
template <class T>
T remainder(T a, T b) {
  return b == 0 ? a : a % b;
}

inline uint16_t bf16_bits(float x) { return __bfloat16_as_ushort(__float2bfloat16(x)); }
inline uint16_t f16_bits(float x) { return __half_as_ushort(__float2half(x)); }
inline uint16_t f16_bits(double x) { return __half_as_ushort(__double2half(x)); }
inline float from_bf16(uint16_t bits) { return __bfloat162float(__ushort_as_bfloat16(bits)); }
inline float from_f16(uint16_t bits) { return __half2float(__ushort_as_half(bits)); }
inline uint32_t fma_bf16x2(uint32_t a, uint32_t b, uint32_t c) {
  const auto half = [&](int shift) {
    const auto value = [shift](uint32_t both) { return from_bf16(static_cast<uint16_t>(both >> shift)); };
    return static_cast<uint32_t>(bf16_bits(std::fma(value(a), value(b), value(c)))) << shift;
  };
  return half(0) | half(16);
}

inline uint32_t lop3(uint32_t a, uint32_t b, uint32_t c, uint32_t table) {
  uint32_t result = 0;
  for (int i = 0; i < 8; ++i)
    if (table >> i & 1) result |= (i & 4 ? a : ~a) & (i & 2 ? b : ~b) & (i & 1 ? c : ~c);
  return result;
}
inline uint32_t bfi(uint32_t a, uint32_t b, uint32_t position, uint32_t length) {
  position &= 255, length &= 255;
  if (position > 31 || !length) return b;
  const uint32_t mask = (length >= 32 ? ~0u : (1u << length) - 1) << position;
  return (b & ~mask) | (a << position & mask);
}
template <class T>
T bfe(T a, uint32_t position, uint32_t length) {
  position &= 255, length &= 255;
  if (!length) return 0;
  const int64_t wide = a;  // sign-extended where T is signed
  int64_t value = wide >> std::min(position, 63u);
  if (length < 63) {
    value &= (int64_t{1} << length) - 1;
    if (std::is_signed_v<T> && (value >> (length - 1) & 1)) value |= ~int64_t{0} << length;
  }
  return static_cast<T>(value);
}

enum ShuffleMode { kUp, kDown, kButterfly, kIndex };
// PTX ISA, shfl.sync: `c` holds the clamp value and the mask of segments.
template <ShuffleMode kMode>
uint32_t shuffle(uint32_t value, uint32_t b, uint32_t c, uint32_t mask, bool& inside, emulator::Location location) {
  const int lane = emulator::lane(), segments = static_cast<int>(c >> 8 & 31), clamp = static_cast<int>(c & 31);
  const int by = static_cast<int>(b & 31);
  const int last = (lane & segments) | (clamp & ~segments), first = lane & segments;
  const int source = kMode == kUp          ? lane - by
                     : kMode == kDown      ? lane + by
                     : kMode == kButterfly ? lane ^ by
                                           : first | (by & ~segments);
  inside = kMode == kUp ? source >= last : source <= last;
  return emulator::shuffle("shfl", mask, value, inside ? source : lane, location);
}

}  // namespace

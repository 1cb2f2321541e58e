// What the CPU kernel leaves to the compiler: plain loops over rows. Included by augment_cpu.cpp alone.
#pragma once

#include <cmath>
#include <cstdint>

#include "augment/augment_pixels.h"
#include "common/portable.h"

namespace fastcl {
namespace {

// out[i, c] = in[c, i] for n pixels
template <class T>
FASTCL_INLINE void join_loop(const T* in, int64_t plane, int64_t channels, int64_t n, T* __restrict out) {
  for (int64_t i = 0; i < n; ++i)
    for (int64_t c = 0; c < channels; ++c) out[i * channels + c] = in[c * plane + i];
}
#define FASTCL_JOIN_CHANNELS(T)                                                                                        \
  FASTCL_MULTIVERSION void join_channels(const T* in, int64_t plane, int64_t channels, int64_t n, T* __restrict out) { \
    channels == 3 ? join_loop(in, plane, 3, n, out) : join_loop(in, plane, channels, n, out);                          \
  }
FASTCL_JOIN_CHANNELS(uint8_t)
FASTCL_JOIN_CHANNELS(uint16_t)
FASTCL_JOIN_CHANNELS(float)
#undef FASTCL_JOIN_CHANNELS

FASTCL_MULTIVERSION void quantize_row(const float* in, int64_t n, float scale, float offset, uint8_t* __restrict out) {
  for (int64_t i = 0; i < n; ++i) out[i] = quantized(in[i], scale, offset);
}

FASTCL_MULTIVERSION void invert_row(float* v, int64_t n, float bound) {
  for (int64_t i = 0; i < n; ++i) v[i] = bound - v[i];
}

// Down to a multiple of `step`; below one by less than `noise` counts as it.
FASTCL_MULTIVERSION void posterize_row(float* v, int64_t n, float step, float levels, float noise) {
  for (int64_t i = 0; i < n; ++i) v[i] = posterized(v[i], step, levels, noise);
}

// One row between two others, blended with a mean of nine pixels, the middle one counting five.
FASTCL_MULTIVERSION void sharpen_row(const float* above, const float* row, const float* below, int64_t n, float factor,
                                     float bound, bool round, float* __restrict out) {
  out[0] = row[0];
  out[n - 1] = row[n - 1];
  for (int64_t i = 1; i + 1 < n; ++i) {
    const float smooth = above[i - 1] + above[i] + above[i + 1] + row[i - 1] + 5 * row[i] + row[i + 1] + below[i - 1] +
                         below[i] + below[i + 1];
    out[i] = sharpened(row[i], smooth, factor, bound, round);
  }
}

// The darkest value becomes 0 and the brightest `bound`.
FASTCL_MULTIVERSION void stretch_plane(float* v, int64_t n, float bound) {
  constexpr int64_t kSide = 16;  // extremes side by side, for the compiler to make vectors of
  float least[kSide], most[kSide];
  for (int64_t k = 0; k < kSide; ++k) least[k] = most[k] = v[0];
  for (int64_t i = 0; i + kSide <= n; i += kSide)
    for (int64_t k = 0; k < kSide; ++k) {
      least[k] = v[i + k] < least[k] ? v[i + k] : least[k];
      most[k] = v[i + k] > most[k] ? v[i + k] : most[k];
    }
  float low = least[0], high = most[0];
  const auto widen = [&](float value) {
    low = value < low ? value : low;
    high = value > high ? value : high;
  };
  for (int64_t k = 0; k < kSide; ++k) widen(least[k]), widen(most[k]);
  for (int64_t i = n / kSide * kSide; i < n; ++i) widen(v[i]);
  const Stretch stretch(low, high, bound);
  for (int64_t i = 0; i < n; ++i) v[i] = stretch(v[i]);
}

// Pillow's histogram equalisation, of n values in 256 levels: int(value * scale + offset).
inline void equalize_plane(float* v, int64_t n, float scale, float offset, float unit) {
  const auto level = [&](float value) { return histogram_level(value, scale, offset); };
  int64_t count[256] = {}, brightest = 0;
  for (int64_t i = 0; i < n; ++i) ++count[level(v[i])];
  for (int64_t i = 0; i < 256; ++i)
    if (count[i]) brightest = i;
  const int64_t step = (n - count[brightest]) / 255;
  float to[256];
  for (int64_t i = 0, below = 0; i < 256; below += count[i++]) to[i] = equalized(i, below, step, unit);
  for (int64_t i = 0; i < n; ++i) v[i] = to[level(v[i])];
}

}  // namespace
}  // namespace fastcl

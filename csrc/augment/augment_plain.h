// What the CPU kernel leaves to the compiler: plain loops over rows. Included by augment_cpu.cpp alone.
#pragma once

#include <cmath>
#include <cstdint>

#include "augment/augment_pixels.h"
#include "common/portable.h"

namespace fastcl {
namespace {

// One row of pixels into its planes, `pitch` apart.
FASTCL_INLINE void split_loop(const float* in, int64_t channels, int64_t n, float* __restrict out, int64_t pitch) {
  for (int64_t c = 0; c < channels; ++c)
    for (int64_t i = 0; i < n; ++i) out[c * pitch + i] = in[i * channels + c];
}
FASTCL_MULTIVERSION void split_channels(const float* in, int64_t channels, int64_t n, float* __restrict out,
                                        int64_t pitch) {
  if (channels == 3)
    split_loop(in, 3, n, out, pitch);
  else
    split_loop(in, channels, n, out, pitch);
}

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

FASTCL_MULTIVERSION void clamp_row(float* v, int64_t n, float bound) {
  for (int64_t i = 0; i < n; ++i) v[i] = clamp(v[i], bound);
}

FASTCL_MULTIVERSION void quantize_row(const float* in, int64_t n, float scale, float offset, uint8_t* __restrict out) {
  for (int64_t i = 0; i < n; ++i) out[i] = quantized(in[i], scale, offset);
}

// Where the pixels of the output's row `y` come from; all counted from the images' centres. In double and in the order
// of the reference's operations, so that the nearest pixel is the reference's.
FASTCL_MULTIVERSION void source_positions(const double* m, double left, double y, int64_t n, double middle_x,
                                          double middle_y, double* __restrict source_x, double* __restrict source_y) {
  const bool affine = m[6] == 0 && m[7] == 0 && m[8] == 1;  // a division by 1 changes no bit
  for (int64_t i = 0; i < n; ++i) {
    const double x = double(int32_t(i)) + left;
    source_x[i] = m[0] * x + m[1] * y + m[2];
    source_y[i] = m[3] * x + m[4] * y + m[5];
  }
  for (int64_t i = 0; i < n && !affine; ++i) {
    const double depth = m[6] * (double(int32_t(i)) + left) + m[7] * y + m[8];
    source_x[i] /= depth;
    source_y[i] /= depth;
  }
  for (int64_t i = 0; i < n; ++i) {
    source_x[i] += middle_x;
    source_y[i] += middle_y;
  }
}

// Where the nearest pixels lie in their plane; -1: outside. NaN lies outside.
FASTCL_MULTIVERSION void nearest_pixels(const double* x, const double* y, int64_t n, double last_x, double last_y,
                                        int32_t width, int32_t* __restrict from) {
  for (int64_t i = 0; i < n; ++i) {
    const double px = std::rint(x[i]), py = std::rint(y[i]);
    const bool in = (px >= 0) & (px <= last_x) & (py >= 0) & (py <= last_y);
    from[i] = in ? int32_t(in ? py : 0.0) * width + int32_t(in ? px : 0.0) : -1;
  }
}

FASTCL_MULTIVERSION void take_nearest(const float* in, const int32_t* from, int64_t n, float fill,
                                      float* __restrict out) {
  for (int64_t i = 0; i < n; ++i) {
    const float value = in[from[i] < 0 ? 0 : from[i]];
    out[i] = from[i] < 0 ? fill : value;
  }
}

// The four pixels around each position and their weights, [4, n]: 0 outside.
FASTCL_MULTIVERSION void bilinear_pixels(const double* x, const double* y, int64_t n, double last_x, double last_y,
                                         int32_t width, int32_t* __restrict from, float* __restrict weight) {
  for (int64_t k = 0; k < 4; ++k)
    for (int64_t i = 0; i < n; ++i) {
      const double left = std::floor(x[i]), upper = std::floor(y[i]);
      const float right = float(x[i] - left), lower = float(y[i] - upper);  // weights of the far pixels
      const double px = left + double(k % 2), py = upper + double(k / 2);
      const bool in = (px >= 0) & (px <= last_x) & (py >= 0) & (py <= last_y);
      from[k * n + i] = in ? int32_t(in ? py : 0.0) * width + int32_t(in ? px : 0.0) : 0;
      weight[k * n + i] = in ? (k % 2 ? right : 1 - right) * (k / 2 ? lower : 1 - lower) : 0.f;
    }
}

// With a fill, what a position's weights fall short of 1 is the fill's.
FASTCL_MULTIVERSION void take_bilinear(const float* in, const int32_t* from, const float* weight, int64_t n,
                                       bool filled, float fill, float* __restrict out) {
  for (int64_t i = 0; i < n; ++i) {
    float value = 0, mask = 0;
    for (int64_t k = 0; k < 4; ++k) {
      value += weight[k * n + i] * in[from[k * n + i]];
      mask += weight[k * n + i];
    }
    out[i] = filled ? (value - fill) * mask + fill : value;
  }
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

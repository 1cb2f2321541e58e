// The arithmetic on one value, for the CPU's loops and the GPU's threads alike; augment_color.h has that of the
// channels of a pixel. Nothing is contracted, so both round in the same way.
#pragma once

#include <cmath>
#include <cstdint>

#include "augment/augment.h"
#include "common/philox.h"
#include "common/portable.h"

namespace fastcl {

FASTCL_HD FASTCL_INLINE float clamp(float value, float bound) {
  value = value > 0.f ? value : 0.f;
  return value < bound ? value : bound;
}

// ---- resize ----

// The radius of the resampling filter where it is not stretched.
FASTCL_HD inline double filter_radius(bool cubic) { return cubic ? 2 : 1; }

FASTCL_HD inline int64_t resize_taps(int64_t in, int64_t out, bool cubic) {
  if (in == out) return 1;  // copied
  const double scale = double(in) / double(out);
  const int64_t taps = int64_t(std::ceil(2 * filter_radius(cubic) * (scale > 1.0 ? scale : 1.0)));
  return taps < in ? taps : in;
}

FASTCL_HD FASTCL_INLINE float triangle(float x) {
  const float value = 1 - std::fabs(x);
  return value > 0 ? value : 0;
}

// Keys' cubic convolution with a = -0.5.
FASTCL_HD FASTCL_INLINE float cubic(float x) {
  x = std::fabs(x);
  const float near = (1.5f * x - 2.5f) * x * x + 1, far = ((-0.5f * x + 2.5f) * x - 4) * x + 2;
  return x < 1 ? near : x < 2 ? far : 0;
}

// ---- what follows the blur ----

// As a byte; `offset` rounds.
FASTCL_HD FASTCL_INLINE uint8_t quantized(float value, float scale, float offset) {
  return uint8_t(int32_t(clamp(value * scale + offset, 255.f)));
}

// Below a step by less than this lies what float's noise alone keeps from it.
FASTCL_HD FASTCL_INLINE float step_noise(float bound) { return bound * 0x1p-18f; }

FASTCL_HD FASTCL_INLINE float posterize_step(float levels, float bound) {
  return (bound == 255 ? 256 : bound) / levels;
}
FASTCL_HD FASTCL_INLINE float posterized(float value, float step, float levels, float noise) {
  return clamp(std::floor((value + noise) / step), levels - 1) * step;
}

// `smooth`: 13 times the mean of nine pixels, the middle one counting five.
FASTCL_HD FASTCL_INLINE float sharpened(float value, float smooth, float factor, float bound, bool round) {
  smooth = smooth / 13;
  smooth = round ? std::rint(smooth) : smooth;
  return clamp(value + (smooth - value) * (1 - factor), bound);
}

// Autocontrast: the darkest value of a plane becomes 0 and the brightest `bound`.
struct Stretch {
  float low, scale, bound;
  FASTCL_HD Stretch(float darkest, float brightest, float bound_) : bound(bound_) {
    const bool flat = !(darkest < brightest);
    low = flat ? 0 : darkest;
    scale = flat ? 1 : (brightest - darkest) * (1 / bound);
  }
  FASTCL_HD FASTCL_INLINE float operator()(float value) const { return clamp((value - low) / scale, bound); }
};

// Pillow's histogram equalisation: the level of a value, and where the level `i` goes with `below` values below it.
FASTCL_HD FASTCL_INLINE int32_t histogram_level(float value, float scale, float offset) {
  return int32_t(clamp(std::floor(value * scale + offset), 255.f));
}
FASTCL_HD FASTCL_INLINE float equalized(int64_t i, int64_t below, int64_t step, float unit) {
  const int64_t equal = step ? (below + step / 2) / step : i;
  return float(equal < 255 ? equal : 255) * unit;
}

// ---- of a row of parameters ----

FASTCL_HD inline bool is_identity_map(const AugmentParams& p) {
  for (int i = 0; i < 9; ++i)
    if (p.map[i] != (i % 4 == 0 ? 1.f : 0.f)) return false;
  return true;
}

// What a byte of the output is more than the floor of: as torchvision's last op on uint8, a colour op cuts off (just
// above float's noise), the others round.
FASTCL_HD inline float byte_rounding(const AugmentParams& p) {
  bool colored = p.grayscale != 0;
  for (float code : p.color_op) colored |= code != 0;
  return (colored && !(p.blur_sigma > 0)) || p.sharpen != 0 || p.autocontrast != 0 ? 0x1p-10f : 0.5f;
}

}  // namespace fastcl

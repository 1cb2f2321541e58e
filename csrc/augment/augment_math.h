// Draws of one sample, and which rows fit an image.
#pragma once

#include <cmath>
#include <cstring>

#include "augment/augment.h"
#include "augment/augment_draws.h"

namespace fastcl {

// The numbers of one sample; see augment_draws.h.
struct OneSample : PhiloxWords {
  using Real = double;
  using Mask = bool;
  struct Row {
    AugmentParams names{};
    FASTCL_HD void set(float& field, double v) { field = float(v); }
  };

  static FASTCL_HD double number(uint32_t word) { return word; }
  static FASTCL_HD double floor(double v) { return std::floor(v); }
  static FASTCL_HD double ceil(double v) { return std::ceil(v); }
  static FASTCL_HD double round(double v) { return std::nearbyint(v); }
  static FASTCL_HD double sqrt(double v) { return std::sqrt(v); }
  static FASTCL_HD double absolute(double v) { return std::fabs(v); }
  static FASTCL_HD double least(double a, double b) { return a < b ? a : b; }
  static FASTCL_HD double most(double a, double b) { return a > b ? a : b; }
  static FASTCL_HD double pow2(double whole) {
    const uint64_t bits = uint64_t(int64_t(whole) + 1023) << 52;
    double power;
    std::memcpy(&power, &bits, sizeof power);
    return power;
  }
  static FASTCL_HD bool none() { return false; }
  static FASTCL_HD bool any(bool v) { return v; }
  static FASTCL_HD bool all(bool v) { return v; }
  static FASTCL_HD double select(bool which, double a, double b) { return which ? a : b; }
};

FASTCL_HD inline AugmentParams draw_params(const AugmentRecipe& r, const AugmentStream& s, int64_t index) {
  Draws<OneSample> u(s, uint32_t(r.pass), uint32_t(uint64_t(index)), uint32_t(uint64_t(index) >> 32));
  const SizesOf<OneSample> sizes = {double(s.height), double(s.width), double(s.out_height), double(s.out_width)};
  OneSample::Row row;
  draw_row<OneSample>(r, sizes, u, row);
  return row.names;
}

// The noise of an erased pixel, normal (Box and Muller).
FASTCL_HD inline float erase_noise(uint32_t seed, int64_t pixel, int64_t channel) {
  const PhiloxBlock bits = philox({{uint32_t(pixel), uint32_t(channel), 0, 0}}, seed);
  const double radius = std::sqrt(-2 * std::log((double(bits.word[0]) + 1) * 0x1p-32));
  return float(radius * portable_sin_cos<OneSample>(360 * (bits.word[1] * 0x1p-32)).cos);
}

// Whether the row can be applied to images of this size; if not, `bad` is the first column that does not fit.
FASTCL_HD inline bool params_fit(const AugmentParams& p, const AugmentApply& a, int64_t* bad) {
  const float* value = reinterpret_cast<const float*>(&p);
  const bool color = a.channels == 1 || a.channels == 3;
  *bad = kParams;
  const auto require = [&](bool fits, const float* column) {
    if (!fits && column - value < *bad) *bad = column - value;
  };
  // NaN fails every comparison; `most` is below 2^31.
  const auto whole = [&](const float& v, float least, float most) {
    require(v >= least && v <= most && float(int32_t(v)) == v, &v);
  };
  const auto is_finite = [](float v) { return std::fabs(v) <= 3.402823466e38f; };
  bool finite = true;  // all at once, as vectors
  for (int64_t i = 0; i < kParams; ++i) finite = finite & is_finite(value[i]);
  for (int64_t i = 0; i < kParams && !finite; ++i) require(is_finite(value[i]), value + i);
  whole(p.crop_top, 0, float(a.height - 1));
  whole(p.crop_left, 0, float(a.width - 1));
  whole(p.crop_height, 1, float(a.height) - p.crop_top);
  whole(p.crop_width, 1, float(a.width) - p.crop_left);
  whole(p.hflip, 0, 1);
  whole(p.vflip, 0, 1);
  for (const float& code : p.color_op) whole(code, 0, color ? float(kColorOps - 1) : 0.f);
  for (const float* v : {&p.brightness, &p.contrast, &p.saturation, &p.blur_sigma}) require(*v >= 0, v);
  require(p.hue >= -0.5f && p.hue <= 0.5f, &p.hue);
  whole(p.grayscale, 0, color ? 1.f : 0.f);
  whole(p.blur_radius_x, 0, float(a.out_width - 1));
  whole(p.blur_radius_y, 0, float(a.out_height - 1));
  for (const float* v : {&p.sharpen, &p.invert, &p.solarize, &p.autocontrast, &p.equalize}) whole(*v, 0, 1);
  require(p.sharpness >= 0, &p.sharpness);
  whole(p.posterize, 0, 256);
  whole(p.erase_top, 0, float(a.out_height));
  whole(p.erase_left, 0, float(a.out_width));
  whole(p.erase_height, 0, float(a.out_height) - p.erase_top);
  whole(p.erase_width, 0, float(a.out_width) - p.erase_left);
  whole(p.erase_seed, 0, float((1 << 24) - 1));
  return *bad == kParams;
}

}  // namespace fastcl

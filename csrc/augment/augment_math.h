// From a recipe to one row of parameters: the same expressions as in fastcl/ops/augment_table.py, of operations that
// are rounded correctly everywhere (+ - * / sqrt and rounding, in double, uncontracted), so that both give the same
// bits.
#pragma once

#include <cmath>
#include <cstring>

#include "augment/augment.h"
#include "common/philox.h"

namespace fastcl {

// The numbers of the draws, four to a block of Philox; those of the crop repeat for each of its tries.
enum Draw {
  kCropArea = 0,
  kCropRatio = 1,
  kCropTop = 2,
  kCropLeft = 3,
  kCropTries = 10,
  kDrawHflip = 40,
  kDrawVflip,
  kDrawGrayscale,
  kDrawBlur,
  kDrawBlurSigma,
  kDrawJitter,
  kDrawOrder,  // and the next two
  kDrawBrightness = 49,
  kDrawContrast,
  kDrawSaturation,
  kDrawHue,
  kDrawWarp,
  kDrawAngle,
  kDrawShiftX,
  kDrawShiftY,
  kDrawZoom,
  kDrawShearX,
  kDrawShearY,
  kDrawSolarize,
  kDrawInvert,
  kDrawPosterize,
  kDrawSharpen,
  kDrawAutocontrast,
  kDrawEqualize,
  kDrawRot90,
  kDrawTurns,
  kDrawCorners = 68,  // and the next seven: x, y of the upper left, upper right, lower right, lower left
  kDrawErase = 76,
  kDrawEraseSeed,
  kDrawEraseBox = 80,  // as the crop's, for each of its tries
};

// The uniform numbers of one sample; computes a block of four when one of them is asked for.
class Draws {
 public:
  FASTCL_HD Draws(const AugmentStream& stream, uint32_t pass, int64_t index)
      : seed_(stream.seed), epoch_(stream.epoch), last_(stream.view << 16 | pass << 8), index_(uint64_t(index)) {}

  // In [0, 1).
  FASTCL_HD double operator()(int draw) {
    if (draw / 4 != block_) {
      block_ = draw / 4;
      bits_ = philox({{uint32_t(index_), uint32_t(index_ >> 32), epoch_, last_ | uint32_t(block_)}}, seed_);
    }
    return bits_.word[draw % 4] * 0x1p-32;
  }
  FASTCL_HD double uniform(double low, double high, int draw) {
    const double width = high - low;
    return width == 0 ? low + 0.0 : low + width * (*this)(draw);
  }
  FASTCL_HD bool happens(double probability, int draw) { return probability > 0 && (*this)(draw) < probability; }

 private:
  uint64_t seed_;
  uint32_t epoch_, last_;
  uint64_t index_;
  int block_ = -1;
  PhiloxBlock bits_{};
};

// e^x to 1e-15, |x| < 700.
FASTCL_HD inline double portable_exp(double x) {
  const double k = std::nearbyint(x * 1.4426950408889634);
  const double r = (x - k * 0.6931471803691238) - k * 1.9082149292705877e-10;  // ln 2 in two parts
  constexpr double factorial[] = {1,    1,     2,      6,       24,       120,       720,
                                  5040, 40320, 362880, 3628800, 39916800, 479001600, 6227020800};
  double p = 0;
  for (int n = 13; n >= 0; --n) p = p * r + 1.0 / factorial[n];
  const uint64_t bits = uint64_t(int64_t(k) + 1023) << 52;
  double power;
  std::memcpy(&power, &bits, sizeof power);
  return p * power;
}

struct SinCos {
  double sin, cos;
};

// Exact at multiples of 90 degrees.
FASTCL_HD inline SinCos portable_sin_cos(double degrees) {
  const double quarter = std::nearbyint(degrees / 90.0);
  const double r = (degrees - quarter * 90.0) * 0.017453292519943295, square = r * r;
  constexpr double factorial[] = {
      1,      1,       2,        6,         24,         120,         720,           5040,           40320,
      362880, 3628800, 39916800, 479001600, 6227020800, 87178291200, 1307674368000, 20922789888000, 355687428096000};
  double sin = 0, cos = 0;
  for (int n = 8; n >= 0; --n) {
    const double sign = n % 2 ? -1.0 : 1.0;
    sin = sin * square + sign / factorial[2 * n + 1];
    cos = cos * square + sign / factorial[2 * n];
  }
  sin = sin * r;
  const int64_t turn = int64_t(quarter) & 3;
  if (turn % 2) {
    const double keep = sin;
    sin = cos;
    cos = keep;
  }
  return {turn >= 2 ? -sin : sin, turn == 1 || turn == 2 ? -cos : cos};
}

struct Box {
  double top, left, height, width;
};

FASTCL_HD inline Box draw_crop(const AugmentRecipe& r, const AugmentStream& s, Draws& u) {
  const double height = s.height, width = s.width;
  if (int(r.crop) == kWhole) return {0, 0, height, width};
  if (int(r.crop) == kCenter)
    return {std::nearbyint((height - s.out_height) / 2), std::nearbyint((width - s.out_width) / 2),
            double(s.out_height), double(s.out_width)};
  for (int at = 0; at < 4 * kCropTries; at += 4) {
    const double area = height * width * u.uniform(r.crop_scale_min, r.crop_scale_max, at + kCropArea);
    const double ratio = portable_exp(u.uniform(r.crop_log_ratio_min, r.crop_log_ratio_max, at + kCropRatio));
    const double w = std::nearbyint(std::sqrt(area * ratio)), h = std::nearbyint(std::sqrt(area / ratio));
    if (w > 0 && w <= width && h > 0 && h <= height)
      return {std::floor(u(at + kCropTop) * (height - h + 1.0)), std::floor(u(at + kCropLeft) * (width - w + 1.0)), h,
              w};
  }
  // What torchvision falls back to when no try fits: the largest central box of an allowed ratio.
  double h = height, w = width;
  if (width / height < r.crop_ratio_min)
    h = std::fmax(1, std::nearbyint(width / r.crop_ratio_min));
  else if (width / height > r.crop_ratio_max)
    w = std::fmax(1, std::nearbyint(height * r.crop_ratio_max));
  return {std::floor((height - h) / 2.0), std::floor((width - w) / 2.0), h, w};
}

// The inverse map of torchvision's affine over the output's area.
FASTCL_HD inline void draw_affine(const AugmentRecipe& r, const AugmentStream& s, Draws& u, double map[9]) {
  const double width = s.out_width, height = s.out_height;
  const SinCos shear_x = portable_sin_cos(u.uniform(r.shear_x_min, r.shear_x_max, kDrawShearX));
  const double shear_y = u.uniform(r.shear_y_min, r.shear_y_max, kDrawShearY);
  const double angle = u.uniform(r.angle_from, r.angle_to, kDrawAngle);
  const SinCos turn = portable_sin_cos(angle), difference = portable_sin_cos(angle - shear_y);
  const double tan_shear_x = shear_x.sin / shear_x.cos, cos_shear_y = portable_sin_cos(shear_y).cos;
  const double zoom = u.uniform(r.zoom_min, r.zoom_max, kDrawZoom);
  const double a = difference.cos / cos_shear_y;
  const double b = 0.0 - (a * tan_shear_x + turn.sin);
  const double c = difference.sin / cos_shear_y;
  const double d = turn.cos - c * tan_shear_x;
  const double most_x = r.translate_x * width, most_y = r.translate_y * height;
  const double shift_x = r.translate_x >= 0 ? std::nearbyint(u.uniform(-most_x, most_x, kDrawShiftX)) : 0;
  const double shift_y = r.translate_y >= 0 ? std::nearbyint(u.uniform(-most_y, most_y, kDrawShiftY)) : 0;
  const double center_x = r.center_given ? r.center_x - width * 0.5 : 0;
  const double center_y = r.center_given ? r.center_y - height * 0.5 : 0;
  const double x = shift_x + center_x, y = shift_y + center_y;
  map[0] = d / zoom;
  map[1] = (0.0 - b) / zoom;
  map[2] = center_x - map[0] * x - map[1] * y;
  map[3] = (0.0 - c) / zoom;
  map[4] = a / zoom;
  map[5] = center_y - map[3] * x - map[4] * y;
}

// The inverse map of torchvision's perspective: it takes the drawn corners to the image's.
FASTCL_HD inline void draw_perspective(const AugmentRecipe& r, const AugmentStream& s, Draws& u, double map[9]) {
  const double width = s.out_width, height = s.out_height;
  const double reach_x = std::floor(r.perspective * double(s.out_width / 2)) + 1.0;
  const double reach_y = std::floor(r.perspective * double(s.out_height / 2)) + 1.0;
  double x[4], y[4];
  for (int corner = 0; corner < 4; ++corner) {
    const bool right = corner == 1 || corner == 2, lower = corner >= 2;
    x[corner] = std::floor(u(kDrawCorners + 2 * corner) * reach_x) + (right ? width - reach_x : 0.0);
    y[corner] = std::floor(u(kDrawCorners + 2 * corner + 1) * reach_y) + (lower ? height - reach_y : 0.0);
  }
  // The map of the unit square to these corners (Heckbert 1989, section 2.2.3), then its adjugate, in pixels.
  const double dx1 = x[1] - x[2], dx2 = x[3] - x[2], sx = x[0] - x[1] + x[2] - x[3];
  const double dy1 = y[1] - y[2], dy2 = y[3] - y[2], sy = y[0] - y[1] + y[2] - y[3];
  const double denominator = dx1 * dy2 - dx2 * dy1;
  const double g = (sx * dy2 - dx2 * sy) / denominator, h = (dx1 * sy - sx * dy1) / denominator;
  const double a = x[1] - x[0] + g * x[1], b = x[3] - x[0] + h * x[3], c = x[0];
  const double d = y[1] - y[0] + g * y[1], e = y[3] - y[0] + h * y[3], f = y[0];
  const double last_x = width - 1.0, last_y = height - 1.0;
  double m[9] = {(e - f * h) * last_x, (c * h - b) * last_x, (b * f - c * e) * last_x,
                 (f * g - d) * last_y, (a - c * g) * last_y, (c * d - a * f) * last_y,
                 d * h - e * g,        b * g - a * h,        a * e - b * d};
  // That is between positions of which torchvision takes the pixels' centres to be at + 0.5; ours count from the
  // middle.
  const double middle_x = width * 0.5, middle_y = height * 0.5;
  for (int row : {0, 3, 6}) m[row + 2] = m[row + 2] + m[row] * middle_x + m[row + 1] * middle_y;
  for (int i = 0; i < 3; ++i) {
    m[i] = m[i] - middle_x * m[6 + i];
    m[3 + i] = m[3 + i] - middle_y * m[6 + i];
  }
  const double scale = m[8];
  bool exists = true;  // the corners span an area
  for (double& value : m) {
    value /= scale;
    exists = exists && std::fabs(value) <= 1e30;
  }
  if (exists) std::memcpy(map, m, sizeof m);
}

FASTCL_HD inline void draw_erase(const AugmentRecipe& r, const AugmentStream& s, Draws& u, AugmentParams* p) {
  const double height = s.out_height, width = s.out_width;
  for (int at = kDrawEraseBox; at < kDrawEraseBox + 4 * kCropTries; at += 4) {
    const double area = height * width * u.uniform(r.erase_scale_min, r.erase_scale_max, at + kCropArea);
    const double ratio = portable_exp(u.uniform(r.erase_log_ratio_min, r.erase_log_ratio_max, at + kCropRatio));
    const double h = std::nearbyint(std::sqrt(area * ratio)), w = std::nearbyint(std::sqrt(area / ratio));
    if (!(h < height && w < width)) continue;
    if (!(h > 0 && w > 0)) return;
    p->erase_top = float(std::floor(u(at + kCropTop) * (height - h + 1.0)));
    p->erase_left = float(std::floor(u(at + kCropLeft) * (width - w + 1.0)));
    p->erase_height = float(h);
    p->erase_width = float(w);
    p->erase_seed = float((1.0 + std::floor(u(kDrawEraseSeed) * 16777215.0)) * r.erase_noise);
    return;
  }
}

FASTCL_HD inline AugmentParams draw_params(const AugmentRecipe& r, const AugmentStream& s, int64_t index) {
  Draws u(s, uint32_t(r.pass), index);
  Box box = draw_crop(r, s, u);
  const bool hflip = u.happens(r.hflip_p, kDrawHflip), vflip = u.happens(r.vflip_p, kDrawVflip);
  double map[9] = {1, 0, 0, 0, 1, 0, 0, 0, 1};
  if (u.happens(r.warp_p, kDrawWarp)) r.perspective < 0 ? draw_affine(r, s, u, map) : draw_perspective(r, s, u, map);
  if (u.happens(r.rot90_p, kDrawRot90)) {
    const double turns =
        s.out_height == s.out_width ? std::floor(u(kDrawTurns) * 4.0) : 2.0 * std::floor(u(kDrawTurns) * 2.0);
    for (int i : {0, 3, 6}) {
      const double x = map[i], y = map[i + 1];
      map[i] = turns == 0 ? x : turns == 1 ? y : turns == 2 ? 0.0 - x : 0.0 - y;
      map[i + 1] = turns == 0 ? y : turns == 1 ? 0.0 - x : turns == 2 ? 0.0 - y : x;
    }
  }
  // Flips are applied between crop and warp. One before the crop mirrors the box; one after the warp mirrors the map.
  if (hflip && int(r.hflip_at) == kBeforeCrop) box.left = s.width - box.width - box.left;
  if (vflip && int(r.vflip_at) == kBeforeCrop) box.top = s.height - box.height - box.top;
  if (hflip && int(r.hflip_at) == kAfterWarp)
    for (int i : {1, 2, 3, 6}) map[i] = 0.0 - map[i];
  if (vflip && int(r.vflip_at) == kAfterWarp)
    for (int i : {1, 3, 5, 7}) map[i] = 0.0 - map[i];

  AugmentParams p{};
  p.crop_top = float(box.top);
  p.crop_left = float(box.left);
  p.crop_height = float(box.height);
  p.crop_width = float(box.width);
  p.hflip = hflip;
  p.vflip = vflip;
  for (int i = 0; i < 9; ++i) p.map[i] = float(map[i]);

  // In the order of their numbers, that no block is computed twice.
  p.grayscale = u.happens(r.grayscale_p, kDrawGrayscale);
  if (u.happens(r.blur_p, kDrawBlur)) {
    const double sigma = u.uniform(r.blur_sigma_min, r.blur_sigma_max, kDrawBlurSigma);
    const double reach = std::ceil(4.0 * sigma);
    p.blur_sigma = float(sigma);
    p.blur_radius_x = float(r.blur_radius_x < 0 ? std::fmin(reach, s.out_width - 1.0) : r.blur_radius_x);
    p.blur_radius_y = float(r.blur_radius_y < 0 ? std::fmin(reach, s.out_height - 1.0) : r.blur_radius_y);
  }
  const bool jitter = u.happens(r.jitter_p, kDrawJitter);
  int order[4] = {1, 2, 3, 4};
  for (int place = 3; place > 0 && jitter; --place) {  // Fisher and Yates' shuffle
    const int other = int(std::floor(u(kDrawOrder + 3 - place) * (place + 1.0))), keep = order[place];
    order[place] = order[other];
    order[other] = keep;
  }
  const double least[] = {r.brightness_min, r.contrast_min, r.saturation_min, r.hue_min};
  const double most[] = {r.brightness_max, r.contrast_max, r.saturation_max, r.hue_max};
  float* factor[] = {&p.brightness, &p.contrast, &p.saturation, &p.hue};
  for (int i = 0; i < 4; ++i) {
    const double neutral = i + 1 == kHue ? 0 : 1;
    *factor[i] = float(jitter ? u.uniform(least[i], most[i], kDrawBrightness + i) : neutral);
    const bool used = jitter && !(least[i] == neutral && most[i] == neutral);
    for (int place = 0; place < 4; ++place)
      if (order[place] == i + 1) p.color_op[place] = used ? float(i + 1) : 0.f;
  }
  p.sharpen = u.happens(r.sharpen_p, kDrawSharpen);
  p.sharpness = float(r.sharpness);
  p.invert = u.happens(r.invert_p, kDrawInvert);
  p.posterize = u.happens(r.posterize_p, kDrawPosterize) ? float(r.posterize_levels) : 0.f;
  p.solarize = u.happens(r.solarize_p, kDrawSolarize);
  p.solarize_threshold = float(r.solarize_threshold);
  p.autocontrast = u.happens(r.autocontrast_p, kDrawAutocontrast);
  p.equalize = u.happens(r.equalize_p, kDrawEqualize);
  if (u.happens(r.erase_p, kDrawErase)) draw_erase(r, s, u, &p);
  return p;
}

// The noise of an erased pixel, normal (Box and Muller).
FASTCL_HD inline float erase_noise(uint32_t seed, int64_t pixel, int64_t channel) {
  const PhiloxBlock bits = philox({{uint32_t(pixel), uint32_t(channel), 0, 0}}, seed);
  const double radius = std::sqrt(-2 * std::log((double(bits.word[0]) + 1) * 0x1p-32));
  return float(radius * portable_sin_cos(360 * (bits.word[1] * 0x1p-32)).cos);
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
  for (int64_t i = 0; i < kParams; ++i) require(std::fabs(value[i]) <= 3.402823466e38f, value + i);
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

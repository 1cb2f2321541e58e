// From a recipe to rows of parameters: the same expressions as in fastcl/ops/augment_table.py, of operations that are
// rounded correctly everywhere (+ - * / sqrt and rounding, in double, uncontracted), so that both give the same bits.
//
// Templates over the numbers (N) of one sample (augment_math.h) or of as many as a vector has lanes
// (augment_draws_wide.h, inside a target region). N has
//   Real, Mask, Word              a double, an answer, 32 bits; of each sample
//   floor, round (to nearest even), ceil, sqrt, pow2 (of a whole number), least, most, absolute    of Reals
//   any, all, none, select        of Masks
//   number(word)                  the word as a Real
//   Row, Row::set(field, value)   where the parameters go; `field` is one of Row::names
#pragma once

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

// The uniform numbers of the samples; computes a block of four when one of them is asked for.
template <class N>
class Draws {
 public:
  using Real = typename N::Real;
  using Word = typename N::Word;

  FASTCL_HD Draws(const AugmentStream& stream, uint32_t pass, Word index_low, Word index_high)
      : seed_(stream.seed),
        epoch_(stream.epoch),
        last_(stream.view << 16 | pass << 8),
        low_(index_low),
        high_(index_high) {}

  // In [0, 1).
  FASTCL_HD Real operator()(int draw) {
    if (draw / 4 != block_) fill(draw / 4);
    return numbers_[draw % 4];
  }
  FASTCL_HD Real uniform(double low, double high, int draw) {
    const double width = high - low;
    return width == 0 ? Real(low + 0.0) : Real(low) + Real(width) * (*this)(draw);
  }
  FASTCL_HD typename N::Mask happens(double probability, int draw) {
    return probability > 0 ? (*this)(draw) < Real(probability) : N::none();
  }

 private:
  FASTCL_HD void fill(int block) {
    block_ = block;
    const auto bits = philox_words<N>({{low_, high_, N::word(epoch_), N::word(last_ | uint32_t(block))}}, seed_);
    for (int i = 0; i < 4; ++i) numbers_[i] = N::number(bits.word[i]) * Real(0x1p-32);
  }

  uint64_t seed_;
  uint32_t epoch_, last_;
  Word low_, high_;
  int block_ = -1;
  Real numbers_[4];
};

// e^x to 1e-15, |x| < 700.
template <class N>
FASTCL_HD inline typename N::Real portable_exp(typename N::Real x) {
  using Real = typename N::Real;
  const Real k = N::round(x * Real(1.4426950408889634));
  const Real r = (x - k * Real(0.6931471803691238)) - k * Real(1.9082149292705877e-10);  // ln 2 in two parts
  constexpr double factorial[] = {1,    1,     2,      6,       24,       120,       720,
                                  5040, 40320, 362880, 3628800, 39916800, 479001600, 6227020800};
  Real p = 0;
  for (int n = 13; n >= 0; --n) p = p * r + Real(1.0 / factorial[n]);
  return p * N::pow2(k);
}

template <class N>
struct SinCosOf {
  typename N::Real sin, cos;
};

// Exact at multiples of 90 degrees.
template <class N>
FASTCL_HD inline SinCosOf<N> portable_sin_cos(typename N::Real degrees) {
  using Real = typename N::Real;
  using Mask = typename N::Mask;
  const Real quarter = N::round(degrees / Real(90.0));
  const Real r = (degrees - quarter * Real(90.0)) * Real(0.017453292519943295), square = r * r;
  constexpr double factorial[] = {
      1,      1,       2,        6,         24,         120,         720,           5040,           40320,
      362880, 3628800, 39916800, 479001600, 6227020800, 87178291200, 1307674368000, 20922789888000, 355687428096000};
  Real sin = 0, cos = 0;
  for (int n = 8; n >= 0; --n) {
    const double sign = n % 2 ? -1.0 : 1.0;
    sin = sin * square + Real(sign / factorial[2 * n + 1]);
    cos = cos * square + Real(sign / factorial[2 * n]);
  }
  sin = sin * r;
  const Real turn = quarter - Real(4.0) * N::floor(quarter * Real(0.25));  // 0 to 3
  const Mask odd = (turn == Real(1.0)) | (turn == Real(3.0)), late = turn >= Real(2.0);
  const Mask middle = (turn == Real(1.0)) | (turn == Real(2.0));
  const Real turned_sin = N::select(odd, cos, sin), turned_cos = N::select(odd, sin, cos);
  return {N::select(late, -turned_sin, turned_sin), N::select(middle, -turned_cos, turned_cos)};
}

template <class N>
struct BoxOf {
  typename N::Real top, left, height, width;
};

// Sizes of the images and of the views.
template <class N>
struct SizesOf {
  typename N::Real height, width;
  double out_height, out_width;
};

template <class N>
FASTCL_HD inline BoxOf<N> draw_crop(const AugmentRecipe& r, const SizesOf<N>& s, Draws<N>& u) {
  using Real = typename N::Real;
  using Mask = typename N::Mask;
  const Real height = s.height, width = s.width, one = 1.0;
  BoxOf<N> box = {Real(0.0), Real(0.0), height, width};
  if (int(r.crop) == kWhole) return box;
  if (int(r.crop) == kCenter)
    return {N::round((height - Real(s.out_height)) / Real(2.0)), N::round((width - Real(s.out_width)) / Real(2.0)),
            Real(s.out_height), Real(s.out_width)};
  Mask done = N::none();
  for (int at = 0; at < 4 * kCropTries; at += 4) {
    const Real area = height * width * u.uniform(r.crop_scale_min, r.crop_scale_max, at + kCropArea);
    const Real ratio = portable_exp<N>(u.uniform(r.crop_log_ratio_min, r.crop_log_ratio_max, at + kCropRatio));
    const Real w = N::round(N::sqrt(area * ratio)), h = N::round(N::sqrt(area / ratio));
    const Mask fits = (w > Real(0.0)) & (w <= width) & (h > Real(0.0)) & (h <= height), takes = fits & !done;
    if (N::any(takes)) {
      box.top = N::select(takes, N::floor(u(at + kCropTop) * (height - h + one)), box.top);
      box.left = N::select(takes, N::floor(u(at + kCropLeft) * (width - w + one)), box.left);
      box.height = N::select(takes, h, box.height);
      box.width = N::select(takes, w, box.width);
    }
    done = done | fits;
    if (N::all(done)) return box;
  }
  // What torchvision falls back to when no try fits: the largest central box of an allowed ratio.
  const Mask narrow = width / height < Real(r.crop_ratio_min);
  const Mask wide = !narrow & (width / height > Real(r.crop_ratio_max));
  const Real h = N::select(narrow, N::most(one, N::round(width / Real(r.crop_ratio_min))), height);
  const Real w = N::select(wide, N::most(one, N::round(height * Real(r.crop_ratio_max))), width);
  return {N::select(done, box.top, N::floor((height - h) / Real(2.0))),
          N::select(done, box.left, N::floor((width - w) / Real(2.0))), N::select(done, box.height, h),
          N::select(done, box.width, w)};
}

// The inverse map of torchvision's affine over the output's area.
template <class N>
FASTCL_HD inline void draw_affine(const AugmentRecipe& r, const SizesOf<N>& s, Draws<N>& u, typename N::Real map[9]) {
  using Real = typename N::Real;
  const double width = s.out_width, height = s.out_height;
  const Real zero = 0.0;
  const SinCosOf<N> shear_x = portable_sin_cos<N>(u.uniform(r.shear_x_min, r.shear_x_max, kDrawShearX));
  const Real shear_y = u.uniform(r.shear_y_min, r.shear_y_max, kDrawShearY);
  const Real angle = u.uniform(r.angle_from, r.angle_to, kDrawAngle);
  const SinCosOf<N> turn = portable_sin_cos<N>(angle), difference = portable_sin_cos<N>(angle - shear_y);
  const Real tan_shear_x = shear_x.sin / shear_x.cos, cos_shear_y = portable_sin_cos<N>(shear_y).cos;
  const Real zoom = u.uniform(r.zoom_min, r.zoom_max, kDrawZoom);
  const Real a = difference.cos / cos_shear_y;
  const Real b = zero - (a * tan_shear_x + turn.sin);
  const Real c = difference.sin / cos_shear_y;
  const Real d = turn.cos - c * tan_shear_x;
  const double most_x = r.translate_x * width, most_y = r.translate_y * height;
  const Real shift_x = r.translate_x >= 0 ? N::round(u.uniform(-most_x, most_x, kDrawShiftX)) : zero;
  const Real shift_y = r.translate_y >= 0 ? N::round(u.uniform(-most_y, most_y, kDrawShiftY)) : zero;
  const Real center_x = r.center_given ? r.center_x - width * 0.5 : 0;
  const Real center_y = r.center_given ? r.center_y - height * 0.5 : 0;
  const Real x = shift_x + center_x, y = shift_y + center_y;
  map[0] = d / zoom;
  map[1] = (zero - b) / zoom;
  map[2] = center_x - map[0] * x - map[1] * y;
  map[3] = (zero - c) / zoom;
  map[4] = a / zoom;
  map[5] = center_y - map[3] * x - map[4] * y;
}

// The inverse map of torchvision's perspective: it takes the drawn corners to the image's.
template <class N>
FASTCL_HD inline void draw_perspective(const AugmentRecipe& r, const SizesOf<N>& s, Draws<N>& u,
                                       typename N::Real map[9]) {
  using Real = typename N::Real;
  const double width = s.out_width, height = s.out_height;
  const double reach_x = double(int64_t(r.perspective * double(int(s.out_width) / 2))) + 1.0;
  const double reach_y = double(int64_t(r.perspective * double(int(s.out_height) / 2))) + 1.0;
  Real x[4], y[4];
  for (int corner = 0; corner < 4; ++corner) {
    const bool right = corner == 1 || corner == 2, lower = corner >= 2;
    x[corner] = N::floor(u(kDrawCorners + 2 * corner) * Real(reach_x)) + Real(right ? width - reach_x : 0.0);
    y[corner] = N::floor(u(kDrawCorners + 2 * corner + 1) * Real(reach_y)) + Real(lower ? height - reach_y : 0.0);
  }
  // The map of the unit square to these corners (Heckbert 1989, section 2.2.3), then its adjugate, in pixels.
  const Real dx1 = x[1] - x[2], dx2 = x[3] - x[2], sx = x[0] - x[1] + x[2] - x[3];
  const Real dy1 = y[1] - y[2], dy2 = y[3] - y[2], sy = y[0] - y[1] + y[2] - y[3];
  const Real denominator = dx1 * dy2 - dx2 * dy1;
  const Real g = (sx * dy2 - dx2 * sy) / denominator, h = (dx1 * sy - sx * dy1) / denominator;
  const Real a = x[1] - x[0] + g * x[1], b = x[3] - x[0] + h * x[3], c = x[0];
  const Real d = y[1] - y[0] + g * y[1], e = y[3] - y[0] + h * y[3], f = y[0];
  const Real last_x = width - 1.0, last_y = height - 1.0;
  Real m[9] = {(e - f * h) * last_x, (c * h - b) * last_x, (b * f - c * e) * last_x,
               (f * g - d) * last_y, (a - c * g) * last_y, (c * d - a * f) * last_y,
               d * h - e * g,        b * g - a * h,        a * e - b * d};
  // That is between positions of which torchvision takes the pixels' centres to be at + 0.5; ours count from the
  // middle.
  const Real middle_x = width * 0.5, middle_y = height * 0.5;
  for (int row = 0; row < 9; row += 3) m[row + 2] = m[row + 2] + m[row] * middle_x + m[row + 1] * middle_y;
  for (int i = 0; i < 3; ++i) {
    m[i] = m[i] - middle_x * m[6 + i];
    m[3 + i] = m[3 + i] - middle_y * m[6 + i];
  }
  const Real scale = m[8];
  typename N::Mask exists = !N::none();  // the corners span an area
  for (int i = 0; i < 9; ++i) {
    m[i] = m[i] / scale;
    exists = exists & (N::absolute(m[i]) <= Real(1e30));
  }
  for (int i = 0; i < 9; ++i) map[i] = N::select(exists, m[i], map[i]);
}

template <class N>
FASTCL_HD inline void draw_erase(const AugmentRecipe& r, const SizesOf<N>& s, typename N::Mask wanted, Draws<N>& u,
                                 typename N::Row& p) {
  using Real = typename N::Real;
  using Mask = typename N::Mask;
  const Real height = s.out_height, width = s.out_width, zero = 0.0, one = 1.0;
  BoxOf<N> box = {zero, zero, zero, zero};
  Mask done = !wanted, erases = N::none();
  for (int at = kDrawEraseBox; at < kDrawEraseBox + 4 * kCropTries && !N::all(done); at += 4) {
    const Real area = height * width * u.uniform(r.erase_scale_min, r.erase_scale_max, at + kCropArea);
    const Real ratio = portable_exp<N>(u.uniform(r.erase_log_ratio_min, r.erase_log_ratio_max, at + kCropRatio));
    const Real h = N::round(N::sqrt(area * ratio)), w = N::round(N::sqrt(area / ratio));
    const Mask fits = (h < height) & (w < width), takes = fits & !done & (h > zero) & (w > zero);
    if (N::any(takes)) {
      box.top = N::select(takes, N::floor(u(at + kCropTop) * (height - h + one)), box.top);
      box.left = N::select(takes, N::floor(u(at + kCropLeft) * (width - w + one)), box.left);
      box.height = N::select(takes, h, box.height);
      box.width = N::select(takes, w, box.width);
    }
    done = done | fits;
    erases = erases | takes;
  }
  p.set(p.names.erase_top, box.top);
  p.set(p.names.erase_left, box.left);
  p.set(p.names.erase_height, box.height);
  p.set(p.names.erase_width, box.width);
  if (N::any(erases)) {
    const Real seed = (one + N::floor(u(kDrawEraseSeed) * Real(16777215.0))) * Real(r.erase_noise);
    p.set(p.names.erase_seed, N::select(erases, seed, zero));
  }
}

// `p`: all 0
template <class N>
FASTCL_HD inline void draw_row(const AugmentRecipe& r, const SizesOf<N>& s, Draws<N>& u, typename N::Row& p) {
  using Real = typename N::Real;
  using Mask = typename N::Mask;
  const Real zero = 0.0, one = 1.0;
  const auto set = [&](float& field, Mask answer) { p.set(field, N::select(answer, one, zero)); };
  BoxOf<N> box = draw_crop<N>(r, s, u);
  const Mask hflip = u.happens(r.hflip_p, kDrawHflip), vflip = u.happens(r.vflip_p, kDrawVflip);
  Real map[9] = {one, zero, zero, zero, one, zero, zero, zero, one};
  const Mask warps = u.happens(r.warp_p, kDrawWarp);
  if (N::any(warps)) {
    Real drawn[9] = {one, zero, zero, zero, one, zero, zero, zero, one};
    r.perspective < 0 ? draw_affine<N>(r, s, u, drawn) : draw_perspective<N>(r, s, u, drawn);
    for (int i = 0; i < 9; ++i) map[i] = N::select(warps, drawn[i], map[i]);
  }
  const Mask turned = u.happens(r.rot90_p, kDrawRot90);
  if (N::any(turned)) {
    const Real share = u(kDrawTurns);
    const Real turns =
        s.out_height == s.out_width ? N::floor(share * Real(4.0)) : Real(2.0) * N::floor(share * Real(2.0));
    const Mask once = turned & (turns == one), twice = turned & (turns == Real(2.0));
    const Mask thrice = turned & (turns == Real(3.0));
    for (int i = 0; i < 9; i += 3) {
      const Real x = map[i], y = map[i + 1];
      map[i] = N::select(once, y, N::select(twice, zero - x, N::select(thrice, zero - y, x)));
      map[i + 1] = N::select(once, zero - x, N::select(twice, zero - y, N::select(thrice, x, y)));
    }
  }
  // Flips are applied between crop and warp. One before the crop mirrors the box; one after the warp mirrors the map.
  if (int(r.hflip_at) == kBeforeCrop) box.left = N::select(hflip, s.width - box.width - box.left, box.left);
  if (int(r.vflip_at) == kBeforeCrop) box.top = N::select(vflip, s.height - box.height - box.top, box.top);
  const auto mirror = [&](Mask flips, int a, int b, int c, int d) {
    const int entries[] = {a, b, c, d};
    for (const int i : entries) map[i] = N::select(flips, zero - map[i], map[i]);
  };
  if (int(r.hflip_at) == kAfterWarp && N::any(hflip)) mirror(hflip, 1, 2, 3, 6);
  if (int(r.vflip_at) == kAfterWarp && N::any(vflip)) mirror(vflip, 1, 3, 5, 7);

  p.set(p.names.crop_top, box.top);
  p.set(p.names.crop_left, box.left);
  p.set(p.names.crop_height, box.height);
  p.set(p.names.crop_width, box.width);
  set(p.names.hflip, hflip);
  set(p.names.vflip, vflip);
  for (int i = 0; i < 9; ++i) p.set(p.names.map[i], map[i]);

  // In the order of their numbers, that no block is computed twice.
  set(p.names.grayscale, u.happens(r.grayscale_p, kDrawGrayscale));
  const Mask blurs = u.happens(r.blur_p, kDrawBlur);
  if (N::any(blurs)) {
    const Real sigma = u.uniform(r.blur_sigma_min, r.blur_sigma_max, kDrawBlurSigma);
    const Real reach = N::ceil(Real(4.0) * sigma);
    const auto radius = [&](double given, double side) {
      return N::select(blurs, given < 0 ? N::least(reach, Real(side - 1.0)) : Real(given), zero);
    };
    p.set(p.names.blur_sigma, N::select(blurs, sigma, zero));
    p.set(p.names.blur_radius_x, radius(r.blur_radius_x, s.out_width));
    p.set(p.names.blur_radius_y, radius(r.blur_radius_y, s.out_height));
  }
  const Mask jitter = u.happens(r.jitter_p, kDrawJitter);
  const double least[] = {r.brightness_min, r.contrast_min, r.saturation_min, r.hue_min};
  const double most[] = {r.brightness_max, r.contrast_max, r.saturation_max, r.hue_max};
  float* const factor[] = {&p.names.brightness, &p.names.contrast, &p.names.saturation, &p.names.hue};
  if (!N::any(jitter)) {
    for (int i = 0; i < 4; ++i) p.set(*factor[i], i + 1 == kHue ? zero : one);
  } else {
    Real order[4] = {one, Real(2.0), Real(3.0), Real(4.0)};
    for (int place = 3; place > 0; --place) {  // Fisher and Yates' shuffle
      const Real other = N::floor(u(kDrawOrder + 3 - place) * Real(place + 1.0)), keep = order[place];
      for (int i = 0; i < place; ++i) {
        const Mask swaps = other == Real(double(i));
        order[place] = N::select(swaps, order[i], order[place]);
        order[i] = N::select(swaps, keep, order[i]);
      }
    }
    for (int i = 0; i < 4; ++i) {
      const double neutral = i + 1 == kHue ? 0 : 1;
      p.set(*factor[i], N::select(jitter, u.uniform(least[i], most[i], kDrawBrightness + i), Real(neutral)));
      if (least[i] == neutral && most[i] == neutral)
        for (Real& op : order) op = N::select(op == Real(i + 1.0), zero, op);
    }
    for (int place = 0; place < 4; ++place) p.set(p.names.color_op[place], N::select(jitter, order[place], zero));
  }
  set(p.names.sharpen, u.happens(r.sharpen_p, kDrawSharpen));
  p.set(p.names.sharpness, Real(r.sharpness));
  set(p.names.invert, u.happens(r.invert_p, kDrawInvert));
  p.set(p.names.posterize, N::select(u.happens(r.posterize_p, kDrawPosterize), Real(r.posterize_levels), zero));
  set(p.names.solarize, u.happens(r.solarize_p, kDrawSolarize));
  p.set(p.names.solarize_threshold, Real(r.solarize_threshold));
  set(p.names.autocontrast, u.happens(r.autocontrast_p, kDrawAutocontrast));
  set(p.names.equalize, u.happens(r.equalize_p, kDrawEqualize));
  const Mask erases = u.happens(r.erase_p, kDrawErase);
  if (N::any(erases)) draw_erase<N>(r, s, erases, u, p);
}

}  // namespace fastcl

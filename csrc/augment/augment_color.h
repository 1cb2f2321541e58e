// The colour ops on vectors in registers, as templates over the vectors of an instruction set (V) or the numbers of a
// thread of a GPU. Included inside a target region.
#pragma once

#include "augment/augment.h"
#include "common/portable.h"

namespace fastcl {

template <class V>
struct AugmentColor {
  using F = typename V::F;

  // What the ops multiply by.
  struct Factors {
    F brightness, contrast, contrast_add, saturation, saturation_rest, bound, hue[3];
  };

  static FASTCL_HD FASTCL_INLINE Factors factors(float brightness, float contrast, float contrast_add, float saturation,
                                                 float hue, float bound) {
    Factors f = {V::set(brightness),
                 V::set(contrast),
                 V::set(contrast_add),
                 V::set(saturation),
                 V::set(1 - saturation),
                 V::set(bound),
                 {}};
    for (int c = 0; c < 3; ++c) {
      const double o = 6.0 * double(hue) - 2 * c;  // in [-7, 3]
      f.hue[c] = V::set(float(o < -6 ? o + 6 : o >= 0 ? o - 6 : o));
    }
    return f;
  }

  static FASTCL_HD FASTCL_INLINE F gray(F r, F g, F b) {
    return V::fma(b, V::set(0.114f), V::fma(g, V::set(0.587f), V::mul(r, V::set(0.2989f))));
  }
  static FASTCL_HD FASTCL_INLINE F clamp(F v, F bound) { return V::min(V::max(v, V::set(0.f)), bound); }

  // HSV without a division: with the chroma C = most - least, hue (in sixths of the circle) is carried times C. A
  // channel is least + C clamp(d - 1, 0, 1), d from 0 to 3 being how far the hue is from the channel's opposite. With
  // the channel itself at 0 and +-6, d = | |hue + offset| - 3 |; where hue + offset is below -6, d is too large, but
  // above 2 in any case.
  static FASTCL_HD FASTCL_INLINE void shift_hue(F& r, F& g, F& b, const F (&offset)[3]) {
    const F most = V::max(V::max(r, g), b), least = V::min(V::min(r, g), b), chroma = V::sub(most, least);
    F hue = V::fma(chroma, V::set(4.f), V::sub(r, g));
    hue = V::select_equal(most, g, V::fma(chroma, V::set(2.f), V::sub(b, r)), hue);
    hue = V::select_equal(most, r, V::sub(g, b), hue);  // in [-C, 5 C]
    const F half = V::mul(chroma, V::set(3.f)), lowest = V::sub(least, chroma);
    const auto channel = [&](F o) {
      const F d = V::abs(V::sub(V::abs(V::fma(chroma, o, hue)), half));
      return V::min(V::max(V::add(lowest, d), least), most);
    };
    r = channel(offset[0]);
    g = channel(offset[1]);
    b = channel(offset[2]);
  }

  // One op on vectors in registers. The branch is the same for every pixel of a run.
  template <int kChannels, int kCount>
  static FASTCL_HD FASTCL_INLINE void apply(int code, F (&v)[kChannels][kCount], const Factors& f) {
    if (code == kBrightness) {
      FASTCL_UNROLL for (int c = 0; c < kChannels; ++c) FASTCL_UNROLL for (int k = 0; k < kCount; ++k) v[c][k] =
          clamp(V::mul(v[c][k], f.brightness), f.bound);
    } else if (code == kContrast) {
      FASTCL_UNROLL for (int c = 0; c < kChannels; ++c) FASTCL_UNROLL for (int k = 0; k < kCount; ++k) v[c][k] =
          clamp(V::fma(v[c][k], f.contrast, f.contrast_add), f.bound);
    } else if constexpr (kChannels == 3) {
      if (code == kSaturation) {
        FASTCL_UNROLL for (int k = 0; k < kCount; ++k) {
          const F add = V::mul(gray(v[0][k], v[1][k], v[2][k]), f.saturation_rest);
          FASTCL_UNROLL for (int c = 0; c < 3; ++c) v[c][k] = clamp(V::fma(v[c][k], f.saturation, add), f.bound);
        }
      } else if (code == kHue) {
        FASTCL_UNROLL for (int k = 0; k < kCount; ++k) shift_hue(v[0][k], v[1][k], v[2][k], f.hue);
      }
    }
  }
};

}  // namespace fastcl

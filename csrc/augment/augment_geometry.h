// Where the pixels of the output come from: the taps of a resize, and the warp. Templates over the vectors of an
// instruction set (V); included inside a target region.
#pragma once

#include "augment/augment_rows.h"
#include "common/simd.h"

namespace fastcl {

template <class V>
struct AugmentGeometry {
  using F = typename V::F;
  using I = typename V::I;
  using D = typename V::D;
  static constexpr int kLanes = V::kLanes;

  // i, i + 1, ...
  static FASTCL_INLINE I count_from(int64_t i) {
    static constexpr int32_t kCount[16] = {0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15};
    return V::add_int(V::load_int(kCount), int32_t(i));
  }
  static FASTCL_INLINE D clamp(D v, D last) { return V::min(V::max(v, V::set_wide(0)), last); }

  // The same expressions as triangle() and cubic().
  static FASTCL_INLINE F triangle(F x) { return V::max(V::sub(V::set(1.f), V::abs(x)), V::set(0.f)); }
  static FASTCL_INLINE F cubic(F x_) {
    const F x = V::min(V::abs(x_), V::set(2.f)), one = V::set(1.f);
    const F near = V::add(V::mul(V::mul(V::sub(V::mul(V::set(1.5f), x), V::set(2.5f)), x), x), one);
    const F inner = V::sub(V::mul(V::add(V::mul(V::set(-0.5f), x), V::set(2.5f)), x), V::set(4.f));
    const F far = V::add(V::mul(inner, x), V::set(2.f));
    return V::select_equal(V::max(x, one), x, far, near);
  }

  static void resize_taps_of(int64_t in, bool flip, bool cubic_filter, ResizeTaps* taps) {
    const ResizeTaps t = *taps;
    const double scale = double(in) / double(t.n), stretch = scale > 1.0 ? scale : 1.0;
    const D support = V::set_wide(cubic_filter && t.taps > 1 ? 2 * stretch : stretch);
    const D half = V::set_wide(0.5), last_in = V::set_wide(double(in - t.taps)), last = V::set_wide(double(t.n - 1));
    const F inverse = V::set(float(1 / stretch));
    for (int64_t i = 0; i < t.stride; i += kLanes) {
      const D kept = V::min(V::widen(count_from(i)), last), at = flip ? V::sub(last, kept) : kept;
      const D center = V::mul(V::set_wide(scale), V::add(at, half));
      const D first = V::floor(clamp(V::add(V::sub(center, support), half), last_in));
      const F offset = V::narrow(V::sub(first, V::sub(center, half)));
      V::store_int(t.first + i, V::truncate(first));
      if (t.taps == 1) {
        V::store(t.weight + i, V::set(1.f));
        continue;
      }
      D sum = V::set_wide(0);
      for (int64_t k = 0; k < t.taps; ++k) {
        const F x = V::mul(V::add(offset, V::set(float(int32_t(k)))), inverse);
        const F weight = cubic_filter ? cubic(x) : triangle(x);
        V::store(t.weight + k * t.stride + i, weight);
        sum = V::add(sum, V::widen(weight));
      }
      const F share = V::div(V::set(1.f), V::narrow(sum));
      for (int64_t k = 0; k < t.taps; ++k) {
        float* weight = t.weight + k * t.stride + i;
        V::store(weight, V::mul(V::load(weight), share));
      }
    }
  }

  // All are counted from the images' centres. In double and in the order of the reference's operations, so that the
  // nearest pixel is the reference's.
  template <bool kNearest>
  static FASTCL_INLINE void warp_rows(const Warp& w, int64_t begin, int64_t end) {
    D m[9];
    for (int i = 0; i < 9; ++i) m[i] = V::set_wide(w.map[i]);
    const bool affine = w.map[6] == 0 && w.map[7] == 0 && w.map[8] == 1;  // a division by 1 changes no bit
    const double middle_x = double(w.width - 1) / 2, middle_y = double(w.height - 1) / 2;
    const D last_x = V::set_wide(double(w.width - 1)), last_y = V::set_wide(double(w.height - 1));
    const D width = V::set_wide(double(w.width)), one = V::set_wide(1);
    for (int64_t row = begin; row < end; ++row) {
      const D y = V::set_wide(double(row) - middle_y);
      for (int64_t i = 0; i < w.width; i += kLanes) {
        const D x = V::sub(V::widen(count_from(i)), V::set_wide(middle_x));
        D from_x = V::add(V::add(V::mul(m[0], x), V::mul(m[1], y)), m[2]);
        D from_y = V::add(V::add(V::mul(m[3], x), V::mul(m[4], y)), m[5]);
        if (!affine) {
          const D depth = V::add(V::add(V::mul(m[6], x), V::mul(m[7], y)), m[8]);
          from_x = V::div(from_x, depth);
          from_y = V::div(from_y, depth);
        }
        from_x = V::add(from_x, V::set_wide(middle_x));
        from_y = V::add(from_y, V::set_wide(middle_y));
        // The pixels around each position, or the nearest one: where they lie, and whether inside; NaN is outside.
        constexpr int kAround = kNearest ? 1 : 4;
        const D left = kNearest ? V::round(from_x) : V::floor(from_x);
        const D upper = kNearest ? V::round(from_y) : V::floor(from_y);
        I at[kAround];
        F weight[kAround];
        const F right = V::narrow(V::sub(from_x, left)), lower = V::narrow(V::sub(from_y, upper));
        uint32_t inside = 0;
        FASTCL_UNROLL for (int k = 0; k < kAround; ++k) {
          const D px = k % 2 ? V::add(left, one) : left, py = k / 2 ? V::add(upper, one) : upper;
          const D kept_x = clamp(px, last_x), kept_y = clamp(py, last_y);
          inside = V::equal(px, kept_x) & V::equal(py, kept_y);
          at[k] = V::truncate(V::add(V::mul(kept_y, width), kept_x));
          const F across = k % 2 ? right : V::sub(V::set(1.f), right);
          const F down = k / 2 ? lower : V::sub(V::set(1.f), lower);
          weight[k] = V::select(inside, V::mul(across, down), V::set(0.f));
        }
        for (int64_t c = 0; c < w.channels; ++c) {
          const float* in = w.in + c * w.plane;
          const F fill = V::set(w.fill ? w.fill[c] : 0.f);
          F value;
          if (kNearest) {
            value = V::select(inside, V::gather(in, at[0]), fill);
          } else {
            F mask = V::set(0.f);
            value = mask;
            FASTCL_UNROLL for (int k = 0; k < kAround; ++k) {
              value = V::add(value, V::mul(weight[k], V::gather(in, at[k])));
              mask = V::add(mask, weight[k]);
            }
            // With a fill, what a position's weights fall short of 1 is the fill's.
            if (w.fill) value = V::add(V::mul(V::sub(value, fill), mask), fill);
          }
          float* out = w.out + c * w.plane + row * w.width + i;
          w.width - i >= kLanes ? V::store(out, value) : V::store_first(out, value, w.width - i);
        }
      }
    }
  }

  static void warp(const Warp& warp, int64_t begin, int64_t end) {
    const Warp w = warp;  // a copy: the stores could change the argument
    w.nearest ? warp_rows<true>(w, begin, end) : warp_rows<false>(w, begin, end);
  }
};

}  // namespace fastcl

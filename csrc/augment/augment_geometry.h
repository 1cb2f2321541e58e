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

  // What all positions of a warp share.
  struct Mapping {
    explicit FASTCL_INLINE Mapping(const Warp& w)
        : middle_x(double(w.width - 1) / 2),
          middle_y(double(w.height - 1) / 2),
          last_x(V::set_wide(double(w.width - 1))),
          last_y(V::set_wide(double(w.height - 1))),
          width(V::set_wide(double(w.width))),
          affine(w.map[6] == 0 && w.map[7] == 0 && w.map[8] == 1) {
      for (int i = 0; i < 9; ++i) m[i] = V::set_wide(w.map[i]);
    }

    D m[9];
    double middle_x, middle_y;
    D last_x, last_y, width;
    bool affine;  // a division by 1 changes no bit
  };

  // Where a row's pixels from column i on come from. All are counted from the images' centres. In double and in the
  // order of the reference's operations, so that the nearest pixel is the reference's.
  struct Positions {
    D x, y;
  };
  static FASTCL_INLINE Positions positions(const Mapping& map, int64_t row, int64_t i) {
    const D(&m)[9] = map.m;
    const D y = V::set_wide(double(row) - map.middle_y);
    const D x = V::sub(V::widen(count_from(i)), V::set_wide(map.middle_x));
    D from_x = V::add(V::add(V::mul(m[0], x), V::mul(m[1], y)), m[2]);
    D from_y = V::add(V::add(V::mul(m[3], x), V::mul(m[4], y)), m[5]);
    if (!map.affine) {
      const D depth = V::add(V::add(V::mul(m[6], x), V::mul(m[7], y)), m[8]);
      from_x = V::div(from_x, depth);
      from_y = V::div(from_y, depth);
    }
    return {V::add(from_x, V::set_wide(map.middle_x)), V::add(from_y, V::set_wide(map.middle_y))};
  }

  // Which of the input's pixels lies there, and whether one does; NaN is outside.
  struct Found {
    I at;
    uint32_t inside;
  };
  static FASTCL_INLINE Found pixel_at(const Mapping& map, D x, D y) {
    const D kept_x = clamp(x, map.last_x), kept_y = clamp(y, map.last_y);
    return {V::truncate(V::add(V::mul(kept_y, map.width), kept_x)), V::equal(x, kept_x) & V::equal(y, kept_y)};
  }

  // The nearest pixels, -1 where there is none.
  static FASTCL_INLINE I nearest(const Mapping& map, int64_t row, int64_t i) {
    const Positions from = positions(map, row, i);
    const Found found = pixel_at(map, V::round(from.x), V::round(from.y));
    return V::select(found.inside, found.at, V::set_int(-1));
  }
  static FASTCL_NOINLINE void find_nearest(const Mapping& map, int64_t row, int64_t from, int64_t n, int32_t* at) {
    for (int64_t i = 0; i < n; i += kLanes) V::store_int(at + i, nearest(map, row, from + i));
  }

  static FASTCL_INLINE void warp_bilinear(const Warp& w, const Mapping& map, int64_t row, int64_t i) {
    const D one = V::set_wide(1);
    const Positions from = positions(map, row, i);
    const D left = V::floor(from.x), upper = V::floor(from.y);
    const F right = V::narrow(V::sub(from.x, left)), lower = V::narrow(V::sub(from.y, upper));
    I at[4];
    F weight[4];
    FASTCL_UNROLL for (int k = 0; k < 4; ++k) {
      const Found found = pixel_at(map, k % 2 ? V::add(left, one) : left, k / 2 ? V::add(upper, one) : upper);
      const F across = k % 2 ? right : V::sub(V::set(1.f), right);
      const F down = k / 2 ? lower : V::sub(V::set(1.f), lower);
      at[k] = found.at;
      weight[k] = V::select(found.inside, V::mul(across, down), V::set(0.f));
    }
    for (int64_t c = 0; c < w.channels; ++c) {
      const float* in = w.in + c * w.plane;
      F value = V::set(0.f), mask = value;
      FASTCL_UNROLL for (int k = 0; k < 4; ++k) {
        value = V::add(value, V::mul(weight[k], V::gather(in, at[k])));
        mask = V::add(mask, weight[k]);
      }
      // With a fill, what a position's weights fall short of 1 is the fill's.
      const F fill = V::set(w.fill ? w.fill[c] : 0.f);
      if (w.fill) value = V::add(V::mul(V::sub(value, fill), mask), fill);
      float* out = w.out + c * w.out_plane + row * w.width + i;
      value = V::fma(value, V::set(w.factor_of(c)), V::set(w.add_of(c)));
      w.width - i >= kLanes ? V::store(out, value) : V::store_first(out, value, w.width - i);
    }
  }

  // How far from 0 an affine map's positions lie at most, and one more.
  static FASTCL_INLINE double reach(const double* m, const Mapping& map, double middle) {
    const auto size = [](double v) { return v < 0 ? -v : v; };
    return size(m[0]) * map.middle_x + size(m[1]) * map.middle_y + size(m[2]) + middle + 1;
  }

  // The nearest pixels of an affine map whose positions are less than 2^14 pixels from 0. They are sums of a column's
  // share and a row's, each in units of 2^-16 pixels and off by one at most: within four units of a tie the exact
  // position decides.
  struct Shares {
    struct Axis {
      int32_t x[kWarpPixels], y[kWarpPixels];
    };
    Axis columns, rows;

    // Of n columns or rows from `from` on, counted from the middle: what each is times per, plus add, in pixels.
    static FASTCL_INLINE void prepare(int64_t from, int64_t n, double middle, double per_x, double per_y, double add_x,
                                      double add_y, Axis* axis) {
      constexpr double kUnits = 65536;
      const auto share = [&](D at, double per, double add, int32_t* out) {
        V::store_int(out, V::truncate(V::add(V::mul(at, V::set_wide(per * kUnits)), V::set_wide(add * kUnits))));
      };
      for (int64_t i = 0; i < n; i += kLanes) {
        const D at = V::sub(V::widen(count_from(from + i)), V::set_wide(middle));
        share(at, per_x, add_x, axis->x + i);
        share(at, per_y, add_y, axis->y + i);
      }
    }
    FASTCL_INLINE void of_columns(const Warp& w, const Mapping& map, int64_t from, int64_t n) {
      prepare(from, n, map.middle_x, w.map[0], w.map[3], 0, 0, &columns);
    }
    // Half a pixel on, what is cut off is the nearest; four units on, what lies within four of a tie is less than 8.
    FASTCL_INLINE void of_rows(const Warp& w, const Mapping& map, int64_t from, int64_t n) {
      constexpr double kOn = 0.5 + 4. / 65536;
      prepare(from, n, map.middle_y, w.map[1], w.map[4], w.map[2] + map.middle_x + kOn, w.map[5] + map.middle_y + kOn,
              &rows);
    }
    // Returns whether one is that near to a tie.
    FASTCL_INLINE bool find(int64_t r, int64_t n, int64_t width, int64_t height, int32_t* at) const {
      const I row_x = V::set_int(rows.x[r]), row_y = V::set_int(rows.y[r]);
      uint32_t near = 0;
      for (int64_t i = 0; i < n; i += kLanes) {
        const I x = V::add_int(V::load_int(columns.x + i), row_x), y = V::add_int(V::load_int(columns.y + i), row_y);
        const uint32_t inside = V::below(x, int32_t(width << 16)) & V::below(y, int32_t(height << 16));
        V::store_int(at + i, V::select(inside, V::dot_high(x, y, int32_t(width)), V::set_int(-1)));
        near |= V::zero_bits(x, 0xfff8) | V::zero_bits(y, 0xfff8);
      }
      return near != 0;
    }
  };

  // Of some rows, or of a part of one: where their pixels come from, then the pixels.
  static FASTCL_INLINE void warp_nearest(const Warp& w, const Mapping& map, int64_t begin, int64_t end) {
    const bool shares =
        map.affine && reach(w.map, map, map.middle_x) < 0x1p14 && reach(w.map + 3, map, map.middle_y) < 0x1p14;
    Shares share;
    int32_t at[kWarpPixels + kRowStep];
    const int64_t some = w.width < kWarpPixels ? w.width : kWarpPixels;
    for (int64_t from = 0; from < w.width; from += some) {
      const int64_t columns = w.width - from < some ? w.width - from : some;
      const int64_t rows = columns == w.width ? kWarpPixels / columns : 1;
      if (shares) share.of_columns(w, map, from, columns);
      for (int64_t row = begin, next; row < end; row = next) {
        next = row + rows < end ? row + rows : end;
        if (shares) share.of_rows(w, map, row, next - row);
        for (int64_t r = 0; r < next - row; ++r) {  // what a row writes too much, the next overwrites
          int32_t* to = at + r * columns;
          if (!shares || share.find(r, columns, w.width, w.height, to)) find_nearest(map, row + r, from, columns, to);
        }
        const int64_t n = (next - row) * columns;
        V::store_int(at + n, V::set_int(-1));  // nothing is read for what the last vector has too much
        for (int64_t c = 0; c < w.channels; ++c) {
          const float* in = w.in + c * w.plane;
          float* out = w.out + c * w.out_plane + row * w.width + from;
          const F fill = V::set(w.fill ? w.fill[c] : 0.f), factor = V::set(w.factor_of(c)), add = V::set(w.add_of(c));
          const auto pixels = [&](int64_t i) {
            return V::fma(V::gather_inside(in, V::load_int(at + i), fill), factor, add);
          };
          int64_t i = 0;
          for (; i + kLanes <= n; i += kLanes) V::store(out + i, pixels(i));
          if (i < n) V::store_first(out + i, pixels(i), n - i);
        }
      }
    }
  }

  static void warp(const Warp& warp, int64_t begin, int64_t end) {
    const Warp w = warp;  // a copy: the stores could change the argument
    const Mapping map(w);
    if (w.nearest) return warp_nearest(w, map, begin, end);
    for (int64_t row = begin; row < end; ++row)
      for (int64_t i = 0; i < w.width; i += kLanes) warp_bilinear(w, map, row, i);
  }
};

}  // namespace fastcl

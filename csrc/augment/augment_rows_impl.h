// The templates behind AugmentRows; see augment_rows.h. Included inside a target region.
#pragma once

#include "augment/augment_color.h"
#include "augment/augment_draws_wide.h"
#include "augment/augment_geometry.h"
#include "augment/augment_rows.h"
#include "augment/augment_sources.h"

namespace fastcl {

template <class V>
struct AugmentLoops {
  using F = typename V::F;
  using I = typename V::I;
  static constexpr int kLanes = V::kLanes;
  static_assert(kRowStep % kLanes == 0);

  using Color = AugmentColor<V>;

  static constexpr int kSide = kSideBySide<V>;

  static FASTCL_INLINE void put(bool stream, float* p, F v) { stream ? V::stream(p, v) : V::store(p, v); }

  static void place(ResizeTaps* taps) {
    const ResizeTaps t = *taps;
    int64_t reach = 0;
    bool near = true;
    // The vectors that are made side by side share what they look up, if that is enough for all.
    for (int64_t i = 0, next; i < t.stride; i = next) {
      const auto from = [&](int64_t end) { return t.first[i] < t.first[end - 1] ? t.first[i] : t.first[end - 1]; };
      const auto span = [&](int64_t end) {
        return (t.first[i] < t.first[end - 1] ? t.first[end - 1] : t.first[i]) + t.taps - from(end);
      };
      next = i + kSide * kLanes;
      if (next > t.stride || span(next) > 2 * kLanes) next = i + kLanes;
      near = near && span(next) <= 2 * kLanes;
      const int32_t base = from(next);
      reach = base + 2 * kLanes > reach ? base + 2 * kLanes : reach;
      for (int64_t j = i; j < next; j += kLanes) t.base[j / kLanes] = base;
      for (int64_t j = i; j < next; ++j) t.first[j] -= base;
    }
    taps->near = near;
    taps->reach = reach;
  }

  template <int kValue>
  struct Count {
    static constexpr int value = kValue;
  };

  // Pixels are loaded once, taken through all ops in registers and stored once.
  template <int kChannels, class Source>
  static double color_of(const ColorRun& run_, Source source) {
    const ColorRun run = run_;  // a copy: the stores could change the argument
    const typename Color::Factors factors =
        Color::factors(run.brightness, run.contrast, run.contrast_add, run.saturation, run.hue, run.bound);
    F sum = V::set(0.f);
    const auto pixels = [&](auto number, int64_t x, int64_t at, int64_t left) FASTCL_INLINE_LAMBDA {
      constexpr int kCount = decltype(number)::value;
      F v[kChannels][kCount];
      source.load(x, v);
      for (int o = 0; o < run.ops; ++o) Color::template apply<kChannels, kCount>(run.op[o], v, factors);
      if (run.sum) {
        FASTCL_UNROLL for (int k = 0; k < kCount; ++k) {
          const F luma = kChannels == 3 ? Color::gray(v[0][k], v[kChannels / 2][k], v[kChannels - 1][k]) : v[0][k];
          const bool whole = left >= (k + 1) * kLanes;
          sum = V::add(sum, whole ? luma : V::keep_first(luma, left - k * kLanes));
        }
      }
      if constexpr (kChannels == 3) {
        if (run.gray)
          FASTCL_UNROLL for (int k = 0; k < kCount; ++k) v[0][k] = v[1][k] = v[2][k] =
              Color::gray(v[0][k], v[1][k], v[2][k]);
      }
      FASTCL_UNROLL for (int c = 0; c < kChannels; ++c) FASTCL_UNROLL for (int k = 0; k < kCount; ++k) {
        float* out = run.out[c] + at + k * kLanes;
        const F value = V::fma(v[c][k], V::set(run.factor[c]), V::set(run.add[c]));
        left >= (k + 1) * kLanes ? put(run.stream, out, value) : V::store_first(out, value, left - k * kLanes);
      }
    };
    int64_t at = 0;
    for (int64_t y = run.begin; y < run.end; ++y, at += run.n) {
      source.begin(y);
      int64_t x = 0;
      for (; x + (kSide - 1) * kLanes < run.n; x += kSide * kLanes) pixels(Count<kSide>(), x, at + x, run.n - x);
      for (; x < run.n; x += kLanes) pixels(Count<1>(), x, at + x, run.n - x);
    }
    return double(V::sum(sum));
  }

  template <int kChannels, class Pixel>
  static double color_crop(const ColorRun& run, const Resample<Pixel>& crop) {
    const Resample<Pixel> r = crop;  // a copy: the stores could change the argument
    if (!r.across.near || r.down.taps > kFewTaps) return color_of<kChannels>(run, ManyTaps<V, Pixel, kChannels>(r));
    AcrossTaps<V, Pixel, kChannels>::prepare(r, run.begin, run.end);
    // Enlarging takes two taps, making a little smaller three.
    if (r.down.taps == 2 && !r.clamps) return color_of<kChannels>(run, BlendedRows<V, kChannels, 2>(r));
    if (r.down.taps == 3 && !r.clamps) return color_of<kChannels>(run, BlendedRows<V, kChannels, 3>(r));
    return color_of<kChannels>(run, BlendedRows<V, kChannels, 0>(r));
  }

  template <int kChannels>
  static double color_from(const ColorRun& run) {
    if (run.bytes) return color_crop<kChannels>(run, *run.bytes);
    if (run.floats) return color_crop<kChannels>(run, *run.floats);
    return color_of<kChannels>(run, PlaneSource<V, kChannels>(run.plane));
  }

  static double color(const ColorRun& run) { return run.channels == 3 ? color_from<3>(run) : color_from<1>(run); }

  static void solarize(float* v, int64_t n, float threshold_, float bound_) {
    const F threshold = V::set(threshold_), bound = V::set(bound_);
    for (int64_t i = 0; i < n; i += kLanes) {
      const F value = V::load(v + i);
      // Not below the threshold: it is the larger of the two that is the value.
      V::store(v + i, V::select_equal(V::max(value, threshold), value, V::sub(bound, value), value));
    }
  }

  // Sums of kCount vectors of each of kBlurRows rows: so many, each with sums of its own, hide the latency of the
  // multiply-add.
  template <int kCount>
  static FASTCL_INLINE void blur_y_vectors(const Blur& b, int64_t row, int64_t rows, int64_t x) {
    const float* const* in = b.rows + row;
    const int64_t count = 2 * b.reach_y + rows;
    F sum[kBlurRows][kCount];
    FASTCL_UNROLL for (int o = 0; o < kBlurRows; ++o) FASTCL_UNROLL for (int k = 0; k < kCount; ++k) sum[o][k] =
        V::set(0.f);
    // Row j of those that are read, into the sums from `from` to `to`.
    const auto add = [&](int64_t j, int from, int to) {
      F v[kCount];
      FASTCL_UNROLL for (int k = 0; k < kCount; ++k) v[k] = V::load(in[j] + x + k * kLanes);
      FASTCL_UNROLL for (int o = 0; o < kBlurRows; ++o) {
        if (o < from || o >= to) continue;
        const F w = V::set(b.weight_y[j - o]);
        FASTCL_UNROLL for (int k = 0; k < kCount; ++k) sum[o][k] = V::fma(v[k], w, sum[o][k]);
      }
    };
    constexpr int kEnds = kBlurRows - 1;  // the first and the last rows go into some of the sums only
    if (rows == kBlurRows && count > 2 * kEnds) {
      FASTCL_UNROLL for (int j = 0; j < kEnds; ++j) add(j, 0, j + 1);
      for (int64_t j = kEnds; j < count - kEnds; ++j) add(j, 0, kBlurRows);
      FASTCL_UNROLL for (int j = 0; j < kEnds; ++j) add(count - kEnds + j, j + 1, kBlurRows);
    } else {
      for (int64_t j = 0; j < count; ++j) add(j, 0, kBlurRows);
    }
    FASTCL_UNROLL for (int o = 0; o < kBlurRows; ++o) FASTCL_UNROLL for (int k = 0; k < kCount; ++k)
        V::store(b.padded + (row + o) * b.padded_pitch + x + k * kLanes, sum[o][k]);
  }

  static FASTCL_INLINE void blur_y(const Blur& b, int64_t row, int64_t rows) {
    int64_t x = 0;
    for (; x + 2 * kLanes <= b.width; x += 2 * kLanes) blur_y_vectors<2>(b, row, rows, x);
    for (; x < b.width; x += kLanes) blur_y_vectors<1>(b, row, rows, x);
  }

  // Loads of shifted rows cross lines of the first-level cache, where most vectors are as long as a line: so many of
  // the nearest taps on either side come from registers instead, as many as keeps loads and arithmetic equally busy.
  static FASTCL_INLINE int64_t shifted_taps(int64_t reach) {
    return kLanes < 16 ? 0 : reach < 3 * kLanes ? (2 * reach + 3) / 6 : kLanes - 1;
  }

  // So many rows and vectors side by side hide the latency of the multiply-add.
  template <int kRows, int kCount>
  static FASTCL_INLINE void blur_x_vectors(const Blur& b, int64_t row, int64_t x, bool stream, int64_t left) {
    const F factor = V::set(b.factor), add = V::set(b.add);
    const float* in = b.padded + row * b.padded_pitch + x;
    float* out = b.out + row * b.width + x;
    const float* weight = b.weight_x + b.reach_x;  // symmetric
    const int64_t shifted = shifted_taps(b.reach_x);
    F sum[kRows][kCount];
    if (shifted > 0) {
      F v[kRows][kCount + 2];
      FASTCL_UNROLL for (int r = 0; r < kRows; ++r) FASTCL_UNROLL for (int k = 0; k < kCount + 2; ++k) v[r][k] =
          V::load(in + r * b.padded_pitch + (k - 1) * kLanes);
      FASTCL_UNROLL for (int r = 0; r < kRows; ++r) FASTCL_UNROLL for (int k = 0; k < kCount; ++k) sum[r][k] =
          V::mul(v[r][k + 1], V::set(weight[0]));
      const I lanes = AugmentGeometry<V>::count_from(0);
      for (int32_t d = 1; d <= shifted; ++d) {
        const F w = V::set(weight[d]);
        const I before = V::add_int(lanes, kLanes - d), behind = V::add_int(lanes, d);
        FASTCL_UNROLL for (int r = 0; r < kRows; ++r) FASTCL_UNROLL for (int k = 0; k < kCount; ++k) {
          sum[r][k] = V::fma(V::lookup(v[r][k], v[r][k + 1], before), w, sum[r][k]);
          sum[r][k] = V::fma(V::lookup(v[r][k + 1], v[r][k + 2], behind), w, sum[r][k]);
        }
      }
    } else {
      FASTCL_UNROLL for (int r = 0; r < kRows; ++r) FASTCL_UNROLL for (int k = 0; k < kCount; ++k) sum[r][k] =
          V::mul(V::load(in + r * b.padded_pitch + k * kLanes), V::set(weight[0]));
    }
    for (int64_t d = shifted + 1; d <= b.reach_x; ++d) {
      const F w = V::set(weight[d]);
      FASTCL_UNROLL for (int r = 0; r < kRows; ++r) FASTCL_UNROLL for (int k = 0; k < kCount; ++k) {
        const float* at = in + r * b.padded_pitch + k * kLanes;
        sum[r][k] = V::fma(V::load(at - d), w, sum[r][k]);
        sum[r][k] = V::fma(V::load(at + d), w, sum[r][k]);
      }
    }
    FASTCL_UNROLL for (int r = 0; r < kRows; ++r) FASTCL_UNROLL for (int k = 0; k < kCount; ++k) {
      float* to = out + r * b.width + k * kLanes;
      const F value = V::fma(sum[r][k], factor, add);
      left >= kLanes ? put(stream, to, value) : V::store_first(to, value, left);
    }
  }

  template <int kRows>
  static FASTCL_INLINE void blur_x(const Blur& b, int64_t row) {
    int64_t x = 0;
    for (; x + 2 * kLanes <= b.width; x += 2 * kLanes) blur_x_vectors<kRows, 2>(b, row, x, b.stream, kLanes);
    for (; x + kLanes <= b.width; x += kLanes) blur_x_vectors<kRows, 1>(b, row, x, b.stream, kLanes);
    if (x < b.width) blur_x_vectors<kRows, 1>(b, row, x, false, b.width - x);
  }

  // The row's reflection into `reach` values beyond each of its ends, and whatever into the rest of a vector.
  static FASTCL_INLINE void reflect(float* row, int64_t n, int64_t reach) {
    static constexpr int32_t kDescending[16] = {15, 14, 13, 12, 11, 10, 9, 8, 7, 6, 5, 4, 3, 2, 1, 0};
    const I descending = V::load_int(kDescending + 16 - kLanes);
    const auto reversed = [&](const float* p) {
      const F v = V::load(p);
      return V::lookup(v, v, descending);
    };
    for (int64_t d = 0; d < reach; d += kLanes) V::store(row - d - kLanes, reversed(row + 1 + d));
    for (int64_t d = 0; d < reach; d += kLanes) V::store(row + n + d, reversed(row + n - 1 - d - kLanes));
  }

  static void blur(const Blur& run, int64_t y, int64_t rows) {
    const Blur b = run;  // a copy: the stores could change the argument
    const int64_t count = 2 * b.reach_y + rows;
    for (int64_t j = 0; j < count; ++j) {
      const int64_t at = y + j - b.reach_y;
      b.rows[j] = b.in + (at < 0 ? -at : at >= b.height ? 2 * (b.height - 1) - at : at) * b.width;
    }
    for (int64_t r = 0; r < rows; r += kBlurRows) blur_y(b, r, rows - r < kBlurRows ? rows - r : kBlurRows);
    for (int64_t r = 0; r < rows; ++r) reflect(b.padded + r * b.padded_pitch, b.width, b.reach_x);
    int64_t r = 0;
    for (; r + kBlurRows <= rows; r += kBlurRows) blur_x<kBlurRows>(b, r);
    for (; r < rows; ++r) blur_x<1>(b, r);
  }

  static void normalize(const float* in, int64_t n, float factor_, float add_, bool stream, float* out) {
    const F factor = V::set(factor_), add = V::set(add_);
    int64_t i = 0;
    for (; i + kLanes <= n; i += kLanes) put(stream, out + i, V::fma(V::load(in + i), factor, add));
    for (; i < n; ++i) out[i] = V::fma(in[i], factor_, add_);
  }

  static void to_bfloat16(const float* in, int64_t n, uint16_t* out) {
    int64_t i = 0;
    for (; i + kLanes <= n; i += kLanes) V::store_bfloat16(out + i, V::load(in + i));
    for (; i < n; ++i) out[i] = float_to_bfloat16(in[i]);
  }

  static void to_float16(const float* in, int64_t n, uint16_t* out) {
    int64_t i = 0;
    for (; i + kLanes <= n; i += kLanes) V::store_float16(out + i, V::load(in + i));
    for (; i < n; ++i) out[i] = float_to_float16(in[i]);
  }

  static constexpr auto draw_of() -> decltype(AugmentRows::draw) {
    if constexpr (kLanes >= 8) return draw_rows<V>;
    return nullptr;
  }

  using Geometry = AugmentGeometry<V>;
  static constexpr AugmentRows kTable = {draw_of(),      Geometry::resize_taps_of,
                                         place,          color,
                                         Geometry::warp, solarize,
                                         blur,           normalize,
                                         to_bfloat16,    to_float16,
                                         V::stream_end};
};

}  // namespace fastcl

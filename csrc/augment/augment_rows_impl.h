// The templates behind AugmentRows; see augment_rows.h. Included inside a target region.
#pragma once

#include "augment/augment_color.h"
#include "augment/augment_rows.h"

namespace fastcl {

template <class V>
struct AugmentLoops {
  using F = typename V::F;
  using I = typename V::I;
  static constexpr int kLanes = V::kLanes;
  static_assert(kRowStep % kLanes == 0);

  using Color = AugmentColor<V>;

  static FASTCL_INLINE F load(const uint8_t* p) { return V::load_bytes(p); }
  static FASTCL_INLINE F load(const float* p) { return V::load(p); }

  // kTaps: taps, 0: any number. The last vector may overlap the one before it: nothing beyond the pixels is read.
  template <int kTaps, class Pixel>
  static FASTCL_INLINE void blend_taps(const BlendRows<Pixel>& rows) {
    const BlendRows<Pixel> b = rows;  // a copy: the stores could change the argument
    const int64_t taps = kTaps ? kTaps : b.taps;
    F first[kTaps ? kTaps : 1];
    FASTCL_UNROLL for (int t = 0; t < kTaps; ++t) first[t] = V::set(b.weight[t * b.weight_stride]);
    const auto weight = [&](int64_t t) { return kTaps ? first[t] : V::set(b.weight[t * b.weight_stride]); };
    for (int64_t r = 0; r < b.runs; ++r) {
      const Pixel* in = b.in + r * b.run_pitch;
      float* out = b.out + r * b.out_pitch;
      for (int64_t i = 0; i < b.n; i += kLanes) {
        const int64_t at = i + kLanes <= b.n ? i : b.n - kLanes;
        F sum = V::mul(load(in + at), weight(0));
        for (int64_t t = 1; t < taps; ++t) sum = V::fma(load(in + t * b.pitch + at), weight(t), sum);
        V::store(out + at, sum);
      }
    }
  }

  template <class Pixel>
  static void blend(const BlendRows<Pixel>& rows) {
    rows.taps == 2 ? blend_taps<2>(rows) : blend_taps<0>(rows);  // 2: enlarging
  }

  static void resize(const ResizeTaps& table, const float* in, int64_t in_pitch, int64_t channels, float* out,
                     int64_t out_pitch) {
    const ResizeTaps t = table;
    for (int64_t i = 0; i < t.stride; i += kLanes) {
      // The first taps ascend, or descend for a mirrored row.
      const int32_t left = t.first[i], right = t.first[i + kLanes - 1];
      const int32_t base = left < right ? left : right, span = (left < right ? right : left) - base + int32_t(t.taps);
      const float *from = in + base, *weight = t.weight + i;
      const I at = V::add_int(V::load_int(t.first + i), -base);
      if (t.taps == 2 && span <= 2 * kLanes) {
        const I next = V::add_int(at, 1);
        const F weight0 = V::load(weight), weight1 = V::load(weight + t.stride);
        for (int64_t c = 0; c < channels; ++c) {
          const F low = V::load(from + c * in_pitch), high = V::load(from + c * in_pitch + kLanes);
          const F product = V::mul(V::lookup(low, high, at), weight0);
          V::store(out + c * out_pitch + i, V::fma(V::lookup(low, high, next), weight1, product));
        }
        continue;
      }
      for (int64_t c = 0; c < channels; ++c, from += in_pitch) {
        F sum;
        if (span <= 2 * kLanes) {
          const F low = V::load(from), high = V::load(from + kLanes);
          sum = V::mul(V::lookup(low, high, at), V::load(weight));
          for (int32_t k = 1; k < t.taps; ++k)
            sum = V::fma(V::lookup(low, high, V::add_int(at, k)), V::load(weight + k * t.stride), sum);
        } else {
          sum = V::mul(V::gather(from, at), V::load(weight));
          for (int64_t k = 1; k < t.taps; ++k)
            sum = V::fma(V::gather(from + k, at), V::load(weight + k * t.stride), sum);
        }
        V::store(out + c * out_pitch + i, sum);
      }
    }
  }

  template <int kValue>
  struct Count {
    static constexpr int value = kValue;
  };

  static FASTCL_INLINE void put(bool stream, float* p, F v) { stream ? V::stream(p, v) : V::store(p, v); }
  static FASTCL_INLINE void put_some(float* p, F v, int64_t n) {
    float lanes[kLanes];
    V::store(lanes, v);
    for (int64_t i = 0; i < n; ++i) p[i] = lanes[i];
  }

  // Pixels are loaded once, taken through all ops in registers and stored once.
  template <int kChannels>
  static FASTCL_INLINE double color_of(const ColorRun& run_) {
    const ColorRun run = run_;  // a copy: the stores could change the argument
    const typename Color::Factors factors =
        Color::factors(run.brightness, run.contrast, run.contrast_add, run.saturation, run.hue, run.bound);
    F sum = V::set(0.f);
    double rest = 0;
    const auto pixels = [&](auto number, int64_t i, int64_t left) {
      constexpr int kCount = decltype(number)::value;
      F v[kChannels][kCount];
      FASTCL_UNROLL for (int c = 0; c < kChannels; ++c) FASTCL_UNROLL for (int k = 0; k < kCount; ++k) v[c][k] =
          V::load(run.channel[c] + i + k * kLanes);
      for (int o = 0; o < run.ops; ++o) Color::template apply<kChannels, kCount>(run.op[o], v, factors);
      if (run.sum) {
        FASTCL_UNROLL for (int k = 0; k < kCount; ++k) {
          const F luma = kChannels == 3 ? Color::gray(v[0][k], v[kChannels / 2][k], v[kChannels - 1][k]) : v[0][k];
          if (left >= kLanes) {
            sum = V::add(sum, luma);
          } else {
            float lanes[kLanes];
            V::store(lanes, luma);
            for (int64_t x = 0; x < left; ++x) rest += double(lanes[x]);
          }
        }
      }
      if constexpr (kChannels == 3) {
        if (run.gray)
          FASTCL_UNROLL for (int k = 0; k < kCount; ++k) v[0][k] = v[1][k] = v[2][k] =
              Color::gray(v[0][k], v[1][k], v[2][k]);
      }
      FASTCL_UNROLL for (int c = 0; c < kChannels; ++c) FASTCL_UNROLL for (int k = 0; k < kCount; ++k) {
        if (!run.out[0]) {
          V::store(run.channel[c] + i + k * kLanes, v[c][k]);
          continue;
        }
        float* out = run.out[c] + i + k * kLanes;
        const F value = V::fma(v[c][k], V::set(run.factor[c]), V::set(run.add[c]));
        left >= kLanes ? put(run.stream, out, value) : put_some(out, value, left);
      }
    };
    constexpr int kSide = kLanes == 16 ? 2 : 1;  // as many as there are registers for
    int64_t i = 0;
    for (; i + kSide * kLanes <= run.n; i += kSide * kLanes) pixels(Count<kSide>(), i, kLanes);
    for (; i < run.n; i += kLanes) pixels(Count<1>(), i, run.n - i);
    return double(V::sum(sum)) + rest;
  }

  static double color(const ColorRun& run) { return run.channels == 3 ? color_of<3>(run) : color_of<1>(run); }

  static void solarize(float* v, int64_t n, float threshold_, float bound_) {
    const F threshold = V::set(threshold_), bound = V::set(bound_);
    for (int64_t i = 0; i < n; i += kLanes) {
      const F value = V::load(v + i);
      // Not below the threshold: it is the larger of the two that is the value.
      V::store(v + i, V::select_equal(V::max(value, threshold), value, V::sub(bound, value), value));
    }
  }

  // So many vectors side by side, each with sums of its own, hide the latency of the multiply-add.
  static void blur_y(const float* const* rows, int64_t count, const float* weight, int64_t n, float* const* out) {
    const auto vectors = [&](auto number, int64_t x) {
      constexpr int kCount = decltype(number)::value;
      F sum[kBlurRows][kCount];
      FASTCL_UNROLL for (int o = 0; o < kBlurRows; ++o) FASTCL_UNROLL for (int k = 0; k < kCount; ++k) sum[o][k] =
          V::set(0.f);
      for (int64_t j = 0; j < count; ++j) {
        F v[kCount];
        FASTCL_UNROLL for (int k = 0; k < kCount; ++k) v[k] = V::load(rows[j] + x + k * kLanes);
        FASTCL_UNROLL for (int o = 0; o < kBlurRows; ++o) {
          const F w = V::set(weight[j - o]);
          FASTCL_UNROLL for (int k = 0; k < kCount; ++k) sum[o][k] = V::fma(v[k], w, sum[o][k]);
        }
      }
      FASTCL_UNROLL for (int o = 0; o < kBlurRows; ++o) FASTCL_UNROLL for (int k = 0; k < kCount; ++k)
          V::store(out[o] + x + k * kLanes, sum[o][k]);
    };
    int64_t x = 0;
    for (; x + 2 * kLanes <= n; x += 2 * kLanes) vectors(Count<2>(), x);
    for (; x < n; x += kLanes) vectors(Count<1>(), x);
  }

  // So many rows and vectors side by side hide the latency of the multiply-add.
  template <int kRows>
  static FASTCL_INLINE void blur_rows(const BlurRows& b, int64_t row) {
    const F factor = V::set(b.factor), add = V::set(b.add);
    const float* in = b.in + row * b.in_pitch;
    float* out = b.out + row * b.out_pitch;
    const auto vectors = [&](auto number, int64_t x, bool stream, int64_t left) {
      constexpr int kCount = decltype(number)::value;
      F sum[kRows][kCount];
      FASTCL_UNROLL for (int r = 0; r < kRows; ++r) FASTCL_UNROLL for (int k = 0; k < kCount; ++k) sum[r][k] =
          V::set(0.f);
      for (int64_t t = 0; t < b.taps; ++t) {
        const F w = V::set(b.weight[t]);
        const float* from = in + x + t;
        FASTCL_UNROLL for (int r = 0; r < kRows; ++r) FASTCL_UNROLL for (int k = 0; k < kCount; ++k) sum[r][k] =
            V::fma(V::load(from + r * b.in_pitch + k * kLanes), w, sum[r][k]);
      }
      FASTCL_UNROLL for (int r = 0; r < kRows; ++r) FASTCL_UNROLL for (int k = 0; k < kCount; ++k) {
        float* to = out + r * b.out_pitch + x + k * kLanes;
        const F value = V::fma(sum[r][k], factor, add);
        left >= kLanes ? put(stream, to, value) : put_some(to, value, left);
      }
    };
    int64_t x = 0;
    for (; x + 2 * kLanes <= b.n; x += 2 * kLanes) vectors(Count<2>(), x, b.stream, kLanes);
    for (; x + kLanes <= b.n; x += kLanes) vectors(Count<1>(), x, b.stream, kLanes);
    if (x < b.n) vectors(Count<1>(), x, false, b.n - x);
  }

  static void blur_x(const BlurRows& run) {
    const BlurRows b = run;  // a copy: the stores could change the argument
    int64_t row = 0;
    for (; row + kBlurRows <= b.rows; row += kBlurRows) blur_rows<kBlurRows>(b, row);
    for (; row < b.rows; ++row) blur_rows<1>(b, row);
  }

  static void reflect(float* row, int64_t n, int64_t reach) {
    static constexpr int32_t kDescending[16] = {15, 14, 13, 12, 11, 10, 9, 8, 7, 6, 5, 4, 3, 2, 1, 0};
    const I descending = V::load_int(kDescending + 16 - kLanes);
    const auto reversed = [&](const float* p) {
      const F v = V::load(p);
      return V::lookup(v, v, descending);
    };
    for (int64_t d = 0; d < reach; d += kLanes) V::store(row - d - kLanes, reversed(row + 1 + d));
    for (int64_t d = 0; d < reach; d += kLanes) V::store(row + n + d, reversed(row + n - 1 - d - kLanes));
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

  static constexpr AugmentRows kTable = {blend<uint8_t>, blend<float>, resize,     color,
                                         solarize,       blur_y,       blur_x,     reflect,
                                         normalize,      to_bfloat16,  to_float16, V::stream_end};
};

}  // namespace fastcl

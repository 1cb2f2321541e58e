// The templates behind AugmentRows; see augment_rows.h. Included inside a target region.
#pragma once

#include "augment/augment_rows.h"

namespace fastcl {

template <class V>
struct AugmentLoops {
  using F = typename V::F;
  using I = typename V::I;
  static constexpr int kLanes = V::kLanes;
  static_assert(kRowStep % kLanes == 0);

  static FASTCL_INLINE F gray(F r, F g, F b) {
    return V::fma(b, V::set(0.114f), V::fma(g, V::set(0.587f), V::mul(r, V::set(0.2989f))));
  }
  static FASTCL_INLINE F clamp(F v, F bound) { return V::min(V::max(v, V::set(0.f)), bound); }

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

  static void scale(const Planes& p, float factor_, float add_, float bound_) {
    const F factor = V::set(factor_), add = V::set(add_), bound = V::set(bound_);
    for (int64_t c = 0; c < p.channels; ++c) {
      float* v = p.channel[c];
      const int64_t n = p.n;
      for (int64_t i = 0; i < n; i += kLanes) V::store(v + i, clamp(V::fma(V::load(v + i), factor, add), bound));
    }
  }

  // Calls pixel(r, g, b), which changes them, over three planes.
  template <class Pixel>
  static FASTCL_INLINE void each_pixel(const Planes& p, Pixel pixel) {
    float *red = p.channel[0], *green = p.channel[1], *blue = p.channel[2];
    const int64_t n = p.n;
    for (int64_t i = 0; i < n; i += kLanes) {
      F r = V::load(red + i), g = V::load(green + i), b = V::load(blue + i);
      pixel(r, g, b);
      V::store(red + i, r);
      V::store(green + i, g);
      V::store(blue + i, b);
    }
  }

  static void saturate(const Planes& p, float factor_, float bound_) {
    const F factor = V::set(factor_), rest = V::set(1 - factor_), bound = V::set(bound_);
    each_pixel(p, [&](F& r, F& g, F& b) {
      const F add = V::mul(gray(r, g, b), rest);
      r = clamp(V::fma(r, factor, add), bound);
      g = clamp(V::fma(g, factor, add), bound);
      b = clamp(V::fma(b, factor, add), bound);
    });
  }

  // HSV without a division: with the chroma C = most - least, hue (in sixths of the circle) is carried times C. A
  // channel is least + C clamp(d - 1, 0, 1), d from 0 to 3 being how far the hue is from the channel's opposite. With
  // the channel itself at 0 and +-6, d = | |hue + offset| - 3 |; where hue + offset is below -6, d is too large, but
  // above 2 in any case.
  static void shift_hue(const Planes& p, float turns) {
    F offset[3];
    for (int c = 0; c < 3; ++c) {
      const double o = 6.0 * double(turns) - 2 * c;  // in [-7, 3]
      offset[c] = V::set(float(o < -6 ? o + 6 : o >= 0 ? o - 6 : o));
    }
    each_pixel(p, [&](F& r, F& g, F& b) {
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
    });
  }

  static void to_gray(const Planes& p) {
    each_pixel(p, [](F& r, F& g, F& b) { r = g = b = gray(r, g, b); });
  }

  static void solarize(float* v, int64_t n, float threshold_, float bound_) {
    const F threshold = V::set(threshold_), bound = V::set(bound_);
    for (int64_t i = 0; i < n; i += kLanes) {
      const F value = V::load(v + i);
      // Not below the threshold: it is the larger of the two that is the value.
      V::store(v + i, V::select_equal(V::max(value, threshold), value, V::sub(bound, value), value));
    }
  }

  static double gray_sum(const Planes& p) {
    const float* red = p.channel[0];
    const float* green = p.channels == 3 ? p.channel[1] : red;
    const float* blue = p.channels == 3 ? p.channel[2] : red;
    F sum = V::set(0.f);
    int64_t i = 0;
    for (; i + kLanes <= p.n; i += kLanes)
      sum = V::add(sum,
                   p.channels == 3 ? gray(V::load(red + i), V::load(green + i), V::load(blue + i)) : V::load(red + i));
    double total = double(V::sum(sum));
    for (; i < p.n; ++i)
      total += double(p.channels == 3 ? 0.2989f * red[i] + 0.587f * green[i] + 0.114f * blue[i] : red[i]);
    return total;
  }

  template <int kValue>
  struct Count {
    static constexpr int value = kValue;
  };

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

  static FASTCL_INLINE void put(bool stream, float* p, F v) { stream ? V::stream(p, v) : V::store(p, v); }

  static void blur_x(const float* in, const float* weight, int64_t taps, int64_t n, float factor_, float add_,
                     bool stream, float* out) {
    const F factor = V::set(factor_), add = V::set(add_);
    const auto vectors = [&](auto number, int64_t x) {
      constexpr int kCount = decltype(number)::value;
      F sum[kCount];
      FASTCL_UNROLL for (int k = 0; k < kCount; ++k) sum[k] = V::set(0.f);
      for (int64_t t = 0; t < taps; ++t) {
        const F w = V::set(weight[t]);
        FASTCL_UNROLL for (int k = 0; k < kCount; ++k) sum[k] = V::fma(V::load(in + x + t + k * kLanes), w, sum[k]);
      }
      FASTCL_UNROLL for (int k = 0; k < kCount; ++k) put(stream, out + x + k * kLanes, V::fma(sum[k], factor, add));
    };
    int64_t x = 0;
    for (; x + 8 * kLanes <= n; x += 8 * kLanes) vectors(Count<8>(), x);
    for (; x + 2 * kLanes <= n; x += 2 * kLanes) vectors(Count<2>(), x);
    for (; x + kLanes <= n; x += kLanes) vectors(Count<1>(), x);
    for (; x < n; ++x) {
      float sum = 0;
      for (int64_t t = 0; t < taps; ++t) sum = V::fma(in[x + t], weight[t], sum);
      out[x] = V::fma(sum, factor_, add_);
    }
  }

  static void normalize(const float* in, int64_t n, float factor_, float add_, bool stream, float* out) {
    const F factor = V::set(factor_), add = V::set(add_);
    int64_t i = 0;
    for (; i + kLanes <= n; i += kLanes) put(stream, out + i, V::fma(V::load(in + i), factor, add));
    for (; i < n; ++i) out[i] = V::fma(in[i], factor_, add_);
  }

  static constexpr AugmentRows kTable = {blend<uint8_t>, blend<float>, resize, scale,  saturate,  shift_hue,    to_gray,
                                         solarize,       gray_sum,     blur_y, blur_x, normalize, V::stream_end};
};

}  // namespace fastcl

// Where the vectors that go through the colour ops come from: planes, or a crop that is resampled row by row on the
// way. Templates over the vectors of an instruction set (V); included inside a target region.
//
// A source gives kChannels channels. begin(y) moves it to a row; load(x, v) gives the pixels from x on, kCount vectors
// of each channel, of which those beyond the row are whatever.
#pragma once

#include "augment/augment_rows.h"
#include "common/simd.h"

namespace fastcl {

template <class V, int kChannels>
struct PlaneSource {
  using F = typename V::F;
  const float* plane[kChannels];

  explicit FASTCL_INLINE PlaneSource(const float* const* planes) {
    for (int c = 0; c < kChannels; ++c) plane[c] = planes[c];
  }
  FASTCL_INLINE void begin(int64_t) {}
  template <int kCount>
  FASTCL_INLINE void load(int64_t x, F (&v)[kChannels][kCount]) {
    FASTCL_UNROLL for (int c = 0; c < kChannels; ++c) FASTCL_UNROLL for (int k = 0; k < kCount; ++k) v[c][k] =
        V::load(plane[c] + x + k * V::kLanes);
  }
};

template <class V>
FASTCL_INLINE typename V::F load_pixels(const uint8_t* p) {
  return V::load_bytes(p);
}
template <class V>
FASTCL_INLINE typename V::F load_pixels(const float* p) {
  return V::load(p);
}

// Few rows, and all that a vector of the output needs in two vectors of each: blended, and looked up, in registers.
// kTaps: as many in both directions; 0: any number up to kFewTaps, and the result is clamped if the crop says so.
template <class V, class Pixel, int kChannels, int kTaps>
struct FewTaps {
  using F = typename V::F;
  using I = typename V::I;
  static constexpr int kLanes = V::kLanes;

  const Resample<Pixel>& r;
  const int down_taps, across_taps;
  const Pixel* row[kFewTaps][kChannels];
  float down[kFewTaps];
  int64_t copied[kFewTaps];  // which rows the copies are of

  explicit FASTCL_INLINE FewTaps(const Resample<Pixel>& crop)
      : r(crop), down_taps(kTaps ? kTaps : int(r.down.taps)), across_taps(kTaps ? kTaps : int(r.across.taps)) {
    for (int t = 0; t < kFewTaps; ++t) copied[t] = -1;
  }

  FASTCL_INLINE void begin(int64_t y) {
    for (int t = 0; t < down_taps; ++t) {
      down[t] = r.down.weight[t * r.down.stride + y];
      const int64_t at = r.down.first[y] + t;
      const Pixel* in = r.in + at * r.pitch;
      const bool readable = r.step == 1 && in + (kChannels - 1) * r.channel_pitch + r.across.reach <= r.end;
      if (!readable) copy(in, at);
      for (int c = 0; c < kChannels; ++c)
        row[t][c] = readable ? in + c * r.channel_pitch : copy_of(at) + c * r.row_pitch;
    }
  }

  template <int kCount>
  FASTCL_INLINE void load(int64_t x, F (&v)[kChannels][kCount]) {
    const int32_t* base = r.across.base + x / kLanes;
    const float* weight = r.across.weight + x;
    I at[kCount];
    FASTCL_UNROLL for (int k = 0; k < kCount; ++k) at[k] = V::load_int(r.across.first + x + k * kLanes);
    FASTCL_UNROLL for (int c = 0; c < kChannels; ++c) {
      F low = blend(c, base[0]), high = blend(c, base[0] + kLanes);
      FASTCL_UNROLL for (int k = 0; k < kCount; ++k) {
        if (k > 0 && base[k] != base[k - 1]) low = blend(c, base[k]), high = blend(c, base[k] + kLanes);
        F sum = V::mul(V::lookup(low, high, at[k]), V::load(weight + k * kLanes));
        for (int32_t t = 1; t < across_taps; ++t)
          sum = V::fma(V::lookup(low, high, V::add_int(at[k], t)), V::load(weight + t * r.across.stride + k * kLanes),
                       sum);
        v[c][k] = kTaps || !r.clamps ? sum : V::min(V::max(sum, V::set(0.f)), V::set(r.bound));
      }
    }
  }

 private:
  FASTCL_INLINE F blend(int c, int32_t x) const {
    F sum = V::mul(load_pixels<V>(row[0][c] + x), V::set(down[0]));
    for (int t = 1; t < down_taps; ++t) sum = V::fma(load_pixels<V>(row[t][c] + x), V::set(down[t]), sum);
    return sum;
  }
  FASTCL_INLINE Pixel* copy_of(int64_t at) const { return r.rows + at % kFewTaps * kChannels * r.row_pitch; }
  void copy(const Pixel* in, int64_t at) {
    if (copied[at % kFewTaps] == at) return;
    copied[at % kFewTaps] = at;
    Pixel* to = copy_of(at);
    if (kChannels == 3 && r.step == 3) return split(in, r.width, to, to + r.row_pitch, to + 2 * r.row_pitch);
    for (int c = 0; c < kChannels; ++c)
      for (int64_t i = 0; i < r.width; ++i) to[c * r.row_pitch + i] = in[c * r.channel_pitch + i * r.step];
  }
  static void split(const Pixel* in, int64_t n, Pixel* __restrict first, Pixel* __restrict second,
                    Pixel* __restrict third) {
    for (int64_t i = 0; i < n; ++i) {
      first[i] = in[3 * i];
      second[i] = in[3 * i + 1];
      third[i] = in[3 * i + 2];
    }
  }
};

// Any number of taps: a row is blended in memory first, and gathered from there.
template <class V, class Pixel, int kChannels>
struct ManyTaps {
  using F = typename V::F;
  using I = typename V::I;
  static constexpr int kLanes = V::kLanes;

  const Resample<Pixel>& r;

  explicit FASTCL_INLINE ManyTaps(const Resample<Pixel>& crop) : r(crop) {}

  FASTCL_INLINE void begin(int64_t y) {
    const Pixel* in = r.in + r.down.first[y] * r.pitch;
    const float* weight = r.down.weight + y;
    if (r.step == 1) {
      for (int c = 0; c < kChannels; ++c) blend(in + c * r.channel_pitch, 1, r.width, weight, line(c));
    } else if (r.step == kChannels) {
      blend(in, 1, r.width * kChannels, weight, r.mixed);
      for (int c = 0; c < kChannels; ++c) split(c, line(c));
    } else {
      for (int c = 0; c < kChannels; ++c) blend(in + c * r.channel_pitch, r.step, r.width, weight, line(c));
    }
  }

  template <int kCount>
  FASTCL_INLINE void load(int64_t x, F (&v)[kChannels][kCount]) {
    FASTCL_UNROLL for (int k = 0; k < kCount; ++k, x += kLanes) {
      const I at = V::load_int(r.across.first + x);
      const float* weight = r.across.weight + x;
      for (int c = 0; c < kChannels; ++c) {
        const float* from = line(c) + r.across.base[x / kLanes];
        F sum = V::mul(V::gather(from, at), V::load(weight));
        for (int64_t t = 1; t < r.across.taps; ++t)
          sum = V::fma(V::gather(from + t, at), V::load(weight + t * r.across.stride), sum);
        v[c][k] = r.clamps ? V::min(V::max(sum, V::set(0.f)), V::set(r.bound)) : sum;
      }
    }
  }

 private:
  FASTCL_INLINE float* line(int c) const { return r.lines + c * r.row_pitch; }
  void split(int c, float* __restrict out) const {
    for (int64_t i = 0; i < r.width; ++i) out[i] = r.mixed[i * kChannels + c];
  }
  // n values, `step` apart, by their taps in y.
  void blend(const Pixel* in, int64_t step, int64_t n, const float* weight, float* __restrict out) const {
    const int64_t taps = r.down.taps, stride = r.down.stride, whole = step == 1 ? n / kLanes * kLanes : 0;
    for (int64_t i = 0; i < whole; i += kLanes) {
      F sum = V::mul(load_pixels<V>(in + i), V::set(weight[0]));
      for (int64_t t = 1; t < taps; ++t)
        sum = V::fma(load_pixels<V>(in + t * r.pitch + i), V::set(weight[t * stride]), sum);
      V::store(out + i, sum);
    }
    for (int64_t i = whole; i < n; ++i) {
      float sum = float(in[i * step]) * weight[0];
      for (int64_t t = 1; t < taps; ++t) sum = V::fma(float(in[t * r.pitch + i * step]), weight[t * stride], sum);
      out[i] = sum;
    }
  }
};

}  // namespace fastcl

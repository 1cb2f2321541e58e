// Where the vectors that go through the colour ops come from: planes, or a crop that is resampled row by row on the
// way. Templates over the vectors of an instruction set (V); included inside a target region.
//
// A source gives kChannels channels. prepare(begin, end) comes first, with all the rows that will be asked for;
// begin(y) moves it to one of them; load(x, v) gives the pixels from x on, kCount vectors of each channel, of which
// those beyond the row are whatever.
#pragma once

#include "augment/augment_rows.h"
#include "common/simd.h"

namespace fastcl {

// Vectors of each channel that go through the ops together.
template <class V>
constexpr int kSideBySide = V::kLanes >= 8 ? 2 : 1;

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

// Resizes rows of a crop across, where all that a vector of the output needs lies in two vectors: looked up in
// registers.
template <class V, class Pixel, int kChannels>
struct AcrossTaps {
  using F = typename V::F;
  using I = typename V::I;
  static constexpr int kLanes = V::kLanes;
  static constexpr int kSide = kSideBySide<V>;

  // All that the output's rows from begin to end are blended of, but for what is there. At once: how many new rows each
  // of them needs, no processor could predict.
  static void prepare(const Resample<Pixel>& r, int64_t begin, int64_t end) {
    const int64_t first = r.down.first[begin], last = r.down.first[end - 1];
    const int64_t from = first < last ? first : last, to = (first < last ? last : first) + r.down.taps;
    const int64_t held_from = r.held[0], held_to = r.held[1];
    for (int64_t y = from, next; y < to; y = next) {
      next = y + kFewTaps < to ? y + kFewTaps : to;
      if (y >= held_from && y < held_to) {
        next = held_to;
        continue;
      }
      if (y < held_from && next > held_from) next = held_from;
      resize(r, y, int(next - y));
    }
    r.held[0] = from;
    r.held[1] = to;
  }

 private:
  // `count` rows from y on, kFewTaps at most.
  static FASTCL_INLINE void resize(const Resample<Pixel>& r, int64_t y, int count) {
    const ResizeTaps across = r.across;  // a copy: the stores could change it
    const Pixel* in[kFewTaps];
    float* out[kFewTaps];
    int64_t pitch = r.channel_pitch;
    const Pixel* last = r.in + (y + count - 1) * r.pitch + (kChannels - 1) * pitch;
    const bool readable = r.step == 1 && last + across.reach <= r.end;
    for (int i = 0; i < count; ++i) {
      in[i] = r.in + (y + i) * r.pitch;
      out[i] = r.rows + ((y + i) & (r.places - 1)) * kChannels * across.stride;
      if (readable) continue;
      Pixel* copied = r.copies + i * kChannels * r.row_pitch;
      copy(in[i], r.step, pitch, r.width, r.row_pitch, copied);
      in[i] = copied;
    }
    if (!readable) pitch = r.row_pitch;
    if (across.taps == 2) return resize_by<2>(across, in, out, count, pitch);
    if (across.taps == 3) return resize_by<3>(across, in, out, count, pitch);
    resize_by<1>(across, in, out, count, pitch);
  }

  // Places and weights of the first kHeld taps stay in registers; of 1, there may be more.
  template <int kHeld>
  static FASTCL_INLINE void resize_by(const ResizeTaps& across, const Pixel* const* in, float* const* out, int count,
                                      int64_t pitch) {
    int64_t x = 0;
    for (; x + kSide * kLanes <= across.stride; x += kSide * kLanes)
      resize_vectors<kHeld, kSide>(across, in, out, count, pitch, x);
    for (; x < across.stride; x += kLanes) resize_vectors<kHeld, 1>(across, in, out, count, pitch, x);
  }

  template <int kHeld, int kCount>
  static FASTCL_INLINE void resize_vectors(const ResizeTaps& across, const Pixel* const* in, float* const* out,
                                           int count, int64_t pitch, int64_t x) {
    const int64_t base = across.base[x / kLanes], next = across.base[x / kLanes + kCount - 1];
    I at[kHeld][kCount];
    F weight[kHeld][kCount];
    FASTCL_UNROLL for (int k = 0; k < kCount; ++k) FASTCL_UNROLL for (int t = 0; t < kHeld; ++t) {
      at[t][k] = V::add_int(V::load_int(across.first + x + k * kLanes), t);
      weight[t][k] = V::load(across.weight + t * across.stride + x + k * kLanes);
    }
    for (int i = 0; i < count; ++i) FASTCL_UNROLL for (int c = 0; c < kChannels; ++c) {
        const Pixel* from = in[i] + c * pitch;
        F low = load_pixels<V>(from + base), high = load_pixels<V>(from + base + kLanes);
        FASTCL_UNROLL for (int k = 0; k < kCount; ++k) {
          if (k > 0 && next != base) low = load_pixels<V>(from + next), high = load_pixels<V>(from + next + kLanes);
          F sum = V::mul(V::lookup(low, high, at[0][k]), weight[0][k]);
          FASTCL_UNROLL for (int t = 1; t < kHeld; ++t) sum = V::fma(V::lookup(low, high, at[t][k]), weight[t][k], sum);
          for (int32_t t = 1; kHeld == 1 && t < across.taps; ++t)
            sum = V::fma(V::lookup(low, high, V::add_int(at[0][k], t)),
                         V::load(across.weight + t * across.stride + x + k * kLanes), sum);
          V::store(out[i] + c * across.stride + x + k * kLanes, sum);
        }
      }
  }

  static void copy(const Pixel* in, int64_t step, int64_t pitch, int64_t n, int64_t row_pitch, Pixel* out) {
    if (kChannels == 3 && step == 3) return split(in, n, out, out + row_pitch, out + 2 * row_pitch);
    for (int c = 0; c < kChannels; ++c)
      for (int64_t i = 0; i < n; ++i) out[c * row_pitch + i] = in[c * pitch + i * step];
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

// Rows of a crop that AcrossTaps has resized, blended on their way.
// kTaps: of so many each, and nothing is clamped; 0: of any number up to kFewTaps.
template <class V, int kChannels, int kTaps>
struct BlendedRows {
  using F = typename V::F;

  const float* const rows;
  const int64_t last_place, stride, weight_stride;
  const int32_t* const first;
  const float* const weight;
  const int taps;
  const bool clamps;
  const float bound;
  const float* row[kFewTaps];
  float down[kFewTaps];

  explicit FASTCL_INLINE BlendedRows(const ResizedRows& r)
      : rows(r.rows),
        last_place(r.places - 1),
        stride(r.across.stride),
        weight_stride(r.down.stride),
        first(r.down.first),
        weight(r.down.weight),
        taps(int(r.down.taps)),
        clamps(r.clamps),
        bound(r.bound) {}

  FASTCL_INLINE int number() const { return kTaps ? kTaps : taps; }

  FASTCL_INLINE void begin(int64_t y) {
    for (int t = 0; t < number(); ++t) {
      row[t] = rows + ((first[y] + t) & last_place) * kChannels * stride;
      down[t] = weight[t * weight_stride + y];
    }
  }

  template <int kCount>
  FASTCL_INLINE void load(int64_t x, F (&v)[kChannels][kCount]) {
    FASTCL_UNROLL for (int c = 0; c < kChannels; ++c) FASTCL_UNROLL for (int k = 0; k < kCount; ++k) {
      const int64_t at = c * stride + x + k * V::kLanes;
      F sum = V::mul(V::load(row[0] + at), V::set(down[0]));
      for (int t = 1; t < number(); ++t) sum = V::fma(V::load(row[t] + at), V::set(down[t]), sum);
      v[c][k] = !kTaps && clamps ? V::min(V::max(sum, V::set(0.f)), V::set(bound)) : sum;
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

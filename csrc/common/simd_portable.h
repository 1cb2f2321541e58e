// Four lanes in plain C++: SSE2 or NEON where the compiler sees fit.
#pragma once

#include <cmath>

#include "common/float_types.h"
#include "common/simd.h"

namespace fastcl {

struct Portable {
  static constexpr int kLanes = 4;
#if defined(__GNUC__)
  typedef float F __attribute__((vector_size(16)));
#else
  struct F {
    float lane[4];
    float& operator[](int i) { return lane[i]; }
    float operator[](int i) const { return lane[i]; }
    friend F operator+(F a, F b) {
      return each(a, b, [](float x, float y) { return x + y; });
    }
    friend F operator-(F a, F b) {
      return each(a, b, [](float x, float y) { return x - y; });
    }
    friend F operator*(F a, F b) {
      return each(a, b, [](float x, float y) { return x * y; });
    }
    template <class Op>
    static F each(F a, F b, Op op) {
      return {{op(a[0], b[0]), op(a[1], b[1]), op(a[2], b[2]), op(a[3], b[3])}};
    }
  };
#endif

  struct I {
    int32_t lane[kLanes];
  };

  static FASTCL_INLINE F load(const float* p) {
    F value;
    std::memcpy(&value, p, sizeof value);
    return value;
  }
  static FASTCL_INLINE void store(float* p, F value) { std::memcpy(p, &value, sizeof value); }
  static FASTCL_INLINE F set(float value) { return F{value, value, value, value}; }
  static FASTCL_INLINE F add(F a, F b) { return a + b; }
  static FASTCL_INLINE F sub(F a, F b) { return a - b; }
  static FASTCL_INLINE F mul(F a, F b) { return a * b; }
  // Not fused: without the instruction, fmaf is a call.
  static FASTCL_INLINE F fma(F a, F b, F c) { return a * b + c; }
  static FASTCL_INLINE float fma(float a, float b, float c) { return a * b + c; }
  static FASTCL_INLINE F div(F a, F b) {
    F out;
    for (int i = 0; i < kLanes; ++i) out[i] = a[i] / b[i];
    return out;
  }
  static FASTCL_INLINE F max(F a, F b) {
    F out;
    for (int i = 0; i < kLanes; ++i) out[i] = a[i] > b[i] ? a[i] : b[i];
    return out;
  }
  static FASTCL_INLINE F min(F a, F b) {
    F out;
    for (int i = 0; i < kLanes; ++i) out[i] = a[i] < b[i] ? a[i] : b[i];
    return out;
  }
  static FASTCL_INLINE F abs(F a) {
    F out;
    for (int i = 0; i < kLanes; ++i) out[i] = a[i] < 0 ? -a[i] : a[i];
    return out;
  }
  // Lanes of `value` where a == b, else of `other`.
  static FASTCL_INLINE F select_equal(F a, F b, F value, F other) {
    F out;
    for (int i = 0; i < kLanes; ++i) out[i] = a[i] == b[i] ? value[i] : other[i];
    return out;
  }
  static FASTCL_INLINE F load_bytes(const uint8_t* p) { return F{float(p[0]), float(p[1]), float(p[2]), float(p[3])}; }
  // Past the caches, to an address aligned to the vector; where there is such a store.
  static FASTCL_INLINE void stream(float* p, F value) { store(p, value); }
  // To be called before another thread may read what was streamed.
  static FASTCL_INLINE void stream_end() {}
  // To nearest even; NaN stays NaN.
  static FASTCL_INLINE void store_bfloat16(uint16_t* p, F value) {
    for (int i = 0; i < kLanes; ++i) p[i] = float_to_bfloat16(value[i]);
  }
  static FASTCL_INLINE void store_float16(uint16_t* p, F value) {
    for (int i = 0; i < kLanes; ++i) p[i] = float_to_float16(value[i]);
  }
  // The first n lanes, 0 < n < kLanes; the others are 0, or not written.
  static FASTCL_INLINE F keep_first(F v, int64_t n) {
    for (int64_t i = n; i < kLanes; ++i) v[int(i)] = 0;
    return v;
  }
  static FASTCL_INLINE void store_first(float* p, F v, int64_t n) {
    for (int64_t i = 0; i < n; ++i) p[i] = v[int(i)];
  }
  static FASTCL_INLINE I load_int(const int32_t* p) { return {{p[0], p[1], p[2], p[3]}}; }
  static FASTCL_INLINE void store_int(int32_t* p, I value) { std::memcpy(p, value.lane, sizeof value.lane); }
  static FASTCL_INLINE I add_int(I a, int32_t b) {
    return {{a.lane[0] + b, a.lane[1] + b, a.lane[2] + b, a.lane[3] + b}};
  }
  template <class Of>
  static FASTCL_INLINE I each_int(Of of) {
    I out;
    for (int i = 0; i < kLanes; ++i) out.lane[i] = int32_t(of(i));
    return out;
  }
  static FASTCL_INLINE I set_int(int32_t v) { return {{v, v, v, v}}; }
  static FASTCL_INLINE I add_int(I a, I b) {
    return each_int([&](int i) { return a.lane[i] + b.lane[i]; });
  }
  // Of the signed upper halves of x and y: x + y * width, 0 < width < 2^15.
  static FASTCL_INLINE I dot_high(I x, I y, int32_t width) {
    return each_int([&](int i) { return (x.lane[i] >> 16) + (y.lane[i] >> 16) * width; });
  }
  // A bit for each lane that is not negative and below the bound, which is above 0.
  static FASTCL_INLINE uint32_t below(I a, int32_t bound) {
    uint32_t bits = 0;
    for (int i = 0; i < kLanes; ++i) bits |= uint32_t(uint32_t(a.lane[i]) < uint32_t(bound)) << i;
    return bits;
  }
  // A bit for each lane in which none of `bits` is set.
  static FASTCL_INLINE uint32_t zero_bits(I a, int32_t bits) {
    uint32_t found = 0;
    for (int i = 0; i < kLanes; ++i) found |= uint32_t((a.lane[i] & bits) == 0) << i;
    return found;
  }
  // Of the values of `low` and then `high`, those with the numbers `at`.
  static FASTCL_INLINE F lookup(F low, F high, I at) {
    float both[2 * kLanes];
    store(both, low);
    store(both + kLanes, high);
    return gather(both, at);
  }
  static FASTCL_INLINE F gather(const float* p, I at) {
    return F{p[at.lane[0]], p[at.lane[1]], p[at.lane[2]], p[at.lane[3]]};
  }
  // Where `at` is not negative; nothing is read elsewhere.
  static FASTCL_INLINE F gather_inside(const float* p, I at, F other) {
    F out;
    for (int i = 0; i < kLanes; ++i) out[i] = at.lane[i] >= 0 ? p[at.lane[i]] : other[i];
    return out;
  }
  // Lanes whose bit is set, else those of `other`.
  static FASTCL_INLINE F select(uint32_t bits, F value, F other) {
    F out;
    for (int i = 0; i < kLanes; ++i) out[i] = (bits >> i) & 1u ? value[i] : other[i];
    return out;
  }
  static FASTCL_INLINE I select(uint32_t bits, I value, I other) {
    return each_int([&](int i) { return (bits >> i) & 1u ? value.lane[i] : other.lane[i]; });
  }
  static FASTCL_INLINE uint32_t equal_bits(int32_t value, const int32_t* p) {
    uint32_t bits = 0;
    for (int i = 0; i < kLanes; ++i) bits |= uint32_t(p[i] == value) << i;
    return bits;
  }
  // 2^x for |x| <= 126.
  static FASTCL_INLINE F exp2(F x) {
    const F rounded = add(x, set(kRoundMagic));
    const F f = sub(x, sub(rounded, set(kRoundMagic)));
    F p = set(kExp2Coefficients[0]);
    for (int i = 1; i < 6; ++i) p = fma(p, f, set(kExp2Coefficients[i]));
    int32_t exponent[kLanes], value[kLanes];
    std::memcpy(exponent, &rounded, sizeof exponent);
    std::memcpy(value, &p, sizeof value);
    for (int i = 0; i < kLanes; ++i) value[i] = int32_t(uint32_t(value[i]) + (uint32_t(exponent[i]) << 23));
    std::memcpy(&p, value, sizeof value);
    return p;
  }
  static FASTCL_INLINE void transpose(F (&rows)[kLanes]) {
    for (int i = 0; i < kLanes; ++i)
      for (int j = 0; j < i; ++j) {
        const float swap = rows[i][j];
        rows[i][j] = rows[j][i];
        rows[j][i] = swap;
      }
  }
  // As many doubles as there are lanes.
  struct D {
    double lane[kLanes];
  };
  template <class Of>
  static FASTCL_INLINE D each_wide(Of of) {
    D out;
    for (int i = 0; i < kLanes; ++i) out.lane[i] = of(i);
    return out;
  }
  static FASTCL_INLINE D set_wide(double v) {
    return each_wide([&](int) { return v; });
  }
  static FASTCL_INLINE D widen(I v) {
    return each_wide([&](int i) { return double(v.lane[i]); });
  }
  static FASTCL_INLINE D widen(F v) {
    return each_wide([&](int i) { return double(v[i]); });
  }
  static FASTCL_INLINE F narrow(D v) {
    F out;
    for (int i = 0; i < kLanes; ++i) out[i] = float(v.lane[i]);
    return out;
  }
  // Of numbers that an int32 can hold.
  static FASTCL_INLINE I truncate(D v) {
    I out;
    for (int i = 0; i < kLanes; ++i) out.lane[i] = int32_t(v.lane[i]);
    return out;
  }
  static FASTCL_INLINE D add(D a, D b) {
    return each_wide([&](int i) { return a.lane[i] + b.lane[i]; });
  }
  static FASTCL_INLINE D sub(D a, D b) {
    return each_wide([&](int i) { return a.lane[i] - b.lane[i]; });
  }
  static FASTCL_INLINE D mul(D a, D b) {
    return each_wide([&](int i) { return a.lane[i] * b.lane[i]; });
  }
  static FASTCL_INLINE D div(D a, D b) {
    return each_wide([&](int i) { return a.lane[i] / b.lane[i]; });
  }
  // b where a is NaN
  static FASTCL_INLINE D max(D a, D b) {
    return each_wide([&](int i) { return a.lane[i] > b.lane[i] ? a.lane[i] : b.lane[i]; });
  }
  static FASTCL_INLINE D min(D a, D b) {
    return each_wide([&](int i) { return a.lane[i] < b.lane[i] ? a.lane[i] : b.lane[i]; });
  }
  static FASTCL_INLINE D floor(D v) {
    return each_wide([&](int i) { return std::floor(v.lane[i]); });
  }
  // To nearest even.
  static FASTCL_INLINE D round(D v) {
    return each_wide([&](int i) { return std::rint(v.lane[i]); });
  }
  // A bit for each lane; not of NaN.
  static FASTCL_INLINE uint32_t equal(D a, D b) {
    uint32_t bits = 0;
    for (int i = 0; i < kLanes; ++i) bits |= uint32_t(a.lane[i] == b.lane[i]) << i;
    return bits;
  }
  static FASTCL_INLINE float sum(F v) { return (v[0] + v[1]) + (v[2] + v[3]); }
  static FASTCL_INLINE float largest(F v) {
    float top = v[0];
    for (int i = 1; i < kLanes; ++i) top = v[i] > top ? v[i] : top;
    return top;
  }
};

}  // namespace fastcl

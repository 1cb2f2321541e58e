// Eight lanes: AVX2 with FMA. To be included inside FASTCL_AVX2_BEGIN.
#pragma once

#include "common/simd.h"

namespace fastcl {

struct Avx2 {
  static constexpr int kLanes = 8;
  using F = __m256;
  using I = __m256i;

  static FASTCL_INLINE F load(const float* p) { return _mm256_loadu_ps(p); }
  static FASTCL_INLINE void store(float* p, F value) { _mm256_storeu_ps(p, value); }
  static FASTCL_INLINE F set(float value) { return _mm256_set1_ps(value); }
  static FASTCL_INLINE F add(F a, F b) { return _mm256_add_ps(a, b); }
  static FASTCL_INLINE F sub(F a, F b) { return _mm256_sub_ps(a, b); }
  static FASTCL_INLINE F mul(F a, F b) { return _mm256_mul_ps(a, b); }
  static FASTCL_INLINE F fma(F a, F b, F c) { return _mm256_fmadd_ps(a, b, c); }
  static FASTCL_INLINE float fma(float a, float b, float c) {
    return _mm_cvtss_f32(_mm_fmadd_ss(_mm_set_ss(a), _mm_set_ss(b), _mm_set_ss(c)));
  }
  static FASTCL_INLINE F div(F a, F b) { return _mm256_div_ps(a, b); }
  static FASTCL_INLINE F max(F a, F b) { return _mm256_max_ps(a, b); }
  static FASTCL_INLINE F min(F a, F b) { return _mm256_min_ps(a, b); }
  static FASTCL_INLINE F abs(F a) { return _mm256_andnot_ps(set(-0.f), a); }
  static FASTCL_INLINE F select_equal(F a, F b, F value, F other) {
    return _mm256_blendv_ps(other, value, _mm256_cmp_ps(a, b, _CMP_EQ_OQ));
  }
  static FASTCL_INLINE F load_bytes(const uint8_t* p) {
    return _mm256_cvtepi32_ps(_mm256_cvtepu8_epi32(_mm_loadl_epi64(reinterpret_cast<const __m128i*>(p))));
  }
  static FASTCL_INLINE void stream(float* p, F value) { _mm256_stream_ps(p, value); }
  static FASTCL_INLINE void stream_end() { _mm_sfence(); }
  // To nearest even; NaN stays NaN.
  static FASTCL_INLINE void store_bfloat16(uint16_t* p, F value) {
    const I bits = _mm256_castps_si256(value),
            odd = _mm256_and_si256(_mm256_srli_epi32(bits, 16), _mm256_set1_epi32(1));
    const I rounded = _mm256_add_epi32(bits, _mm256_add_epi32(odd, _mm256_set1_epi32(0x7fff)));
    const I quiet = _mm256_or_si256(bits, _mm256_set1_epi32(0x400000));
    const F kept = _mm256_blendv_ps(_mm256_castsi256_ps(rounded), _mm256_castsi256_ps(quiet),
                                    _mm256_cmp_ps(value, value, _CMP_UNORD_Q));
    const I high = _mm256_srli_epi32(_mm256_castps_si256(kept), 16);
    _mm_storeu_si128(reinterpret_cast<__m128i*>(p),
                     _mm_packus_epi32(_mm256_castsi256_si128(high), _mm256_extracti128_si256(high, 1)));
  }
  static FASTCL_INLINE void store_float16(uint16_t* p, F value) {
    _mm_storeu_si128(reinterpret_cast<__m128i*>(p), _mm256_cvtps_ph(value, _MM_FROUND_TO_NEAREST_INT));
  }
  // The first n lanes, 0 < n < kLanes; the others are 0, or not written.
  static FASTCL_INLINE I first_mask(int64_t n) {
    return _mm256_cmpgt_epi32(_mm256_set1_epi32(int(n)), _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7));
  }
  static FASTCL_INLINE F keep_first(F v, int64_t n) { return _mm256_and_ps(v, _mm256_castsi256_ps(first_mask(n))); }
  static FASTCL_INLINE void store_first(float* p, F v, int64_t n) { _mm256_maskstore_ps(p, first_mask(n), v); }
  static FASTCL_INLINE I load_int(const int32_t* p) { return _mm256_loadu_si256(reinterpret_cast<const __m256i*>(p)); }
  static FASTCL_INLINE void store_int(int32_t* p, I value) {
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(p), value);
  }
  static FASTCL_INLINE I add_int(I a, int32_t b) { return _mm256_add_epi32(a, _mm256_set1_epi32(b)); }
  static FASTCL_INLINE I set_int(int32_t v) { return _mm256_set1_epi32(v); }
  static FASTCL_INLINE I add_int(I a, I b) { return _mm256_add_epi32(a, b); }
  static FASTCL_INLINE I xor_int(I a, I b) { return _mm256_xor_si256(a, b); }
  static FASTCL_INLINE void multiply(I a, uint32_t b, I* high, I* low) {
    const I by = _mm256_set1_epi64x(b), even = _mm256_mul_epu32(a, by),
            odd = _mm256_mul_epu32(_mm256_srli_epi64(a, 32), by);
    *high = _mm256_blend_epi32(_mm256_srli_epi64(even, 32), odd, 0xaa);
    *low = _mm256_blend_epi32(even, _mm256_slli_epi64(odd, 32), 0xaa);
  }
  static FASTCL_INLINE I dot_high(I x, I y, int32_t width) {
    const I halves = _mm256_blend_epi16(_mm256_srli_epi32(x, 16), y, 0xaa);
    return _mm256_madd_epi16(halves, _mm256_set1_epi32(width << 16 | 1));
  }
  static FASTCL_INLINE uint32_t lanes_set(I a) { return uint32_t(_mm256_movemask_ps(_mm256_castsi256_ps(a))); }
  static FASTCL_INLINE uint32_t below(I a, int32_t bound) {
    return lanes_set(_mm256_cmpeq_epi32(_mm256_min_epu32(a, _mm256_set1_epi32(bound - 1)), a));
  }
  static FASTCL_INLINE uint32_t zero_bits(I a, int32_t bits) {
    return lanes_set(_mm256_cmpeq_epi32(_mm256_and_si256(a, _mm256_set1_epi32(bits)), _mm256_setzero_si256()));
  }
  static FASTCL_INLINE F lookup(F low, F high, I at) {
    // A permute looks at the lowest three bits; the fourth, moved to the sign, picks the half.
    const F in_high = _mm256_castsi256_ps(_mm256_slli_epi32(at, 28));
    return _mm256_blendv_ps(_mm256_permutevar8x32_ps(low, at), _mm256_permutevar8x32_ps(high, at), in_high);
  }
  static FASTCL_INLINE F gather(const float* p, I at) { return _mm256_i32gather_ps(p, at, 4); }
  static FASTCL_INLINE F mask_of(uint32_t bits) {
    const __m256i lane = _mm256_setr_epi32(1, 2, 4, 8, 16, 32, 64, 128);
    return _mm256_castsi256_ps(_mm256_cmpeq_epi32(_mm256_and_si256(_mm256_set1_epi32(int(bits)), lane), lane));
  }
  static FASTCL_INLINE F gather_inside(const float* p, I at, F other) {
    const __m256i inside = _mm256_xor_si256(at, _mm256_set1_epi32(-1));  // a gather looks at the sign
    return _mm256_mask_i32gather_ps(other, p, at, _mm256_castsi256_ps(inside), 4);
  }
  static FASTCL_INLINE F select(uint32_t bits, F value, F other) {
    return _mm256_blendv_ps(other, value, mask_of(bits));
  }
  static FASTCL_INLINE I select(uint32_t bits, I value, I other) {
    return _mm256_blendv_epi8(other, value, _mm256_castps_si256(mask_of(bits)));
  }
  static FASTCL_INLINE uint32_t equal_bits(int32_t value, const int32_t* p) {
    const __m256i lanes = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(p));
    return uint32_t(_mm256_movemask_ps(_mm256_castsi256_ps(_mm256_cmpeq_epi32(lanes, _mm256_set1_epi32(value)))));
  }
  static FASTCL_INLINE F exp2(F x) {
    const F magic = set(kRoundMagic), rounded = add(x, magic), f = sub(x, sub(rounded, magic));
    F p = set(kExp2Coefficients[0]);
    FASTCL_UNROLL for (int i = 1; i < 6; ++i) p = fma(p, f, set(kExp2Coefficients[i]));
    const __m256i exponent = _mm256_slli_epi32(_mm256_castps_si256(rounded), 23);
    return _mm256_castsi256_ps(_mm256_add_epi32(_mm256_castps_si256(p), exponent));
  }
  static FASTCL_INLINE void transpose(F (&rows)[kLanes]) {
    F a[8], b[8];
    FASTCL_UNROLL for (int i = 0; i < 8; i += 2) {
      a[i] = _mm256_unpacklo_ps(rows[i], rows[i + 1]);
      a[i + 1] = _mm256_unpackhi_ps(rows[i], rows[i + 1]);
    }
    FASTCL_UNROLL for (int i = 0; i < 8; i += 4) FASTCL_UNROLL for (int j = 0; j < 2; ++j) {
      b[i + 2 * j] = _mm256_shuffle_ps(a[i + j], a[i + 2 + j], 0x44);
      b[i + 2 * j + 1] = _mm256_shuffle_ps(a[i + j], a[i + 2 + j], 0xee);
    }
    FASTCL_UNROLL for (int c = 0; c < 4; ++c) {
      rows[c] = _mm256_permute2f128_ps(b[c], b[4 + c], 0x20);
      rows[4 + c] = _mm256_permute2f128_ps(b[c], b[4 + c], 0x31);
    }
  }
  // As many doubles as there are lanes.
  struct D {
    __m256d low, high;
  };
  static FASTCL_INLINE D set_wide(double v) { return {_mm256_set1_pd(v), _mm256_set1_pd(v)}; }
  static FASTCL_INLINE D widen(I v) {
    return {_mm256_cvtepi32_pd(_mm256_castsi256_si128(v)), _mm256_cvtepi32_pd(_mm256_extracti128_si256(v, 1))};
  }
  static FASTCL_INLINE D widen(F v) {
    return {_mm256_cvtps_pd(_mm256_castps256_ps128(v)), _mm256_cvtps_pd(_mm256_extractf128_ps(v, 1))};
  }
  static FASTCL_INLINE F narrow(D v) { return _mm256_set_m128(_mm256_cvtpd_ps(v.high), _mm256_cvtpd_ps(v.low)); }
  // Of numbers that an int32 can hold; others give whatever.
  static FASTCL_INLINE I truncate(D v) {
    return _mm256_set_m128i(_mm256_cvttpd_epi32(v.high), _mm256_cvttpd_epi32(v.low));
  }
  static FASTCL_INLINE D add(D a, D b) { return {_mm256_add_pd(a.low, b.low), _mm256_add_pd(a.high, b.high)}; }
  static FASTCL_INLINE D sub(D a, D b) { return {_mm256_sub_pd(a.low, b.low), _mm256_sub_pd(a.high, b.high)}; }
  static FASTCL_INLINE D mul(D a, D b) { return {_mm256_mul_pd(a.low, b.low), _mm256_mul_pd(a.high, b.high)}; }
  static FASTCL_INLINE D div(D a, D b) { return {_mm256_div_pd(a.low, b.low), _mm256_div_pd(a.high, b.high)}; }
  // b where a is NaN
  static FASTCL_INLINE D max(D a, D b) { return {_mm256_max_pd(a.low, b.low), _mm256_max_pd(a.high, b.high)}; }
  static FASTCL_INLINE D min(D a, D b) { return {_mm256_min_pd(a.low, b.low), _mm256_min_pd(a.high, b.high)}; }
  static FASTCL_INLINE D floor(D v) { return {_mm256_floor_pd(v.low), _mm256_floor_pd(v.high)}; }
  // To nearest even.
  static FASTCL_INLINE D round(D v) {
    return {_mm256_round_pd(v.low, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC),
            _mm256_round_pd(v.high, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC)};
  }
  static FASTCL_INLINE D sqrt(D v) { return {_mm256_sqrt_pd(v.low), _mm256_sqrt_pd(v.high)}; }
  static FASTCL_INLINE __m256d pow2(__m256d v) {
    // The whole number stands in the lowest bits of a sum with 1.5 * 2^52.
    const I exponent = _mm256_castpd_si256(_mm256_add_pd(v, _mm256_set1_pd(0x1.8p52 + 1023)));
    return _mm256_castsi256_pd(_mm256_slli_epi64(exponent, 52));
  }
  static FASTCL_INLINE D pow2(D v) { return {pow2(v.low), pow2(v.high)}; }
  static FASTCL_INLINE __m256d wide_mask_of(uint32_t bits) {
    const __m256i lane = _mm256_setr_epi64x(1, 2, 4, 8);
    return _mm256_castsi256_pd(_mm256_cmpeq_epi64(_mm256_and_si256(_mm256_set1_epi64x(bits), lane), lane));
  }
  static FASTCL_INLINE D select(uint32_t bits, D value, D other) {
    return {_mm256_blendv_pd(other.low, value.low, wide_mask_of(bits)),
            _mm256_blendv_pd(other.high, value.high, wide_mask_of(bits >> 4))};
  }
  // A bit for each lane; not of NaN.
  template <int kHow>
  static FASTCL_INLINE uint32_t compare(D a, D b) {
    return uint32_t(_mm256_movemask_pd(_mm256_cmp_pd(a.low, b.low, kHow))) |
           uint32_t(_mm256_movemask_pd(_mm256_cmp_pd(a.high, b.high, kHow))) << 4;
  }
  static FASTCL_INLINE uint32_t equal(D a, D b) { return compare<_CMP_EQ_OQ>(a, b); }
  static FASTCL_INLINE uint32_t less(D a, D b) { return compare<_CMP_LT_OQ>(a, b); }
  static FASTCL_INLINE uint32_t less_equal(D a, D b) { return compare<_CMP_LE_OQ>(a, b); }
  static FASTCL_INLINE float sum(F v) {
    __m128 half = _mm_add_ps(_mm256_castps256_ps128(v), _mm256_extractf128_ps(v, 1));
    half = _mm_add_ps(half, _mm_movehl_ps(half, half));
    return _mm_cvtss_f32(_mm_add_ss(half, _mm_shuffle_ps(half, half, 1)));
  }
  static FASTCL_INLINE float largest(F v) {
    __m128 half = _mm_max_ps(_mm256_castps256_ps128(v), _mm256_extractf128_ps(v, 1));
    half = _mm_max_ps(half, _mm_movehl_ps(half, half));
    return _mm_cvtss_f32(_mm_max_ss(half, _mm_shuffle_ps(half, half, 1)));
  }
};

}  // namespace fastcl

// Sixteen lanes: AVX-512. To be included inside FASTCL_AVX512_BEGIN.
#pragma once

#include "common/simd.h"

namespace fastcl {

struct Avx512 {
  static constexpr int kLanes = 16;
  using F = __m512;
  using I = __m512i;

  static FASTCL_INLINE F load(const float* p) { return _mm512_loadu_ps(p); }
  static FASTCL_INLINE void store(float* p, F value) { _mm512_storeu_ps(p, value); }
  static FASTCL_INLINE F set(float value) { return _mm512_set1_ps(value); }
  static FASTCL_INLINE F add(F a, F b) { return _mm512_add_ps(a, b); }
  static FASTCL_INLINE F sub(F a, F b) { return _mm512_sub_ps(a, b); }
  static FASTCL_INLINE F mul(F a, F b) { return _mm512_mul_ps(a, b); }
  static FASTCL_INLINE F fma(F a, F b, F c) { return _mm512_fmadd_ps(a, b, c); }
  static FASTCL_INLINE float fma(float a, float b, float c) {
    return _mm_cvtss_f32(_mm_fmadd_ss(_mm_set_ss(a), _mm_set_ss(b), _mm_set_ss(c)));
  }
  static FASTCL_INLINE F div(F a, F b) { return _mm512_div_ps(a, b); }
  static FASTCL_INLINE F max(F a, F b) { return _mm512_max_ps(a, b); }
  static FASTCL_INLINE F min(F a, F b) { return _mm512_min_ps(a, b); }
  static FASTCL_INLINE F abs(F a) { return _mm512_abs_ps(a); }
  static FASTCL_INLINE F select_equal(F a, F b, F value, F other) {
    return _mm512_mask_mov_ps(other, _mm512_cmp_ps_mask(a, b, _CMP_EQ_OQ), value);
  }
  static FASTCL_INLINE F load_bytes(const uint8_t* p) {
    return _mm512_cvtepi32_ps(_mm512_cvtepu8_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p))));
  }
  static FASTCL_INLINE void stream(float* p, F value) { _mm512_stream_ps(p, value); }
  static FASTCL_INLINE void stream_end() { _mm_sfence(); }
  // To nearest even; NaN stays NaN.
  static FASTCL_INLINE void store_bfloat16(uint16_t* p, F value) {
    const I bits = _mm512_castps_si512(value),
            odd = _mm512_and_si512(_mm512_srli_epi32(bits, 16), _mm512_set1_epi32(1));
    const I rounded = _mm512_add_epi32(bits, _mm512_add_epi32(odd, _mm512_set1_epi32(0x7fff)));
    const I quiet = _mm512_or_si512(bits, _mm512_set1_epi32(0x400000));
    const I kept = _mm512_mask_mov_epi32(rounded, _mm512_cmp_ps_mask(value, value, _CMP_UNORD_Q), quiet);
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(p), _mm512_cvtepi32_epi16(_mm512_srli_epi32(kept, 16)));
  }
  static FASTCL_INLINE void store_float16(uint16_t* p, F value) {
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(p), _mm512_cvtps_ph(value, _MM_FROUND_TO_NEAREST_INT));
  }
  // The first n lanes, 0 < n < kLanes; the others are 0, or not written.
  static FASTCL_INLINE F keep_first(F v, int64_t n) { return _mm512_maskz_mov_ps(__mmask16((1u << n) - 1), v); }
  static FASTCL_INLINE void store_first(float* p, F v, int64_t n) {
    _mm512_mask_storeu_ps(p, __mmask16((1u << n) - 1), v);
  }
  static FASTCL_INLINE I load_int(const int32_t* p) { return _mm512_loadu_si512(p); }
  static FASTCL_INLINE void store_int(int32_t* p, I value) { _mm512_storeu_si512(p, value); }
  static FASTCL_INLINE I add_int(I a, int32_t b) { return _mm512_add_epi32(a, _mm512_set1_epi32(b)); }
  static FASTCL_INLINE I set_int(int32_t v) { return _mm512_set1_epi32(v); }
  static FASTCL_INLINE I add_int(I a, I b) { return _mm512_add_epi32(a, b); }
  static FASTCL_INLINE I xor_int(I a, I b) { return _mm512_xor_si512(a, b); }
  static FASTCL_INLINE void multiply(I a, uint32_t b, I* high, I* low) {
    const I by = _mm512_set1_epi64(b), even = _mm512_mul_epu32(a, by),
            odd = _mm512_mul_epu32(_mm512_srli_epi64(a, 32), by);
    *high = _mm512_mask_mov_epi32(_mm512_srli_epi64(even, 32), 0xaaaa, odd);
    *low = _mm512_mask_mov_epi32(even, 0xaaaa, _mm512_slli_epi64(odd, 32));
  }
  static FASTCL_INLINE I dot_high(I x, I y, int32_t width) {
    const I halves = _mm512_mask_mov_epi16(_mm512_srli_epi32(x, 16), 0xaaaaaaaa, y);
    return _mm512_madd_epi16(halves, _mm512_set1_epi32(width << 16 | 1));
  }
  static FASTCL_INLINE uint32_t below(I a, int32_t bound) {
    return _mm512_cmplt_epu32_mask(a, _mm512_set1_epi32(bound));
  }
  static FASTCL_INLINE uint32_t zero_bits(I a, int32_t bits) {
    return _mm512_testn_epi32_mask(a, _mm512_set1_epi32(bits));
  }
  static FASTCL_INLINE F lookup(F low, F high, I at) { return _mm512_permutex2var_ps(low, at, high); }
  static FASTCL_INLINE F gather(const float* p, I at) { return _mm512_i32gather_ps(at, p, 4); }
  static FASTCL_INLINE F gather_inside(const float* p, I at, F other) {
    return _mm512_mask_i32gather_ps(other, _mm512_cmpge_epi32_mask(at, _mm512_setzero_si512()), at, p, 4);
  }
  static FASTCL_INLINE F select(uint32_t bits, F value, F other) {
    return _mm512_mask_mov_ps(other, __mmask16(bits), value);
  }
  static FASTCL_INLINE I select(uint32_t bits, I value, I other) {
    return _mm512_mask_mov_epi32(other, __mmask16(bits), value);
  }
  static FASTCL_INLINE uint32_t equal_bits(int32_t value, const int32_t* p) {
    return _mm512_cmpeq_epi32_mask(_mm512_loadu_si512(p), _mm512_set1_epi32(value));
  }
  static FASTCL_INLINE F exp2(F x) {
    const F magic = set(kRoundMagic), rounded = add(x, magic), f = sub(x, sub(rounded, magic));
    F p = set(kExp2Coefficients[0]);
    FASTCL_UNROLL for (int i = 1; i < 6; ++i) p = fma(p, f, set(kExp2Coefficients[i]));
    const __m512i exponent = _mm512_slli_epi32(_mm512_castps_si512(rounded), 23);
    return _mm512_castsi512_ps(_mm512_add_epi32(_mm512_castps_si512(p), exponent));
  }
  static FASTCL_INLINE void transpose(F (&rows)[kLanes]) {
    F a[16], b[16];
    FASTCL_UNROLL for (int i = 0; i < 16; i += 2) {
      a[i] = _mm512_unpacklo_ps(rows[i], rows[i + 1]);
      a[i + 1] = _mm512_unpackhi_ps(rows[i], rows[i + 1]);
    }
    FASTCL_UNROLL for (int i = 0; i < 16; i += 4) FASTCL_UNROLL for (int j = 0; j < 2; ++j) {
      const __m512d x = _mm512_castps_pd(a[i + j]), y = _mm512_castps_pd(a[i + 2 + j]);
      b[i + 2 * j] = _mm512_castpd_ps(_mm512_unpacklo_pd(x, y));
      b[i + 2 * j + 1] = _mm512_castpd_ps(_mm512_unpackhi_pd(x, y));
    }
    FASTCL_UNROLL for (int c = 0; c < 4; ++c) {
      const F p = _mm512_shuffle_f32x4(b[c], b[4 + c], 0x88), q = _mm512_shuffle_f32x4(b[c], b[4 + c], 0xdd);
      const F u = _mm512_shuffle_f32x4(b[8 + c], b[12 + c], 0x88), v = _mm512_shuffle_f32x4(b[8 + c], b[12 + c], 0xdd);
      rows[c] = _mm512_shuffle_f32x4(p, u, 0x88);
      rows[8 + c] = _mm512_shuffle_f32x4(p, u, 0xdd);
      rows[4 + c] = _mm512_shuffle_f32x4(q, v, 0x88);
      rows[12 + c] = _mm512_shuffle_f32x4(q, v, 0xdd);
    }
  }
  // As many doubles as there are lanes.
  struct D {
    __m512d low, high;
  };
  static FASTCL_INLINE D set_wide(double v) { return {_mm512_set1_pd(v), _mm512_set1_pd(v)}; }
  static FASTCL_INLINE D widen(I v) {
    return {_mm512_cvtepi32_pd(_mm512_castsi512_si256(v)), _mm512_cvtepi32_pd(_mm512_extracti64x4_epi64(v, 1))};
  }
  static FASTCL_INLINE D widen(F v) {
    return {_mm512_cvtps_pd(_mm512_castps512_ps256(v)), _mm512_cvtps_pd(_mm512_extractf32x8_ps(v, 1))};
  }
  static FASTCL_INLINE F narrow(D v) {
    return _mm512_insertf32x8(_mm512_castps256_ps512(_mm512_cvtpd_ps(v.low)), _mm512_cvtpd_ps(v.high), 1);
  }
  // Of numbers that an int32 can hold; others give whatever.
  static FASTCL_INLINE I truncate(D v) {
    return _mm512_inserti64x4(_mm512_castsi256_si512(_mm512_cvttpd_epi32(v.low)), _mm512_cvttpd_epi32(v.high), 1);
  }
  static FASTCL_INLINE D add(D a, D b) { return {_mm512_add_pd(a.low, b.low), _mm512_add_pd(a.high, b.high)}; }
  static FASTCL_INLINE D sub(D a, D b) { return {_mm512_sub_pd(a.low, b.low), _mm512_sub_pd(a.high, b.high)}; }
  static FASTCL_INLINE D mul(D a, D b) { return {_mm512_mul_pd(a.low, b.low), _mm512_mul_pd(a.high, b.high)}; }
  static FASTCL_INLINE D div(D a, D b) { return {_mm512_div_pd(a.low, b.low), _mm512_div_pd(a.high, b.high)}; }
  // b where a is NaN
  static FASTCL_INLINE D max(D a, D b) { return {_mm512_max_pd(a.low, b.low), _mm512_max_pd(a.high, b.high)}; }
  static FASTCL_INLINE D min(D a, D b) { return {_mm512_min_pd(a.low, b.low), _mm512_min_pd(a.high, b.high)}; }
  static FASTCL_INLINE D floor(D v) {
    return {_mm512_roundscale_pd(v.low, _MM_FROUND_TO_NEG_INF | _MM_FROUND_NO_EXC),
            _mm512_roundscale_pd(v.high, _MM_FROUND_TO_NEG_INF | _MM_FROUND_NO_EXC)};
  }
  // To nearest even.
  static FASTCL_INLINE D round(D v) {
    return {_mm512_roundscale_pd(v.low, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC),
            _mm512_roundscale_pd(v.high, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC)};
  }
  static FASTCL_INLINE D sqrt(D v) { return {_mm512_sqrt_pd(v.low), _mm512_sqrt_pd(v.high)}; }
  static FASTCL_INLINE __m512d pow2(__m512d v) {
    const I exponent = _mm512_add_epi64(_mm512_cvtpd_epi64(v), _mm512_set1_epi64(1023));
    return _mm512_castsi512_pd(_mm512_slli_epi64(exponent, 52));
  }
  static FASTCL_INLINE D pow2(D v) { return {pow2(v.low), pow2(v.high)}; }
  static FASTCL_INLINE D select(uint32_t bits, D value, D other) {
    return {_mm512_mask_mov_pd(other.low, __mmask8(bits), value.low),
            _mm512_mask_mov_pd(other.high, __mmask8(bits >> 8), value.high)};
  }
  // A bit for each lane; not of NaN.
  template <int kHow>
  static FASTCL_INLINE uint32_t compare(D a, D b) {
    return uint32_t(_mm512_cmp_pd_mask(a.low, b.low, kHow)) | uint32_t(_mm512_cmp_pd_mask(a.high, b.high, kHow)) << 8;
  }
  static FASTCL_INLINE uint32_t equal(D a, D b) { return compare<_CMP_EQ_OQ>(a, b); }
  static FASTCL_INLINE uint32_t less(D a, D b) { return compare<_CMP_LT_OQ>(a, b); }
  static FASTCL_INLINE uint32_t less_equal(D a, D b) { return compare<_CMP_LE_OQ>(a, b); }
  static FASTCL_INLINE float sum(F v) { return _mm512_reduce_add_ps(v); }
  static FASTCL_INLINE float largest(F v) { return _mm512_reduce_max_ps(v); }
};

}  // namespace fastcl

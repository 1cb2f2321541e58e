#include <algorithm>
#include <limits>
#include <numeric>

#include "contrast/contrast_tiles.h"

#if FASTCL_X86_DISPATCH

FASTCL_AVX512_BF16_BEGIN
#include "common/simd_avx512.h"
#include "contrast/contrast_tiles_impl.h"

namespace fastcl {

// Products of pairs of bfloat16, rounded to nearest even; sums in float32.
struct Bfloat16Products {
  static constexpr int kPack = 2;
  using F = __m512;

  static FASTCL_INLINE F multiply_add(F a, F b, F sum) { return _mm512_dpbf16_ps(sum, (__m512bh)a, (__m512bh)b); }
  static FASTCL_INLINE F words(const float* z, F factor) {
    return (F)_mm512_cvtne2ps_pbh(_mm512_mul_ps(_mm512_loadu_ps(z + 16), factor),
                                  _mm512_mul_ps(_mm512_loadu_ps(z), factor));
  }
  static FASTCL_INLINE F pair(F low, F high) {
    const __m512i l = _mm512_cvtepu16_epi32((__m256i)_mm512_cvtneps_pbh(low));
    const __m512i h = _mm512_cvtepu16_epi32((__m256i)_mm512_cvtneps_pbh(high));
    return _mm512_castsi512_ps(_mm512_or_si512(l, _mm512_slli_epi32(h, 16)));
  }
  static FASTCL_INLINE F rows(const float* z, int64_t dim) {
    return pair(_mm512_loadu_ps(z), _mm512_loadu_ps(z + dim));
  }
  static FASTCL_INLINE void store_half(float* p, F value) {
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(p), (__m256i)_mm512_cvtneps_pbh(value));
  }
};

static const ContrastKernels& table = ContrastTiles<Avx512, Bfloat16Products, 8, 3, 6, 4>::kTable;

}  // namespace fastcl
FASTCL_TARGET_END

#endif

namespace fastcl {

const ContrastKernels* contrast_kernels_avx512_bf16() {
#if FASTCL_X86_DISPATCH
  if (cpu_has_fast_bf16()) return &table;
#endif
  return nullptr;
}

}  // namespace fastcl

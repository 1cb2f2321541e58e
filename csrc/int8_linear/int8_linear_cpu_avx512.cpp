// AVX-512 with VNNI: vpdpbusd multiplies u8 by s8, so q + zero is stored and zero * sum_k w is taken off again.
#include <algorithm>
#include <array>
#include <cmath>
#include <cstring>
#include <limits>
#include <utility>

#include "common/cpu.h"
#include "int8_linear/int8_linear_cpu.h"
#include "int8_linear/int8_linear_math.h"

#if FASTCL_X86_DISPATCH

namespace fastcl {
namespace {

// tail(m) = m / 2 erfc(m / sqrt 2) around m = kGeluStep * piece: a polynomial in the distance from there, through six
// (at 0 five) Chebyshev nodes. 0 where m is, and from 15 steps on, where it is under 6e-8.
constexpr float kGeluStep = 0.375f;
struct GeluTail {
  alignas(64) float coefficients[6][16];

  GeluTail() {
    for (int piece = 0; piece < 16; ++piece) {
      const double center = piece * double(kGeluStep), end = tail(15 * double(kGeluStep));
      const int nodes = piece == 0 ? 5 : 6;
      double r[6], difference[6], polynomial[7] = {};
      for (int i = 0; i < nodes; ++i) {
        const double cosine = std::cos((2 * i + 1) * std::acos(-1.) / (2 * nodes));
        r[i] = kGeluStep / 2 * (piece == 0 ? (1 + cosine) / 2 : cosine);
        difference[i] = piece == 0 ? tail(r[i]) / r[i] : tail(center + r[i]) - (piece == 15 ? end : 0);
      }
      for (int order = 1; order < nodes; ++order)  // Newton's form ...
        for (int i = nodes - 1; i >= order; --i)
          difference[i] = (difference[i] - difference[i - 1]) / (r[i] - r[i - order]);
      for (int i = nodes - 1; i >= 0; --i) {  // ... multiplied out
        for (int j = 5; j >= 0; --j) polynomial[j] = (j ? polynomial[j - 1] : difference[i]) - r[i] * polynomial[j];
      }
      for (int j = 0; j < 6; ++j) coefficients[j][piece] = float(piece ? polynomial[j] : j ? polynomial[j - 1] : 0);
    }
    coefficients[0][15] = 0;
  }

  static double tail(double m) { return m / 2 * std::erfc(m * std::sqrt(0.5)); }
};
const GeluTail kGeluTail;

}  // namespace
}  // namespace fastcl

FASTCL_AVX512_VNNI_BEGIN
#if defined(__GNUC__) && !defined(__clang__)
#pragma GCC optimize("no-code-hoisting")  // it would lift loads out of the tile's branches and spill accumulators
#endif

namespace fastcl {
namespace {

template <FloatType kType>
inline __m512 load16(const void* x, int64_t k, __mmask16 mask) {
  if constexpr (kType == FloatType::kFloat32) return _mm512_maskz_loadu_ps(mask, static_cast<const float*>(x) + k);
  const __m256i half = _mm256_maskz_loadu_epi16(mask, static_cast<const uint16_t*>(x) + k);
  if constexpr (kType == FloatType::kFloat16) return _mm512_cvtph_ps(half);
  return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(half), 16));
}

inline __mmask16 first_lanes(int64_t n) { return n >= 16 ? __mmask16(0xffff) : __mmask16((1u << n) - 1); }

// 16 of the values that are quantised.
template <FloatType kType, bool kMultiplied>
inline __m512 value16(const Int8Linear& p, const void* x, int64_t k, __mmask16 mask) {
  const __m512 v = load16<kType>(x, k, mask);
  if constexpr (!kMultiplied) return v;
  return _mm512_mul_ps(v, _mm512_maskz_loadu_ps(mask, p.x_multiplier + k));
}

inline uint32_t greatest(const __m512i (&top)[4]) {
  return uint32_t(
      _mm512_reduce_max_epi32(_mm512_max_epi32(_mm512_max_epi32(top[0], top[1]), _mm512_max_epi32(top[2], top[3]))));
}

template <FloatType kType, bool kMultiplied>
uint32_t absmax_bits(const Int8Linear& p, const void* x) {
  const __m512i magnitude = _mm512_set1_epi32(0x7fffffff);
  __m512i top[4] = {};
  const auto widen = [&](__m512i& lane, int64_t i, __mmask16 mask) {
    const __m512i bits = _mm512_castps_si512(value16<kType, kMultiplied>(p, x, i, mask));
    lane = _mm512_max_epi32(lane, _mm512_and_si512(magnitude, bits));
  };
  int64_t i = 0;
  for (; i + 64 <= p.k; i += 64)
    for (int j = 0; j < 4; ++j) widen(top[j], i + 16 * j, 0xffff);
  for (; i < p.k; i += 16) widen(top[0], i, first_lanes(p.k - i));
  return greatest(top);
}

template <FloatType kType, bool kMultiplied>
RowScale scale_of_range(const Int8Linear& p, const void* x) {
  __m512i top = _mm512_set1_epi32(std::numeric_limits<int32_t>::min()), bottom = _mm512_setzero_si512();
  for (int64_t i = 0; i < p.k; i += 16) {
    const __m512i bits = _mm512_castps_si512(value16<kType, kMultiplied>(p, x, i, first_lanes(p.k - i)));
    top = _mm512_max_epi32(top, bits);
    bottom = _mm512_max_epu32(bottom, bits);
  }
  return row_scale_of_range(_mm512_reduce_max_epi32(top), uint32_t(_mm512_reduce_max_epu32(bottom)));
}

// The lowest bytes of each. Packing takes half the instructions of four conversions.
FASTCL_INLINE void store_four_chunks(const __m512i (&q)[4], uint8_t* out, int64_t step) {
  const __m512i low_byte = _mm512_set1_epi32(255);
  const __m512i by_chunk = _mm512_setr_epi32(0, 4, 8, 12, 1, 5, 9, 13, 2, 6, 10, 14, 3, 7, 11, 15);
  const __m512i low = _mm512_packus_epi32(_mm512_and_si512(q[0], low_byte), _mm512_and_si512(q[1], low_byte));
  const __m512i high = _mm512_packus_epi32(_mm512_and_si512(q[2], low_byte), _mm512_and_si512(q[3], low_byte));
  const __m512i bytes = _mm512_permutexvar_epi32(by_chunk, _mm512_packus_epi16(low, high));
  _mm_store_si128(reinterpret_cast<__m128i*>(out), _mm512_castsi512_si128(bytes));
  _mm_store_si128(reinterpret_cast<__m128i*>(out + step), _mm512_extracti32x4_epi32(bytes, 1));
  _mm_store_si128(reinterpret_cast<__m128i*>(out + 2 * step), _mm512_extracti32x4_epi32(bytes, 2));
  _mm_store_si128(reinterpret_cast<__m128i*>(out + 3 * step), _mm512_extracti32x4_epi32(bytes, 3));
}

constexpr float kShift = 12582912.f;  // 1.5 * 2^23

// In kDynamic, whole chunks, the i-th of which stands at x + steps[i].
template <FloatType kType>
void quantize_patch_of(const Int8Linear& p, const void* x, const int32_t* steps, uint8_t* out, int64_t step,
                       Int8Row& result) {
  const int64_t chunks = p.k / kInt8Chunk;
  const __m512i magnitude = _mm512_set1_epi32(0x7fffffff);
  __m512i top[4] = {};
  const auto widen = [&](__m512i& lane, int64_t i) __attribute__((always_inline)) {
    const __m512i bits = _mm512_castps_si512(load16<kType>(x, steps[i], 0xffff));
    lane = _mm512_max_epi32(lane, _mm512_and_si512(magnitude, bits));
  };
  int64_t i = 0;
  for (; i + 4 <= chunks; i += 4)
    for (int j = 0; j < 4; ++j) widen(top[j], i + j);
  for (; i < chunks; ++i) widen(top[0], i);
  const RowScale row = row_scale(greatest(top), 127.f);
  const __m512 inverse = _mm512_set1_ps(row.inverse), shift = _mm512_set1_ps(kShift + 128.f);
  const auto bits_of = [&](int64_t i) __attribute__((always_inline)) {
    return _mm512_castps_si512(_mm512_fmadd_ps(load16<kType>(x, steps[i], 0xffff), inverse, shift));
  };
  for (i = 0; i + 4 <= chunks; i += 4, out += 4 * step) {
    const __m512i q[4] = {bits_of(i), bits_of(i + 1), bits_of(i + 2), bits_of(i + 3)};
    store_four_chunks(q, out, step);
  }
  for (; i < chunks; ++i, out += step)
    _mm_store_si128(reinterpret_cast<__m128i*>(out), _mm512_cvtepi32_epi8(bits_of(i)));
  result = {row.scale, {128, 128}};
}

// A row whose inverse is 0 becomes zeros, or, where its scale is NaN, anything.
template <FloatType kType, bool kMultiplied>
void quantize_row_of(const Int8Linear& p, const void* x, uint8_t* out, int64_t step, Int8Row& result) {
  const int64_t k = p.k;  // read once: what is stored below might, for all that the compiler knows, change it
  int64_t i = 0;
  const auto each_chunk = [&](auto write) __attribute__((always_inline)) {
    for (; i + kInt8Chunk <= k; i += kInt8Chunk, out += step) write(value16<kType, kMultiplied>(p, x, i, 0xffff));
    if (i < k) write(value16<kType, kMultiplied>(p, x, i, first_lanes(k - i)));
  };
  // Adding kShift makes the fused multiply-add round, half to even, and leaves the integer in the lowest bits.
  if (p.mode == Int8Mode::kDynamic) {
    const RowScale row = row_scale(absmax_bits<kType, kMultiplied>(p, x), 127.f);
    const __m512 inverse = _mm512_set1_ps(row.inverse), shift = _mm512_set1_ps(kShift + 128.f);
    const auto bits_of = [&](__m512 v) __attribute__((always_inline)) {
      return _mm512_castps_si512(_mm512_fmadd_ps(v, inverse, shift));
    };
    for (; i + 4 * kInt8Chunk <= k; i += 4 * kInt8Chunk, out += 4 * step) {
      __m512i q[4];
#pragma GCC unroll 4
      for (int j = 0; j < 4; ++j) q[j] = bits_of(value16<kType, kMultiplied>(p, x, i + kInt8Chunk * j, 0xffff));
      store_four_chunks(q, out, step);
    }
    each_chunk([&](__m512 v) __attribute__((always_inline)) {
      _mm_store_si128(reinterpret_cast<__m128i*>(out), _mm512_cvtepi32_epi8(bits_of(v)));
    });
    result = {row.scale, {128, 128}};
    return;
  }
  const __m512 shift = _mm512_set1_ps(kShift);
  if (p.mode == Int8Mode::kInt16) {
    const RowScale row = row_scale(absmax_bits<kType, kMultiplied>(p, x), 32767.f);
    const __m512 inverse = _mm512_set1_ps(row.inverse);
    const __m512i base = _mm512_sub_epi32(_mm512_castps_si512(shift), _mm512_set1_epi32(128 << 8));
    each_chunk([&](__m512 v) __attribute__((always_inline)) {
      const __m512i bits = _mm512_sub_epi32(_mm512_castps_si512(_mm512_fmadd_ps(v, inverse, shift)), base);
      _mm_store_si128(reinterpret_cast<__m128i*>(out), _mm512_cvtepi32_epi8(_mm512_srli_epi32(bits, 8)));
      _mm_store_si128(reinterpret_cast<__m128i*>(out) + 1, _mm512_cvtepi32_epi8(bits));
    });
    result = {row.scale, {128, 0}};
    return;
  }
  // Of kStatic the range is not needed, but whether every value is finite, which the one pass over them tells too.
  RowScale row =
      p.mode == Int8Mode::kStatic ? row_scale_static(0, p.x_scale, p.x_zero) : scale_of_range<kType, kMultiplied>(p, x);
  const ValueRange range = value_range(row, p.mode);
  const __m512 inverse = _mm512_set1_ps(row.inverse), low = _mm512_set1_ps(range.low),
               high = _mm512_set1_ps(range.high);
  const __m512i base = _mm512_sub_epi32(_mm512_castps_si512(shift), _mm512_set1_epi32(row.zero));
  const __m512i magnitude = _mm512_set1_epi32(0x7fffffff), zero = _mm512_setzero_si512();
  __m512i top = zero;
  each_chunk([&](__m512 v) __attribute__((always_inline)) {
    top = _mm512_max_epi32(top, _mm512_and_si512(magnitude, _mm512_castps_si512(v)));
    v = _mm512_max_ps(low, _mm512_min_ps(high, v));
    const __m512i q = _mm512_sub_epi32(_mm512_castps_si512(_mm512_fmadd_ps(v, inverse, shift)), base);
    _mm_store_si128(reinterpret_cast<__m128i*>(out), _mm512_cvtusepi32_epi8(_mm512_max_epi32(q, zero)));
  });
  if (p.mode == Int8Mode::kStatic) row = row_scale_static(uint32_t(_mm512_reduce_max_epi32(top)), p.x_scale, p.x_zero);
  result = {row.scale, {row.zero, row.zero}};
}

inline __m256i bfloat16_of(__m512 v) {  // as float_to_bfloat16
  const __m512i bits = _mm512_castps_si512(v), high = _mm512_srli_epi32(bits, 16);
  const __m512i odd = _mm512_and_si512(high, _mm512_set1_epi32(1));
  const __m512i rounded =
      _mm512_srli_epi32(_mm512_add_epi32(bits, _mm512_add_epi32(odd, _mm512_set1_epi32(0x7fff))), 16);
  const __mmask16 nan = _mm512_cmp_ps_mask(v, v, _CMP_UNORD_Q);
  return _mm512_cvtepi32_epi16(_mm512_mask_or_epi32(rounded, nan, high, _mm512_set1_epi32(0x40)));
}

// How 16 values of y are quantised; none is NaN.
struct OutputQuantizer {
  __m512 low, high, inverse, shift;
  __m512i base;

  explicit OutputQuantizer(const Int8Output& out)
      : low(_mm512_set1_ps(out.range.low)),
        high(_mm512_set1_ps(out.range.high)),
        inverse(_mm512_set1_ps(out.row.inverse)),
        shift(_mm512_set1_ps(kShift)),
        base(_mm512_sub_epi32(_mm512_castps_si512(shift), _mm512_set1_epi32(out.row.zero))) {}

  FASTCL_INLINE __m128i operator()(__m512 v) const {
    v = _mm512_max_ps(low, _mm512_min_ps(high, v));
    const __m512i q = _mm512_sub_epi32(_mm512_castps_si512(_mm512_fmadd_ps(v, inverse, shift)), base);
    return _mm512_cvtusepi32_epi8(_mm512_max_epi32(q, _mm512_setzero_si512()));
  }
};

// 16 values to columns column .. of y's row.
inline void store16(const Int8Tile& t, __m512 v, uint8_t* y, int column) {
  if (t.columns <= column) return;
  const __mmask16 mask = first_lanes(t.columns - column);
  if (t.out.quantized) {
    _mm_mask_storeu_epi8(y + column, mask, OutputQuantizer(t.out)(v));
    return;
  }
  if (t.type == FloatType::kFloat32) {
    float* out = reinterpret_cast<float*>(y) + column;
    if (t.stream)
      _mm512_stream_ps(out, v);
    else
      _mm512_mask_storeu_ps(out, mask, v);
    return;
  }
  const __m256i half = t.type == FloatType::kBFloat16
                           ? bfloat16_of(v)
                           : _mm512_cvtps_ph(v, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
  _mm256_mask_storeu_epi16(reinterpret_cast<uint16_t*>(y) + column, mask, half);
}

// e^x as clamped_exp, of [-88, 88].
inline __m512 exp16(__m512 x) {
  const __m512 magic = _mm512_set1_ps(kShift);
  const __m512 shifted = _mm512_fmadd_ps(x, _mm512_set1_ps(1.44269504f), magic), n = _mm512_sub_ps(shifted, magic);
  const __m512 high = _mm512_fmadd_ps(n, _mm512_set1_ps(-0.693359375f), x);
  const __m512 r = _mm512_fmadd_ps(n, _mm512_set1_ps(2.12194440e-4f), high);
  __m512 p = _mm512_set1_ps(1.9875691500e-4f);
  for (float c : {1.3981999507e-3f, 8.3334519073e-3f, 4.1665795894e-2f, 1.6666665459e-1f, 0.5f})
    p = _mm512_fmadd_ps(p, r, _mm512_set1_ps(c));
  p = _mm512_add_ps(_mm512_fmadd_ps(p, _mm512_mul_ps(r, r), r), _mm512_set1_ps(1.f));
  return _mm512_castsi512_ps(
      _mm512_add_epi32(_mm512_castps_si512(p), _mm512_slli_epi32(_mm512_castps_si512(shifted), 23)));
}

// gelu(v) = max(v, 0) - tail(|v|), to 1e-7. No exponential and no quotient: they would take twice as long. NaN, always
// the second operand of a minimum or maximum, stays.
inline __m512 gelu16(__m512 v) {
  const __m512 magnitude = _mm512_min_ps(_mm512_set1_ps(15 * kGeluStep), _mm512_abs_ps(v));
  const __m512 magic = _mm512_set1_ps(kShift),
               shifted = _mm512_fmadd_ps(magnitude, _mm512_set1_ps(1 / kGeluStep), magic);
  const __m512 r = _mm512_fnmadd_ps(_mm512_sub_ps(shifted, magic), _mm512_set1_ps(kGeluStep), magnitude);
  const __m512i piece = _mm512_castps_si512(shifted);  // of which a permutation sees the lowest four bits
  __m512 tail = _mm512_permutexvar_ps(piece, _mm512_load_ps(kGeluTail.coefficients[5]));
#pragma GCC unroll 5
  for (int i = 4; i >= 0; --i)
    tail = _mm512_fmadd_ps(tail, r, _mm512_permutexvar_ps(piece, _mm512_load_ps(kGeluTail.coefficients[i])));
  return _mm512_sub_ps(_mm512_max_ps(_mm512_setzero_ps(), v), tail);
}

inline __m512 silu16(__m512 v) {
  const __m512 least = _mm512_set1_ps(-80.f), most = _mm512_set1_ps(88.f);
  const __m512 x = _mm512_max_ps(least, _mm512_min_ps(most, _mm512_sub_ps(_mm512_setzero_ps(), v)));
  return _mm512_div_ps(v, _mm512_add_ps(_mm512_set1_ps(1.f), exp16(x)));
}

inline __m512 activate16(__m512 v, Activation activation) {
  switch (activation) {
    case Activation::kNone:
      break;
    case Activation::kRelu:
      return _mm512_max_ps(_mm512_setzero_ps(), v);
    case Activation::kGelu:
      return gelu16(v);
    case Activation::kSilu:
      return silu16(v);
  }
  return v;
}

// What follows the sums, for whatever multiply_rows does not do in registers.
__attribute__((noinline)) void finish_tile(const Int8Tile& t, int32_t (*sums)[32], int rows) {
  if (t.row_zero != nullptr)  // the sums are those of q + zero
    for (int r = 0; r < rows; ++r)
      for (int i = 0; i < 32; i += 16) {
        const __m512i off = _mm512_mullo_epi32(_mm512_set1_epi32(-t.row_zero[r]), _mm512_loadu_si512(t.sums + i));
        _mm512_store_si512(sums[r] + i, _mm512_add_epi32(_mm512_load_si512(sums[r] + i), off));
      }
  const int x_rows = rows / t.planes;
  for (int r = 0; r < x_rows; ++r)
    for (int i = 0; i < 32; i += 16) {
      __m512 sum = _mm512_cvtepi32_ps(_mm512_load_si512(sums[r * t.planes] + i));
      if (t.planes == 2)
        sum = _mm512_add_ps(_mm512_mul_ps(sum, _mm512_set1_ps(256.f)),
                            _mm512_cvtepi32_ps(_mm512_load_si512(sums[r * 2 + 1] + i)));
      const __m512 scale = _mm512_mul_ps(_mm512_set1_ps(t.row_scale[r]), _mm512_loadu_ps(t.weight_scale + i));
      __m512 value = _mm512_add_ps(_mm512_mul_ps(sum, scale), _mm512_loadu_ps(t.bias + i));
      const float* x = t.outlier_x + r * t.outliers;
      for (int64_t j = 0; j < t.outliers; ++j)
        value = _mm512_fmadd_ps(_mm512_set1_ps(x[j]), _mm512_loadu_ps(t.outlier_weight + 32 * j + i), value);
      store16(t, activate16(value, t.activation), t.y + r * t.y_stride, i);
    }
}

// R rows by 32 columns: 2 R accumulators; with R = 14, two registers of weights and one of x, 31 of the 32.
template <int R, bool kImages>
void multiply_rows(const Int8Tile& t) {
  // Few rows give few chains of dependent sums: with kPhases sets of accumulators at least 8 are in flight.
  constexpr int kPhases = R == 1 ? 4 : R <= 4 ? 2 : 1;
  __m512i acc[kPhases][R][2];
  const __m512i zero = _mm512_setzero_si512(), less = _mm512_set1_epi32(-t.zero);
  const __m512i start[2] = {_mm512_mullo_epi32(less, _mm512_loadu_si512(t.sums)),
                            _mm512_mullo_epi32(less, _mm512_loadu_si512(t.sums + 16))};
#pragma GCC unroll 4
  for (int u = 0; u < kPhases; ++u)
#pragma GCC unroll 14
    for (int r = 0; r < R; ++r) {
      acc[u][r][0] = u ? zero : start[0];
      acc[u][r][1] = u ? zero : start[1];
    }
  const uint8_t* a = t.a;
  const uint8_t* const* rows = t.rows;
  const int32_t* steps = t.steps;
  const int8_t* b = t.b;
  const char* prefetch = t.prefetch;
  const ptrdiff_t prefetch_step = t.prefetch_step;
  for (int64_t left = t.chunks; left > 0; --left) {
#pragma GCC unroll 4
    for (int s = 0; s < 4; ++s) {
      const __m512i b0 = _mm512_load_si512(b + s * 128), b1 = _mm512_load_si512(b + s * 128 + 64);
#pragma GCC unroll 14
      for (int r = 0; r < R; ++r) {
        int32_t four;
        std::memcpy(&four, kImages ? rows[r] + steps[s] : a + r * kInt8Chunk + s * 4, 4);
        const __m512i x = _mm512_set1_epi32(four);
        // asm, not the intrinsic: it keeps the order written here, so that the accumulators fit the register file
        asm volatile("vpdpbusd %2, %1, %0" : "+v"(acc[s % kPhases][r][0]) : "v"(x), "v"(b0));
        asm volatile("vpdpbusd %2, %1, %0" : "+v"(acc[s % kPhases][r][1]) : "v"(x), "v"(b1));
      }
      if (R < 8) {
        _mm_prefetch(prefetch, _MM_HINT_T0);
        _mm_prefetch(prefetch + 64, _MM_HINT_T0);
      } else {
        _mm_prefetch(prefetch, _MM_HINT_T1);
      }
      prefetch += prefetch_step;
    }
    a += R * kInt8Chunk;
    steps += 4;
    b += 512;
  }
#pragma GCC unroll 4
  for (int u = 1; u < kPhases; ++u)
#pragma GCC unroll 14
    for (int r = 0; r < R; ++r)
#pragma GCC unroll 2
      for (int h = 0; h < 2; ++h) acc[0][r][h] = _mm512_add_epi32(acc[0][r][h], acc[u][r][h]);

  // ReLU is a maximum with 0, no activation one with -infinity: no branch per row. NaN in the second operand stays.
  const __m512 floor =
      _mm512_set1_ps(t.activation == Activation::kRelu ? 0.f : -std::numeric_limits<float>::infinity());
  const bool plain = t.activation != Activation::kGelu && t.activation != Activation::kSilu &&
                     t.type == FloatType::kFloat32 && t.row_zero == nullptr && t.outliers == 0;
  alignas(64) int32_t sums[R][32];  // where more is to be done than fits here 2 R times
  // Half after half, and every index of acc a constant: the accumulators never leave their registers.
#pragma GCC unroll 2
  for (int h = 0; h < 2; ++h) {
    asm volatile("" ::: "memory");
    const __m512 scale = _mm512_loadu_ps(t.weight_scale + 16 * h), bias = _mm512_loadu_ps(t.bias + 16 * h);
    const __mmask16 mask = first_lanes(std::max(0, t.columns - 16 * h));
    uint8_t* y = t.y + (t.out.quantized ? 16 : 64) * h;
    const int64_t stride = t.y_stride;
    const auto value = [&](int r) __attribute__((always_inline)) {
      const __m512 both = _mm512_mul_ps(_mm512_set1_ps(t.row_scale[r]), scale);
      return _mm512_max_ps(floor, _mm512_add_ps(_mm512_mul_ps(_mm512_cvtepi32_ps(acc[0][r][h]), both), bias));
    };
    if (!plain) {
#pragma GCC unroll 14
      for (int r = 0; r < R; ++r) _mm512_store_si512(sums[r] + 16 * h, acc[0][r][h]);
    } else if (t.out.quantized) {
      const OutputQuantizer quantized(t.out);
#pragma GCC unroll 14
      for (int r = 0; r < R; ++r, y += stride) _mm_mask_storeu_epi8(y, mask, quantized(value(r)));
    } else if (t.stream) {
#pragma GCC unroll 14
      for (int r = 0; r < R; ++r, y += stride) _mm512_stream_ps(reinterpret_cast<float*>(y), value(r));
    } else {
#pragma GCC unroll 14
      for (int r = 0; r < R; ++r, y += stride) _mm512_mask_storeu_ps(y, mask, value(r));
    }
  }
  if (!plain) finish_tile(t, sums, R);
}

struct Avx512Vnni {
  static constexpr int kRows = 14;
  static constexpr int kColumns = 32;
  static constexpr int kValueBytes = 1;
  static constexpr bool kReadsImages = true;

  static const uint8_t* patch(const Int8PatchWalk& walk, uint8_t* scratch) { return walk.values(scratch); }

  static void take_quantized(const uint8_t* x, int64_t count, int32_t, uint8_t* out) {
    std::memcpy(out, x, size_t(count));
  }

  static void quantize_row(const Int8Linear& p, const void* x, uint8_t* out, int64_t step, Int8Row& result) {
    const auto run = [&]<FloatType kType>() {
      return p.x_multiplier ? quantize_row_of<kType, true>(p, x, out, step, result)
                            : quantize_row_of<kType, false>(p, x, out, step, result);
    };
    switch (p.type) {
      case FloatType::kFloat32:
        return run.template operator()<FloatType::kFloat32>();
      case FloatType::kBFloat16:
        return run.template operator()<FloatType::kBFloat16>();
      case FloatType::kFloat16:
        return run.template operator()<FloatType::kFloat16>();
    }
  }

  static void quantize_patch(const Int8Linear& p, const void* x, const int32_t* steps, uint8_t* out, int64_t step,
                             Int8Row& result) {
    switch (p.type) {
      case FloatType::kFloat32:
        return quantize_patch_of<FloatType::kFloat32>(p, x, steps, out, step, result);
      case FloatType::kBFloat16:
        return quantize_patch_of<FloatType::kBFloat16>(p, x, steps, out, step, result);
      case FloatType::kFloat16:
        return quantize_patch_of<FloatType::kFloat16>(p, x, steps, out, step, result);
    }
  }

  static void multiply(int rows, const Int8Tile& tile) {
    static constexpr auto kByRows = []<int... R>(std::integer_sequence<int, R...>) {
      return std::array<void (*)(const Int8Tile&), 2 * kRows>{multiply_rows<R + 1, false>...,
                                                              multiply_rows<R + 1, true>...};
    }(std::make_integer_sequence<int, kRows>());
    kByRows[size_t(rows - 1 + (tile.a ? 0 : kRows))](tile);
  }

  static void finish_streams() { _mm_sfence(); }
};

}  // namespace
}  // namespace fastcl

FASTCL_TARGET_END

namespace fastcl {

const Int8Kernel kInt8Avx512Vnni = {"avx512_vnni", cpu_has_avx512_vnni, pack_panels<32, 4>,
                                    linear_in_blocks<Avx512Vnni>};

}  // namespace fastcl

#else

namespace fastcl {

const Int8Kernel kInt8Avx512Vnni = {"avx512_vnni", [] { return false; }, nullptr, nullptr};

}  // namespace fastcl

#endif

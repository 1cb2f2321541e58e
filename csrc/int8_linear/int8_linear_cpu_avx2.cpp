// AVX2, twice: with AVX-VNNI, whose vpdpbusd multiplies u8 by s8 (q + zero is stored, zero * sum_k w taken off again);
// and without, where both sides are widened to s16 for vpmaddwd, because vpmaddubsw saturates at 2^15.
#include <algorithm>
#include <array>
#include <cstring>
#include <limits>
#include <utility>

#include "common/cpu.h"
#include "int8_linear/int8_linear_cpu.h"
#include "int8_linear/int8_linear_math.h"

#if FASTCL_X86_DISPATCH

FASTCL_AVX2_BEGIN

namespace fastcl {
namespace {

template <FloatType kType>
inline __m256 load8(const void* x, int64_t k) {
  if constexpr (kType == FloatType::kFloat32) return _mm256_loadu_ps(static_cast<const float*>(x) + k);
  const __m128i half = _mm_loadu_si128(reinterpret_cast<const __m128i*>(static_cast<const uint16_t*>(x) + k));
  if constexpr (kType == FloatType::kFloat16) return _mm256_cvtph_ps(half);
  return _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_cvtepu16_epi32(half), 16));
}

inline int32_t greatest(__m256i values) {
  alignas(32) int32_t lanes[8];
  _mm256_store_si256(reinterpret_cast<__m256i*>(lanes), values);
  return *std::max_element(lanes, lanes + 8);
}

// q of 16 values as the kernel multiplies them: q + zero in 8 bits, or q in 16.
template <bool kVnni>
inline void store_chunk(__m256i q0, __m256i q1, int32_t zero, uint8_t* out) {
  __m256i q = _mm256_permute4x64_epi64(_mm256_packs_epi32(q0, q1), 0xd8);
  if constexpr (kVnni) {
    q = _mm256_add_epi16(q, _mm256_set1_epi16(int16_t(zero)));
    const __m128i bytes = _mm_packus_epi16(_mm256_castsi256_si128(q), _mm256_extracti128_si256(q, 1));
    _mm_storeu_si128(reinterpret_cast<__m128i*>(out), bytes);
  } else {
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(out), q);
  }
}

// A row whose inverse is 0 becomes zeros, or, where its scale is NaN, anything.
template <FloatType kType, bool kMultiplied, bool kVnni>
void quantize_row_of(const Int8Linear& p, const void* x, uint8_t* out, int64_t step, Int8Row& result) {
  constexpr int64_t kSize = kType == FloatType::kFloat32 ? 4 : 2;
  const int64_t whole = p.k / kInt8Chunk * kInt8Chunk;
  alignas(32) uint8_t tail[kInt8Chunk * 4] = {};  // the last values, and zeros
  alignas(32) float tail_multiplier[kInt8Chunk] = {};
  std::memcpy(tail, static_cast<const uint8_t*>(x) + whole * kSize, size_t((p.k - whole) * kSize));
  if (kMultiplied) std::copy(p.x_multiplier + whole, p.x_multiplier + p.k, tail_multiplier);

  const auto value8 = [&](int64_t i) __attribute__((always_inline)) {
    const bool in_tail = i >= whole;
    const __m256 v = in_tail ? load8<kType>(tail, i - whole) : load8<kType>(x, i);
    if constexpr (!kMultiplied) return v;
    return _mm256_mul_ps(v, _mm256_loadu_ps(in_tail ? tail_multiplier + (i - whole) : p.x_multiplier + i));
  };
  const auto bits8 = [&](int64_t i) __attribute__((always_inline)) { return _mm256_castps_si256(value8(i)); };
  const int64_t k8 = whole + (whole < p.k ? kInt8Chunk : 0);
  const __m256i magnitude = _mm256_set1_epi32(0x7fffffff);

  RowScale row;
  if (p.mode == Int8Mode::kAsymmetric) {
    __m256i top = _mm256_set1_epi32(std::numeric_limits<int32_t>::min()), bottom = _mm256_setzero_si256();
    for (int64_t i = 0; i < k8; i += 8) {
      top = _mm256_max_epi32(top, bits8(i));
      bottom = _mm256_max_epu32(bottom, bits8(i));
    }
    alignas(32) uint32_t lanes[8];
    _mm256_store_si256(reinterpret_cast<__m256i*>(lanes), bottom);
    row = row_scale_of_range(greatest(top), *std::max_element(lanes, lanes + 8));
  } else {
    __m256i top[2] = {_mm256_setzero_si256(), _mm256_setzero_si256()};
    for (int64_t i = 0; i < k8; i += 16)
      for (int h = 0; h < 2; ++h) top[h] = _mm256_max_epi32(top[h], _mm256_and_si256(magnitude, bits8(i + 8 * h)));
    const uint32_t absmax = uint32_t(greatest(_mm256_max_epi32(top[0], top[1])));
    row = p.mode == Int8Mode::kStatic ? row_scale_static(absmax, p.x_scale, p.x_zero)
                                      : row_scale(absmax, p.mode == Int8Mode::kInt16 ? 32767.f : 127.f);
  }

  // Adding 1.5 * 2^23 makes the fused multiply-add round, half to even, and leaves q in the lowest bits.
  const __m256 inverse = _mm256_set1_ps(row.inverse), shift = _mm256_set1_ps(12582912.f);
  const auto rounded = [&](__m256 v) __attribute__((always_inline)) {
    return _mm256_sub_epi32(_mm256_castps_si256(_mm256_fmadd_ps(v, inverse, shift)), _mm256_castps_si256(shift));
  };
  if (p.mode == Int8Mode::kDynamic) {
    for (int64_t i = 0; i < k8; i += kInt8Chunk, out += step)
      store_chunk<kVnni>(rounded(value8(i)), rounded(value8(i + 8)), 128, out);
    result = {row.scale, {128, 128}};
    return;
  }
  if (p.mode == Int8Mode::kInt16) {
    const __m256i low_byte = _mm256_set1_epi32(255);
    for (int64_t i = 0; i < k8; i += kInt8Chunk, out += step) {
      const __m256i q0 = rounded(value8(i)), q1 = rounded(value8(i + 8));
      store_chunk<kVnni>(_mm256_srai_epi32(q0, 8), _mm256_srai_epi32(q1, 8), 128, out);
      store_chunk<kVnni>(_mm256_and_si256(q0, low_byte), _mm256_and_si256(q1, low_byte), 0,
                         out + kInt8Chunk * (kVnni ? 1 : 2));
    }
    result = {row.scale, {128, 0}};
    return;
  }
  const ValueRange range = value_range(row, p.mode);
  const __m256 low = _mm256_set1_ps(range.low), high = _mm256_set1_ps(range.high);
  const __m256i least = _mm256_set1_epi32(-row.zero), most = _mm256_set1_epi32(255 - row.zero);
  const auto cut_off = [&](__m256 v) __attribute__((always_inline)) {
    const __m256i q = rounded(_mm256_max_ps(low, _mm256_min_ps(high, v)));
    return _mm256_max_epi32(least, _mm256_min_epi32(most, q));
  };
  for (int64_t i = 0; i < k8; i += kInt8Chunk, out += step)
    store_chunk<kVnni>(cut_off(value8(i)), cut_off(value8(i + 8)), row.zero, out);
  result = {row.scale, {row.zero, row.zero}};
}

inline void store_row(const Int8Tile& t, const float* values, uint8_t* y) {
  if (t.out.quantized) {
    const __m256 low = _mm256_set1_ps(t.out.range.low), high = _mm256_set1_ps(t.out.range.high);
    const __m256 inverse = _mm256_set1_ps(t.out.row.inverse), shift = _mm256_set1_ps(12582912.f);
    const __m256i base = _mm256_sub_epi32(_mm256_castps_si256(shift), _mm256_set1_epi32(t.out.row.zero));
    __m256i q[2];
    for (int h = 0; h < 2; ++h) {
      const __m256 v = _mm256_max_ps(low, _mm256_min_ps(high, _mm256_load_ps(values + 8 * h)));
      q[h] = _mm256_sub_epi32(_mm256_castps_si256(_mm256_fmadd_ps(v, inverse, shift)), base);
    }
    const __m256i words = _mm256_permute4x64_epi64(_mm256_packs_epi32(q[0], q[1]), 0xd8);
    alignas(16) uint8_t bytes[16];
    _mm_store_si128(reinterpret_cast<__m128i*>(bytes),
                    _mm_packus_epi16(_mm256_castsi256_si128(words), _mm256_extracti128_si256(words, 1)));
    std::memcpy(y, bytes, size_t(t.columns));
    return;
  }
  if (t.type == FloatType::kFloat16 && t.columns == 16) {
    for (int i = 0; i < 16; i += 8)
      _mm_storeu_si128(reinterpret_cast<__m128i*>(y + 2 * i),
                       _mm256_cvtps_ph(_mm256_load_ps(values + i), _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC));
    return;
  }
  store_floats(values, t.columns, t.type, 0, y);
}

// What follows the sums: with VNNI those of q + zero; without, those of q.
template <bool kVnni>
__attribute__((noinline)) void finish_tile(const Int8Tile& t, int32_t (*sums)[16], int rows) {
  if (kVnni && t.row_zero != nullptr)
    for (int r = 0; r < rows; ++r)
      for (int i = 0; i < 16; ++i) sums[r][i] += -t.row_zero[r] * t.sums[i];
  alignas(32) float values[6][16];
  const int x_rows = rows / t.planes;
  for (int r = 0; r < x_rows; ++r)
    for (int i = 0; i < 16; i += 8) {
      const auto sum_of = [&](int row) {
        return _mm256_cvtepi32_ps(_mm256_load_si256(reinterpret_cast<const __m256i*>(sums[row] + i)));
      };
      __m256 sum = sum_of(r * t.planes);
      if (t.planes == 2) sum = _mm256_add_ps(_mm256_mul_ps(sum, _mm256_set1_ps(256.f)), sum_of(r * 2 + 1));
      const __m256 scale = _mm256_mul_ps(_mm256_set1_ps(t.row_scale[r]), _mm256_loadu_ps(t.weight_scale + i));
      __m256 value = _mm256_add_ps(_mm256_mul_ps(sum, scale), _mm256_loadu_ps(t.bias + i));
      const float* x = t.outlier_x + r * t.outliers;
      for (int64_t j = 0; j < t.outliers; ++j)
        value = _mm256_fmadd_ps(_mm256_set1_ps(x[j]), _mm256_loadu_ps(t.outlier_weight + 16 * j + i), value);
      _mm256_store_ps(values[r] + i, value);
    }
  activate<true>(values[0], x_rows * 16, t.activation);
  for (int r = 0; r < x_rows; ++r) store_row(t, values[r], t.y + r * t.y_stride);
}

// R rows by 16 columns: 2 R accumulators; with R = 6, two registers of weights and one of x, 15 of the 16.
template <int R, bool kVnni>
void multiply_rows(const Int8Tile& t) {
  constexpr int kGroup = kVnni ? 4 : 2;  // values of k in one step
  constexpr int kSteps = kInt8Chunk / kGroup;
  constexpr int kPhases = R == 1 ? 4 : R <= 3 ? 2 : 1;  // sets of accumulators: sums in flight
  __m256i acc[kPhases][R][2];
#pragma GCC unroll 4
  for (int u = 0; u < kPhases; ++u)
#pragma GCC unroll 6
    for (int r = 0; r < R; ++r)
#pragma GCC unroll 2
      for (int h = 0; h < 2; ++h) {
        acc[u][r][h] = _mm256_setzero_si256();
        if (kVnni && u == 0) {
          const __m256i sums = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(t.sums + 8 * h));
          acc[u][r][h] = _mm256_mullo_epi32(sums, _mm256_set1_epi32(-t.zero));
        }
      }
  const uint8_t* a = t.a;
  const int8_t* b = t.b;
  const char* prefetch = t.prefetch;
  for (int64_t left = t.chunks; left > 0; --left) {
#pragma GCC unroll 8
    for (int s = 0; s < kSteps; ++s) {
      __m256i w[2];
#pragma GCC unroll 2
      for (int h = 0; h < 2; ++h) {
        const int8_t* from = b + (s * 2 + h) * 8 * kGroup;
        if constexpr (kVnni)
          w[h] = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(from));
        else
          w[h] = _mm256_cvtepi8_epi16(_mm_loadu_si128(reinterpret_cast<const __m128i*>(from)));
      }
#pragma GCC unroll 6
      for (int r = 0; r < R; ++r) {
        int32_t group;
        std::memcpy(&group, a + (r * kSteps + s) * 4, 4);
        const __m256i x = _mm256_set1_epi32(group);
#pragma GCC unroll 2
        for (int h = 0; h < 2; ++h) {
          __m256i& sum = acc[s % kPhases][r][h];
          if constexpr (kVnni)
            asm volatile("%{vex%} vpdpbusd %2, %1, %0" : "+x"(sum) : "x"(x), "x"(w[h]));
          else
            sum = _mm256_add_epi32(sum, _mm256_madd_epi16(x, w[h]));
        }
      }
      if (s % (4 / kGroup) == 0) {
        _mm_prefetch(prefetch, _MM_HINT_T0);
        prefetch += t.prefetch_step;
      }
    }
    a += R * kSteps * 4;
    b += 16 * kInt8Chunk;
  }
  alignas(32) int32_t sums[R][16];
#pragma GCC unroll 6
  for (int r = 0; r < R; ++r)
#pragma GCC unroll 2
    for (int h = 0; h < 2; ++h) {
      __m256i sum = acc[0][r][h];
#pragma GCC unroll 4
      for (int u = 1; u < kPhases; ++u) sum = _mm256_add_epi32(sum, acc[u][r][h]);
      _mm256_store_si256(reinterpret_cast<__m256i*>(sums[r] + 8 * h), sum);
    }
  finish_tile<kVnni>(t, sums, R);
}

template <bool kVnni>
struct Avx2 {
  static constexpr int kRows = 6;
  static constexpr int kColumns = 16;
  static constexpr int kValueBytes = kVnni ? 1 : 2;
  static constexpr bool kReadsImages = false;

  static const uint8_t* patch(const Int8PatchWalk& walk, uint8_t* scratch) { return walk.values(scratch); }

  static void take_quantized(const uint8_t* x, int64_t count, int32_t zero, uint8_t* out) {
    if constexpr (kVnni) {
      std::memcpy(out, x, size_t(count));
    } else {
      auto* words = reinterpret_cast<int16_t*>(out);
      for (int64_t i = 0; i < count; ++i) words[i] = int16_t(x[i] - zero);
    }
  }

  static void quantize_row(const Int8Linear& p, const void* x, uint8_t* out, int64_t step, Int8Row& result) {
    const auto run = [&]<FloatType kType>() {
      return p.x_multiplier ? quantize_row_of<kType, true, kVnni>(p, x, out, step, result)
                            : quantize_row_of<kType, false, kVnni>(p, x, out, step, result);
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

  static void multiply(int rows, const Int8Tile& tile) {
    static constexpr auto kByRows = []<int... R>(std::integer_sequence<int, R...>) {
      return std::array<void (*)(const Int8Tile&), sizeof...(R)>{multiply_rows<R + 1, kVnni>...};
    }(std::make_integer_sequence<int, kRows>());
    kByRows[size_t(rows - 1)](tile);
  }

  static void finish_streams() {}
};

}  // namespace
}  // namespace fastcl

FASTCL_TARGET_END

namespace fastcl {

const Int8Kernel kInt8AvxVnni = {"avx_vnni", cpu_has_avx_vnni, pack_panels<16, 4>, linear_in_blocks<Avx2<true>>};
const Int8Kernel kInt8Avx2 = {"avx2", cpu_has_avx2, pack_panels<16, 2>, linear_in_blocks<Avx2<false>>};

}  // namespace fastcl

#else

namespace fastcl {

const Int8Kernel kInt8AvxVnni = {"avx_vnni", [] { return false; }, nullptr, nullptr};
const Int8Kernel kInt8Avx2 = {"avx2", [] { return false; }, nullptr, nullptr};

}  // namespace fastcl

#endif

// AVX2, twice: with AVX-VNNI, whose vpdpbusd multiplies u8 by s8 (q + 128 is stored, 128 * sum_k w taken off again);
// and without, where both sides are widened to s16 for vpmaddwd, because vpmaddubsw saturates at 2^15.
#include <algorithm>
#include <array>
#include <cstring>
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

template <FloatType kType, bool kVnni>
float quantize_row_of(const void* x, int64_t k, uint8_t* out, int64_t step) {
  constexpr int64_t kSize = kType == FloatType::kFloat32 ? 4 : 2;
  const int64_t whole = k / kInt8Chunk * kInt8Chunk;
  alignas(32) uint8_t tail[kInt8Chunk * 4] = {};  // the last values, and zeros
  std::memcpy(tail, static_cast<const uint8_t*>(x) + whole * kSize, size_t((k - whole) * kSize));

  const __m256i magnitude = _mm256_set1_epi32(0x7fffffff);
  __m256i top[2] = {_mm256_setzero_si256(), _mm256_setzero_si256()};
  const auto widen = [&](const void* values, int64_t i) {
    for (int h = 0; h < 2; ++h)
      top[h] =
          _mm256_max_epi32(top[h], _mm256_and_si256(magnitude, _mm256_castps_si256(load8<kType>(values, i + 8 * h))));
  };
  for (int64_t i = 0; i < whole; i += kInt8Chunk) widen(x, i);
  widen(tail, 0);
  alignas(32) int32_t lanes[8];
  _mm256_store_si256(reinterpret_cast<__m256i*>(lanes), _mm256_max_epi32(top[0], top[1]));
  const RowScale row = row_scale(uint32_t(*std::max_element(lanes, lanes + 8)));

  // Adding 1.5 * 2^23 makes the fused multiply-add round, half to even, and leaves q in the lowest bits.
  const __m256 inverse = _mm256_set1_ps(row.inverse), shift = _mm256_set1_ps(12582912.f);
  const auto rounded = [&](const void* values, int64_t i) {
    const __m256 shifted = _mm256_fmadd_ps(load8<kType>(values, i), inverse, shift);
    return _mm256_sub_epi32(_mm256_castps_si256(shifted), _mm256_castps_si256(shift));
  };
  const auto chunk = [&](const void* values, int64_t i) {
    __m256i q = _mm256_permute4x64_epi64(_mm256_packs_epi32(rounded(values, i), rounded(values, i + 8)), 0xd8);
    if (row.inverse == 0) q = _mm256_setzero_si256();
    if constexpr (kVnni) {
      q = _mm256_add_epi16(q, _mm256_set1_epi16(128));
      const __m128i bytes = _mm_packus_epi16(_mm256_castsi256_si128(q), _mm256_extracti128_si256(q, 1));
      _mm_storeu_si128(reinterpret_cast<__m128i*>(out), bytes);
    } else {
      _mm256_storeu_si256(reinterpret_cast<__m256i*>(out), q);
    }
    out += step;
  };
  for (int64_t i = 0; i < whole; i += kInt8Chunk) chunk(x, i);
  if (whole < k) chunk(tail, 0);
  return row.scale;
}

inline void store_row(const Int8Tile& t, const float* values, uint8_t* y) {
  if (t.type == FloatType::kFloat16 && t.columns == 16) {
    for (int i = 0; i < 16; i += 8)
      _mm_storeu_si128(reinterpret_cast<__m128i*>(y + 2 * i),
                       _mm256_cvtps_ph(_mm256_load_ps(values + i), _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC));
    return;
  }
  store_floats(values, t.columns, t.type, 0, y);
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
          acc[u][r][h] = _mm256_slli_epi32(_mm256_sub_epi32(acc[u][r][h], sums), 7);
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
  alignas(32) float values[R][16];
#pragma GCC unroll 6
  for (int r = 0; r < R; ++r)
#pragma GCC unroll 2
    for (int h = 0; h < 2; ++h) {
      __m256i sum = acc[0][r][h];
#pragma GCC unroll 4
      for (int u = 1; u < kPhases; ++u) sum = _mm256_add_epi32(sum, acc[u][r][h]);
      const __m256 scale = _mm256_mul_ps(_mm256_set1_ps(t.row_scale[r]), _mm256_loadu_ps(t.weight_scale + 8 * h));
      const __m256 value =
          _mm256_add_ps(_mm256_mul_ps(_mm256_cvtepi32_ps(sum), scale), _mm256_loadu_ps(t.bias + 8 * h));
      _mm256_store_ps(values[r] + 8 * h, value);
    }
  activate<true>(values[0], R * 16, t.activation);
  for (int r = 0; r < R; ++r) store_row(t, values[r], t.y + r * t.y_stride);
}

template <bool kVnni>
struct Avx2 {
  static constexpr int kRows = 6;
  static constexpr int kColumns = 16;
  static constexpr int kValueBytes = kVnni ? 1 : 2;

  static float quantize_row(const void* x, FloatType type, int64_t k, uint8_t* out, int64_t step) {
    switch (type) {
      case FloatType::kFloat32:
        return quantize_row_of<FloatType::kFloat32, kVnni>(x, k, out, step);
      case FloatType::kBFloat16:
        return quantize_row_of<FloatType::kBFloat16, kVnni>(x, k, out, step);
      case FloatType::kFloat16:
        return quantize_row_of<FloatType::kFloat16, kVnni>(x, k, out, step);
    }
    return 0;
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

// Flop rates of one core, from registers alone: what the kernels are measured against. bench/ratios.py compiles it.
#include <immintrin.h>

#define UNROLL _Pragma("GCC unroll 16")

// Each runs `rounds` times kSums independent multiply-adds and gives the flop done, or 0 where the processor cannot.
extern "C" double fma_avx512(long rounds);
extern "C" double fma_avx2(long rounds);
extern "C" double dot_bf16(long rounds);

namespace {
constexpr int kSums = 12;  // hides the latency, and fits the 16 registers of AVX2
volatile float sink;
}  // namespace

__attribute__((target("avx512f"))) static double run_avx512(long rounds) {
  __m512 sums[kSums], x = _mm512_set1_ps(0.999f), y = _mm512_set1_ps(0.001f);
  UNROLL for (int i = 0; i < kSums; ++i) sums[i] = _mm512_set1_ps(float(i));
  for (long round = 0; round < rounds; ++round)
    UNROLL for (int i = 0; i < kSums; ++i) sums[i] = _mm512_fmadd_ps(sums[i], x, y);
  UNROLL for (int i = 1; i < kSums; ++i) sums[0] = _mm512_add_ps(sums[0], sums[i]);
  sink = _mm512_reduce_add_ps(sums[0]);
  return 2.0 * 16 * kSums * double(rounds);
}

__attribute__((target("avx2,fma"))) static double run_avx2(long rounds) {
  __m256 sums[kSums], x = _mm256_set1_ps(0.999f), y = _mm256_set1_ps(0.001f);
  UNROLL for (int i = 0; i < kSums; ++i) sums[i] = _mm256_set1_ps(float(i));
  for (long round = 0; round < rounds; ++round)
    UNROLL for (int i = 0; i < kSums; ++i) sums[i] = _mm256_fmadd_ps(sums[i], x, y);
  UNROLL for (int i = 1; i < kSums; ++i) sums[0] = _mm256_add_ps(sums[0], sums[i]);
  sink = sums[0][0];
  return 2.0 * 8 * kSums * double(rounds);
}

__attribute__((target("avx512f,avx512bf16"))) static double run_bf16(long rounds) {
  __m512 sums[kSums];
  const __m512bh x = (__m512bh)_mm512_set1_ps(0.999f), y = (__m512bh)_mm512_set1_ps(0.001f);
  UNROLL for (int i = 0; i < kSums; ++i) sums[i] = _mm512_set1_ps(float(i));
  for (long round = 0; round < rounds; ++round)
    UNROLL for (int i = 0; i < kSums; ++i) sums[i] = _mm512_dpbf16_ps(sums[i], x, y);
  UNROLL for (int i = 1; i < kSums; ++i) sums[0] = _mm512_add_ps(sums[0], sums[i]);
  sink = _mm512_reduce_add_ps(sums[0]);
  return 4.0 * 16 * kSums * double(rounds);
}

double fma_avx512(long rounds) { return __builtin_cpu_supports("avx512f") ? run_avx512(rounds) : 0; }
double fma_avx2(long rounds) {
  return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") ? run_avx2(rounds) : 0;
}
double dot_bf16(long rounds) { return __builtin_cpu_supports("avx512bf16") ? run_bf16(rounds) : 0; }

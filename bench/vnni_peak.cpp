// Prints the vpdpbusd operations per second, in 10^9, that one thread of this machine reaches: chains in registers.
// Built and run by bench_int8_linear.py: g++ -O2 -mavx512f -mavx512vnni vnni_peak.cpp
#include <immintrin.h>

#include <algorithm>
#include <chrono>
#include <cstdio>

#define UNROLL _Pragma("GCC unroll 16")

namespace {
constexpr int kSums = 12;  // hides the latency on two ports
volatile int sink;

__attribute__((noinline)) void multiply(int rounds) {
  __m512i sums[kSums], x = _mm512_set1_epi8(1), y = _mm512_set1_epi8(2);
  UNROLL for (int i = 0; i < kSums; ++i) sums[i] = _mm512_set1_epi32(i);
  for (int round = 0; round < rounds; ++round)
    UNROLL for (int i = 0; i < kSums; ++i) sums[i] = _mm512_dpbusd_epi32(sums[i], x, y);
  UNROLL for (int i = 1; i < kSums; ++i) sums[0] = _mm512_xor_si512(sums[0], sums[i]);
  sink = _mm512_cvtsi512_si32(sums[0]);
}
}  // namespace

int main() {
  double best = 0;
  for (int repeat = 0; repeat < 50; ++repeat) {
    constexpr int kRounds = 100000;
    const auto begin = std::chrono::steady_clock::now();
    multiply(kRounds);
    const std::chrono::duration<double> time = std::chrono::steady_clock::now() - begin;
    best = std::max(best, 128e-9 * kSums * kRounds / time.count());  // 64 products and 64 sums each
  }
  std::printf("%.1f\n", best);
}

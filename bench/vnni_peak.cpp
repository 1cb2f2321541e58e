// Prints the vpdpbusd operations per second, in 10^9, that one thread of this machine reaches: 24 chains in registers.
// Built and run by bench_int8_linear.py: g++ -O2 -mavx512f -mavx512vnni vnni_peak.cpp
#include <immintrin.h>

#include <algorithm>
#include <chrono>
#include <cstdio>

int main() {
  double best = 0;
  const __m512i a = _mm512_set1_epi8(1), b = _mm512_set1_epi8(2);
  __m512i acc[24] = {};
  for (int repeat = 0; repeat < 50; ++repeat) {
    constexpr int kSteps = 50000;
    const auto begin = std::chrono::steady_clock::now();
    for (int step = 0; step < kSteps; ++step)
#pragma GCC unroll 24
      for (auto& sum : acc) asm volatile("vpdpbusd %2, %1, %0" : "+v"(sum) : "v"(a), "v"(b));
    const std::chrono::duration<double> time = std::chrono::steady_clock::now() - begin;
    best = std::max(best, 128e-9 * 24 * kSteps / time.count());  // 64 products and 64 sums each
  }
  std::printf("%.1f\n", best);
}

// Which instruction sets this machine has, asked once at run time, and how to compile for one of them: the build itself
// uses no -march, so every binary runs on any x86-64 (and elsewhere, without these kernels).
//
//   FASTCL_AVX512_BEGIN            // everything is #included before: a header's inline function compiled in a region
//   namespace { ...kernels... }    // would be shared with, and crash, callers on older machines
//   FASTCL_TARGET_END
//
//   if (cpu_has_avx512_vnni()) ...
//
// The environment variable FASTCL_CPU = portable | avx2 | avx512 sets an upper limit (for tests), and avx512_bf16 uses
// bfloat16 products even where they are the slower ones; it is read once.
#pragma once

#include <cstdlib>
#include <stdexcept>
#include <string>

#if (defined(__GNUC__) || defined(__clang__)) && defined(__x86_64__)
#define FASTCL_X86_DISPATCH 1
#include <immintrin.h>
#else
#define FASTCL_X86_DISPATCH 0
#endif

#if FASTCL_X86_DISPATCH
#define FASTCL_PRAGMA(text) _Pragma(#text)
#if defined(__clang__)
#define FASTCL_TARGET_BEGIN(isa) FASTCL_PRAGMA(clang attribute push(__attribute__((target(isa))), apply_to = function))
#define FASTCL_TARGET_END FASTCL_PRAGMA(clang attribute pop)
#define FASTCL_WIDE ""
#else
#define FASTCL_TARGET_BEGIN(isa) FASTCL_PRAGMA(GCC push_options) FASTCL_PRAGMA(GCC target(isa))
#define FASTCL_TARGET_END FASTCL_PRAGMA(GCC pop_options)
#define FASTCL_WIDE ",prefer-vector-width=512"  // of loops that the compiler turns into vectors
#endif
// One region for each of the questions below.
#define FASTCL_AVX2_BEGIN FASTCL_TARGET_BEGIN("avx2,fma,f16c")
#define FASTCL_AVX512_BEGIN FASTCL_TARGET_BEGIN("avx2,fma,f16c,avx512f,avx512bw,avx512dq,avx512vl" FASTCL_WIDE)
#define FASTCL_AVX512_VNNI_BEGIN \
  FASTCL_TARGET_BEGIN("avx2,fma,f16c,avx512f,avx512bw,avx512dq,avx512vl,avx512vnni" FASTCL_WIDE)
#define FASTCL_AVX512_BF16_BEGIN \
  FASTCL_TARGET_BEGIN("avx2,fma,f16c,avx512f,avx512bw,avx512dq,avx512vl,avx512bf16" FASTCL_WIDE)
#endif

namespace fastcl {

// Tells the processor that this thread is spinning.
inline void cpu_relax() {
#if FASTCL_X86_DISPATCH
  __builtin_ia32_pause();
#elif defined(__aarch64__) && defined(__GNUC__)
  asm volatile("yield");
#endif
}

enum class CpuLevel { kPortable, kAvx2, kAvx512, kAvx512Bf16 };

// The most that FASTCL_CPU allows.
inline CpuLevel cpu_limit() {
  static const CpuLevel limit = [] {
    const char* text = std::getenv("FASTCL_CPU");
    const std::string name = text ? text : "";
    if (name == "portable") return CpuLevel::kPortable;
    if (name == "avx2") return CpuLevel::kAvx2;
    if (name.empty() || name == "avx512") return CpuLevel::kAvx512;
    if (name == "avx512_bf16") return CpuLevel::kAvx512Bf16;
    throw std::runtime_error("FASTCL_CPU: expected portable, avx2, avx512 or avx512_bf16, got '" + name + "'");
  }();
  return limit;
}

#if FASTCL_X86_DISPATCH

// AVX2, FMA and F16C.
inline bool cpu_has_avx2() {
  static const bool has = cpu_limit() >= CpuLevel::kAvx2 && __builtin_cpu_supports("avx2") &&
                          __builtin_cpu_supports("fma") && __builtin_cpu_supports("f16c");
  return has;
}

// The above and vpdpbusd on 256 bits. FASTCL_CPU=avx2 means a machine without it.
inline bool cpu_has_avx_vnni() {
  static const bool has = cpu_limit() > CpuLevel::kAvx2 && cpu_has_avx2() && __builtin_cpu_supports("avxvnni");
  return has;
}

// AVX-512 F, BW, DQ and VL.
inline bool cpu_has_avx512() {
  static const bool has = cpu_limit() >= CpuLevel::kAvx512 && cpu_has_avx2() && __builtin_cpu_supports("avx512f") &&
                          __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512dq") &&
                          __builtin_cpu_supports("avx512vl");
  return has;
}

// The above and vpdpbusd, products of u8 and s8.
inline bool cpu_has_avx512_vnni() {
  static const bool has = cpu_has_avx512() && __builtin_cpu_supports("avx512vnni");
  return has;
}

// The above (without VNNI) and vdpbf16ps, products of bfloat16, where they are faster than float32's: AMD's do twice
// the flop, Intel's half (measured on a Xeon of model 207: 92 against 187 GFLOP/s a core).
inline bool cpu_has_fast_bf16() {
  static const bool has = cpu_has_avx512() && __builtin_cpu_supports("avx512bf16") &&
                          (__builtin_cpu_is("amd") || cpu_limit() == CpuLevel::kAvx512Bf16);
  return has;
}

#else

inline bool cpu_has_avx2() { return false; }
inline bool cpu_has_avx_vnni() { return false; }
inline bool cpu_has_avx512() { return false; }
inline bool cpu_has_avx512_vnni() { return false; }
inline bool cpu_has_fast_bf16() { return false; }

#endif

}  // namespace fastcl

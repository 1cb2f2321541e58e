// Vectors of floats, one struct of static functions per instruction set (simd_portable.h, simd_avx2.h, simd_avx512.h),
// so that a kernel is a template over them. A file for one instruction set opens its region (cpu.h) and then includes
// the struct and the kernels. Inside a region nothing of the standard library may be instantiated: the linker could
// keep that copy for the whole program, and it would not run on a smaller processor.
#pragma once

#include <cstdint>
#include <cstring>

#include "common/cpu.h"
#include "common/portable.h"

#if FASTCL_X86_DISPATCH
#include <immintrin.h>
#endif

#if defined(__GNUC__)
#define FASTCL_NOINLINE __attribute__((noinline))
#define FASTCL_PREFETCH(address) __builtin_prefetch(address)
#else
#define FASTCL_NOINLINE __declspec(noinline)
#define FASTCL_PREFETCH(address) (void)(address)
#endif

namespace fastcl {

// 2^f on [-0.5, 0.5], minimax of degree 5, relative error 1e-7; highest power first.
constexpr float kExp2Coefficients[6] = {1.327647115e-03f, 9.675541328e-03f, 5.550713276e-02f,
                                        2.402211972e-01f, 6.931469671e-01f, 1.000000072e+00f};
// Adding 1.5 * 2^23 rounds to an integer that then stands in the lowest bits of the word.
constexpr float kRoundMagic = 12582912.f;

}  // namespace fastcl

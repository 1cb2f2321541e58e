// What differs between compilers, and nothing else.
#pragma once

// Compiled for the host, and by nvcc for the device too.
#if defined(__CUDACC__)
#define FASTCL_HD __host__ __device__
#else
#define FASTCL_HD
#endif

// Compiles a function once for AVX-512, once for AVX2 and once for any x86-64; the loader picks. Nothing is contracted
// or reordered (-ffp-contract=off), so all give the same bits. Functions called inside must be FASTCL_INLINE.
#if defined(__x86_64__) && defined(__GNUC__) && !defined(__clang__) && defined(__linux__) && \
    !defined(__SANITIZE_ADDRESS__) && !defined(__SANITIZE_THREAD__) && !defined(__CUDACC__)
#define FASTCL_MULTIVERSION __attribute__((target_clones("arch=x86-64-v4", "arch=x86-64-v3", "default")))
#else
#define FASTCL_MULTIVERSION
#endif

#if defined(__GNUC__)
#define FASTCL_INLINE inline __attribute__((always_inline))
#define FASTCL_INLINE_LAMBDA __attribute__((always_inline))
#else
#define FASTCL_INLINE __forceinline
#define FASTCL_INLINE_LAMBDA
#endif

#if defined(__CUDACC__)
#define FASTCL_UNROLL _Pragma("unroll")
#elif defined(__GNUC__)
#define FASTCL_UNROLL _Pragma("GCC unroll 16")
#else
#define FASTCL_UNROLL
#endif

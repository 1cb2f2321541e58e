// Kernels that the emulator itself is tested with, each with bugs to plant: a template argument, so that a variant
// differs from the right kernel in one place.
#pragma once

#include <cstdint>

#include "common/cuda/ptx.h"

namespace fastcl::samples {

using namespace fastcl::cuda;

enum Bug {
  kNone,
  kMissingBarrier,
  kMissingCopyWait,
  kRefilledStage,  // a stage is overwritten while it is still read
  kDivergentBarrier,
  kOnePastTheEdge,   // reads one row past the last
  kWrongMask,        // half of the lanes are left out of a reduction
  kLostTail,         // the columns after the last whole vector are left out
  kMissingFence,     // results are announced before they can be seen
  kPastShared,       // writes one element past a shared array
  kSwappedOperands,  // b0 and b1, inside the inline assembly
  kWrongCopySize,    // always 16 bytes, inside the inline assembly
};

// ---- products on tensor cores: c [m, n] = a [m, k] b [n, k]^T ----

struct Bf16Product {
  using Element = __nv_bfloat16;
  using Sum = float;
  static __device__ __forceinline__ void multiply(Sum (&d)[4], const unsigned (&a)[4], unsigned b0, unsigned b1) {
    mma_m16n8k16_bf16(d, a, b0, b1);
  }
};
struct F16Product {
  using Element = __half;
  using Sum = float;
  static __device__ __forceinline__ void multiply(Sum (&d)[4], const unsigned (&a)[4], unsigned b0, unsigned b1) {
    mma_m16n8k16_f16(d, a, b0, b1);
  }
};
struct F16ProductSm75 {
  using Element = __half;
  using Sum = float;
  static __device__ __forceinline__ void multiply(Sum (&d)[4], const unsigned (&a)[4], unsigned b0, unsigned b1) {
    const unsigned first[2] = {a[0], a[1]}, second[2] = {a[2], a[3]};
    mma_m16n8k8_f16(d, first, b0);
    mma_m16n8k8_f16(d, second, b1);
  }
};
struct Tf32Product {
  using Element = float;
  using Sum = float;
  static __device__ __forceinline__ void multiply(Sum (&d)[4], const unsigned (&a)[4], unsigned b0, unsigned b1) {
    const unsigned rounded[4] = {to_tf32(__uint_as_float(a[0])), to_tf32(__uint_as_float(a[1])),
                                 to_tf32(__uint_as_float(a[2])), to_tf32(__uint_as_float(a[3]))};
    mma_m16n8k8_tf32(d, rounded, to_tf32(__uint_as_float(b0)), to_tf32(__uint_as_float(b1)));
  }
};
struct S8Product {
  using Element = int8_t;
  using Sum = int;
  static __device__ __forceinline__ void multiply(Sum (&d)[4], const unsigned (&a)[4], unsigned b0, unsigned b1) {
    mma_m16n8k32_s8(d, a, b0, b1);
  }
};

#if !defined(FASTCL_EMULATED)
// Wrong assembly, which g++ never sees.
struct SwappedBf16Product : Bf16Product {
  static __device__ __forceinline__ void multiply(Sum (&d)[4], const unsigned (&a)[4], unsigned b0, unsigned b1) {
#if __CUDA_ARCH__ >= 800
    asm volatile(
        "mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%9,%8}, {%0,%1,%2,%3};"
        : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
#endif
  }
};
__device__ __forceinline__ void copy_16_always(void* shared, const void* source, int) {
#if __CUDA_ARCH__ >= 800
  asm volatile("cp.async.cg.shared.global [%0], [%1], 16, 16;" ::"r"(shared_address(shared)), "l"(source) : "memory");
#endif
}
#else
struct SwappedBf16Product : Bf16Product {};
__device__ inline void copy_16_always(void* shared, const void* source, int bytes) {
  cp_async_16(shared, source, bytes);
}
#endif

constexpr int kTile = 64, kStages = 3, kRowBytes = 64, kGemmThreads = 128;
constexpr int kGemmSharedBytes = kStages * 2 * kTile * kRowBytes;

// Rows of 64 bytes in four chunks of 16; every eight rows that ldmatrix asks for lie in different banks.
__device__ __forceinline__ int swizzled(int row, int chunk) {
  return row * kRowBytes + ((chunk ^ ((row >> 1) & 3)) << 4);
}

// A row is `row_bytes` long, a multiple of 16. 2 x 2 warps, each of 32 x 32 of the block's 64 x 64.
template <class Product, Bug bug>
__global__ void __launch_bounds__(kGemmThreads)
    gemm(const typename Product::Element* a, const typename Product::Element* b, float* c, int m, int n,
         int row_bytes) {
  FASTCL_DYNAMIC_SHARED(shared);
  const int thread = threadIdx.x, lane = thread % 32, warp = thread / 32;
  const int warp_row = (warp % 2) * 32, warp_column = (warp / 2) * 32;
  const int first_row = blockIdx.y * kTile, first_column = blockIdx.x * kTile;

  const auto load_rows = [&](const void* matrix, int first, int rows, int step, unsigned char* to) {
    for (int i = thread; i < kTile * 4; i += kGemmThreads) {
      const int row = i / 4, chunk = i % 4, byte = step * kRowBytes + chunk * 16;
      const bool inside = first + row < rows + (bug == kOnePastTheEdge) && byte < row_bytes;
      const char* from =
          static_cast<const char*>(matrix) + (inside ? static_cast<size_t>(first + row) * row_bytes + byte : 0);
      if (bug == kWrongCopySize)
        copy_16_always(to + swizzled(row, chunk), from, inside ? 16 : 0);
      else
        cp_async_16(to + swizzled(row, chunk), from, inside ? 16 : 0);
    }
  };
  const auto load = [&](int step, int stage) {
    load_rows(a, first_row, m, step, shared + stage * kTile * kRowBytes);
    load_rows(b, first_column, n, step, shared + (kStages + stage) * kTile * kRowBytes);
  };

  typename Product::Sum sum[2][4][4] = {};
  const int steps = (row_bytes + kRowBytes - 1) / kRowBytes;
  for (int stage = 0; stage < kStages - 1; ++stage) {
    if (stage < steps) load(stage, stage);
    cp_async_commit();
  }
  for (int step = 0; step < steps; ++step) {
    if (bug != kMissingCopyWait) cp_async_wait<kStages - 2>();
    if (bug != kMissingBarrier) __syncthreads();
    const int next = step + kStages - 1;
    if (next < steps) load(next, (bug == kRefilledStage ? step : next) % kStages);
    cp_async_commit();
    const unsigned char* rows = shared + step % kStages * kTile * kRowBytes;
    const unsigned char* columns = shared + (kStages + step % kStages) * kTile * kRowBytes;
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      unsigned from_a[2][4], from_b[2][4];
#pragma unroll
      for (int i = 0; i < 2; ++i) {
        ldmatrix_x4(from_a[i], rows + swizzled(warp_row + i * 16 + lane % 16, half * 2 + lane / 16));
        ldmatrix_x4(from_b[i],
                    columns + swizzled(warp_column + i * 16 + lane % 8 + lane / 16 * 8, half * 2 + lane / 8 % 2));
      }
#pragma unroll
      for (int i = 0; i < 2; ++i)
#pragma unroll
        for (int j = 0; j < 4; ++j)
          Product::multiply(sum[i][j], from_a[i], from_b[j / 2][j % 2 * 2], from_b[j / 2][j % 2 * 2 + 1]);
    }
  }
#pragma unroll
  for (int i = 0; i < 2; ++i)
#pragma unroll
    for (int j = 0; j < 4; ++j)
#pragma unroll
      for (int v = 0; v < 4; ++v) {
        const int row = first_row + warp_row + i * 16 + lane / 4 + v / 2 * 8;
        const int column = first_column + warp_column + j * 8 + lane % 4 * 2 + v % 2;
        if (row < m && column < n) c[static_cast<size_t>(row) * n + column] = static_cast<float>(sum[i][j][v]);
      }
}

// ---- sums of rows: shuffles, shared memory reused from row to row, vector loads and a tail ----

constexpr int kSumThreads = 128;

// out[row] = sum of x[row, :]; the blocks share the rows out.
template <Bug bug>
__global__ void __launch_bounds__(kSumThreads) row_sums(const float* x, float* out, int rows, int columns) {
  FASTCL_SHARED(float, of_warp, [kSumThreads / 32]);
  const int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
  for (int row = blockIdx.x; row < rows; row += gridDim.x) {
    const float* from = x + static_cast<size_t>(row) * columns;
    float sum = 0.f;
    const int end = bug == kLostTail ? columns / 4 * 4 : columns;
    for (int i = threadIdx.x; i < end; i += kSumThreads) sum += from[i];
    for (int offset = 16; offset > 0; offset /= 2) {
      if (bug == kWrongMask) {
        if (lane < 16) sum += __shfl_down_sync(0x0000FFFFu, sum, offset);
      } else {
        sum += __shfl_down_sync(0xFFFFFFFFu, sum, offset);
      }
    }
    if (lane == 0) of_warp[warp + (bug == kPastShared)] = sum;
    if (bug == kDivergentBarrier) {
      if (warp > 0) __syncthreads();
    } else {
      __syncthreads();
    }
    if (threadIdx.x == kSumThreads - 1) {
      float total = 0.f;
      for (int i = 0; i < kSumThreads / 32; ++i) total += of_warp[i];
      out[row] = total;
    }
    if (bug != kMissingBarrier) __syncthreads();  // before the next row overwrites what is read here
  }
}

// ---- one number from many blocks: the last block to finish adds up, in order ----

// total = sum of x[0 .. count); partial [gridDim.x]; counter starts at zero and ends there.
template <Bug bug>
__global__ void __launch_bounds__(kSumThreads)
    total_sum(const float* x, float* partial, unsigned* counter, float* total, int count) {
  FASTCL_SHARED(float, of_warp, [kSumThreads / 32]);
  FASTCL_SHARED(bool, is_last, );
  const int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
  float sum = 0.f;
  for (int i = blockIdx.x * kSumThreads + threadIdx.x; i < count; i += gridDim.x * kSumThreads) sum += x[i];
  for (int offset = 16; offset > 0; offset /= 2) sum += __shfl_xor_sync(0xFFFFFFFFu, sum, offset);
  if (lane == 0) of_warp[warp] = sum;
  __syncthreads();
  if (threadIdx.x == 0) {
    for (int i = 1; i < kSumThreads / 32; ++i) sum += of_warp[i];
    partial[blockIdx.x] = sum;
    if (bug != kMissingFence) __threadfence();
    is_last = atomicAdd(counter, 1u) == gridDim.x - 1;
    if (bug != kMissingFence) __threadfence();
  }
  __syncthreads();
  if (is_last && threadIdx.x == 0) {
    float in_all = 0.f;
    for (unsigned i = 0; i < gridDim.x; ++i) in_all += partial[i];
    *total = in_all;
    *counter = 0;
  }
}

}  // namespace fastcl::samples

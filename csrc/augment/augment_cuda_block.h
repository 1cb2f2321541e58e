// What the threads of a block do together: walk over a matrix, sum, find extremes; and their numbers' arithmetic.
#pragma once

#include "augment/augment_color.h"
#include "common/cuda/launch.h"

namespace fastcl {

constexpr int kMostWarps = 16;

// One number of one thread, as augment_color.h wants it.
struct ThreadNumber {
  using F = float;
  static __device__ __forceinline__ float set(float v) { return v; }
  static __device__ __forceinline__ float add(float a, float b) { return a + b; }
  static __device__ __forceinline__ float sub(float a, float b) { return a - b; }
  static __device__ __forceinline__ float mul(float a, float b) { return a * b; }
  static __device__ __forceinline__ float fma(float a, float b, float c) { return fmaf(a, b, c); }
  static __device__ __forceinline__ float max(float a, float b) { return fmaxf(a, b); }
  static __device__ __forceinline__ float min(float a, float b) { return fminf(a, b); }
  static __device__ __forceinline__ float abs(float a) { return fabsf(a); }
  static __device__ __forceinline__ float select_equal(float a, float b, float value, float other) {
    return a == b ? value : other;
  }
};
using Color = AugmentColor<ThreadNumber>;

// Calls f(row, column) for each of a matrix: rows by groups of lanes, so that few columns leave few lanes idle.
template <class F>
__device__ __forceinline__ void for_each(int rows, int columns, F&& f) {
  int shift = 5;
  while (shift > 2 && 1 << (shift - 1) >= columns) --shift;
  const int lanes = 1 << shift, lane = int(threadIdx.x) & (lanes - 1);
  for (int row = int(threadIdx.x) >> shift; row < rows; row += int(blockDim.x) >> shift)
    for (int column = lane; column < columns; column += lanes) f(row, column);
}

__device__ __forceinline__ double warp_total(double v) {
#pragma unroll
  for (int step = 16; step; step /= 2) v += __shfl_xor_sync(~0u, v, step);
  return v;
}

// The same for every thread; a barrier of the block comes first and last.
__device__ __forceinline__ double block_total(double v) {
  FASTCL_SHARED(double, totals, [kMostWarps]);
  v = warp_total(v);
  __syncthreads();
  if (threadIdx.x % 32 == 0) totals[threadIdx.x / 32] = v;
  __syncthreads();
  v = 0;
  for (int warp = 0; warp < int(blockDim.x) / 32; ++warp) v += totals[warp];
  return v;
}

struct Extremes {
  float low, high;
};
__device__ __forceinline__ Extremes block_extremes(Extremes e) {
  FASTCL_SHARED(float, extremes, [kMostWarps][2]);
#pragma unroll
  for (int step = 16; step; step /= 2) {
    e.low = fminf(e.low, __shfl_xor_sync(~0u, e.low, step));
    e.high = fmaxf(e.high, __shfl_xor_sync(~0u, e.high, step));
  }
  __syncthreads();
  if (threadIdx.x % 32 == 0) {
    extremes[threadIdx.x / 32][0] = e.low;
    extremes[threadIdx.x / 32][1] = e.high;
  }
  __syncthreads();
  for (int warp = 0; warp < int(blockDim.x) / 32; ++warp) {
    e.low = fminf(e.low, extremes[warp][0]);
    e.high = fmaxf(e.high, extremes[warp][1]);
  }
  return e;
}

}  // namespace fastcl

// Sums and maxima over the lanes of a warp.
#pragma once

#include "common/cuda/launch.h"

namespace fastcl {

__device__ __forceinline__ int lane_id() { return threadIdx.x & 31; }

// The largest of the warp's values, for each lane.
template <class T>
__device__ __forceinline__ T warp_max(T value) {
#pragma unroll
  for (int step = 16; step; step /= 2) value = max(value, __shfl_xor_sync(~0u, value, step));
  return value;
}

// The sum over kLanes neighbouring lanes, for each of them.
template <int kLanes = 32, class T>
__device__ __forceinline__ T warp_sum(T value) {
#pragma unroll
  for (int step = kLanes / 2; step; step /= 2) value += __shfl_xor_sync(~0u, value, step);
  return value;
}

}  // namespace fastcl

// One axis of a resize and of a blur: which pixels an output is made of, and what they weigh.
#pragma once

#include <cmath>

#include "augment/augment_cuda_block.h"
#include "augment/augment_pixels.h"

namespace fastcl {

// One axis of the antialiased resize; the same expressions as in augment_geometry.h.
struct ResampledAxis {
  int in, out, taps;
  bool cubic_filter, flip;
  double scale, support;
  float inverse;

  __device__ __forceinline__ void describe(int in_, int out_, bool cubic_, bool flip_) {
    in = in_;
    out = out_;
    taps = int(resize_taps(in, out, cubic_));
    cubic_filter = cubic_;
    flip = flip_;
    scale = double(in) / double(out);
    const double stretch = scale > 1.0 ? scale : 1.0;
    inverse = float(1 / stretch);
    support = taps == 1 ? stretch : stretch * filter_radius(cubic_);
  }
  __device__ __forceinline__ double center(int i) const { return scale * (double(flip ? out - 1 - i : i) + 0.5); }
  __device__ __forceinline__ int first(int i) const {
    const double start = center(i) - support + 0.5, last = double(in - taps);
    return int(start < 0.0 ? 0.0 : start < last ? start : last);
  }
  // Of tap t of output i, before the weights are divided by their sum.
  __device__ __forceinline__ float weight(int t, int i) const {
    if (taps == 1) return 1;
    const float x = (float(double(first(i)) - (center(i) - 0.5)) + float(t)) * inverse;
    return cubic_filter ? cubic(x) : triangle(x);
  }
  __device__ __forceinline__ float inverse_sum(int i) const {
    double sum = 0;
#pragma unroll 1
    for (int t = 0; t < taps; ++t) sum += double(weight(t, i));
    return 1 / float(sum);
  }
  // first [n] and weight [taps, n] of the outputs from `begin` on.
  __device__ __forceinline__ void build(int begin, int n, int* first_of, float* weight_of) const {
    for (int i = int(threadIdx.x); i < n; i += int(blockDim.x)) {
      const float share = inverse_sum(begin + i);
      first_of[i] = first(begin + i);
#pragma unroll 1
      for (int t = 0; t < taps; ++t) weight_of[t * n + i] = weight(t, begin + i) * share;
    }
  }
};

// One axis of the blur; weights below float's precision are left out.
struct BlurAxis {
  int radius, reach;
  double spread, sum;  // 2 sigma^2; of the taps

  __device__ __forceinline__ double tap(int d) const { return exp(-double(d) * double(d) / spread); }
  __device__ __forceinline__ float weight(int d) const { return d <= reach ? float(tap(d) / sum) : 0.f; }
  // By a whole warp.
  __device__ __forceinline__ void measure(int radius_, float sigma) {
    radius = radius_;
    spread = 2 * double(sigma) * double(sigma);
    double total = 0;
    int most = 0;
    for (int d = 1 + int(threadIdx.x) % 32; d <= radius; d += 32) {
      const double value = tap(d);
      if (!(value > 1e-7)) break;
      total += 2 * value;
      most = d;
    }
    sum = 1 + warp_total(total);
#pragma unroll
    for (int step = 16; step; step /= 2) most = max(most, __shfl_xor_sync(~0u, most, step));
    reach = most;
  }
};

// A reflection about the first and the last of n, for i from -(n - 1) to 2 (n - 1); beyond, some of the n.
__device__ __forceinline__ int reflected(int i, int n) {
  i = i < 0 ? -i : i;
  i = i < n ? i : 2 * (n - 1) - i;
  return i < 0 ? 0 : i;
}

}  // namespace fastcl

// The weights that the CPU kernel resizes and blurs by. Included by augment_cpu.cpp alone.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstring>

#include "augment/augment_pixels.h"
#include "augment/augment_rows.h"
#include "common/buffer.h"
#include "common/portable.h"

namespace fastcl {
namespace {

// Antialiased resampling along one axis, as torchvision and PIL: a filter stretched by max(in / out, 1). All taps lie
// inside; those that the filter does not reach weigh 0. Outputs beyond `out` repeat the last.
template <bool kCubic>
FASTCL_INLINE void filter_taps(int64_t in, int64_t out, bool flip, int64_t taps, int64_t stride,
                               int32_t* __restrict first, float* __restrict weight, double* __restrict center,
                               double* __restrict sum) {
  const double scale = double(in) / double(out), stretch = std::max(scale, 1.0), inverse = 1 / stretch;
  const double support = stretch * (kCubic ? 2 : 1);
  const double last = double(in - taps);
  for (int64_t i = 0; i < stride; ++i) {
    const int32_t kept = int32_t(i < out ? i : out - 1), at = flip ? int32_t(out) - 1 - kept : kept;
    center[i] = scale * (double(at) + 0.5);
    const double start = std::max(center[i] - support + 0.5, 0.0);
    first[i] = int32_t(start < last ? start : last);
    center[i] -= 0.5;
    sum[i] = 0;
  }
  if (taps == 1) {
    for (int64_t i = 0; i < stride; ++i) {
      first[i] = in == out ? int32_t(center[i]) : first[i];
      weight[i] = 1;
    }
    return;
  }
  for (int64_t t = 0; t < taps; ++t) {
    float* __restrict w = weight + t * stride;
    for (int64_t i = 0; i < stride; ++i) {
      const double x = (double(first[i] + int32_t(t)) - center[i]) * inverse;
      const double value = kCubic ? cubic(x) : triangle(x);
      w[i] = float(value);
      sum[i] += value;
    }
  }
  for (int64_t i = 0; i < stride; ++i) sum[i] = 1 / sum[i];
  for (int64_t t = 0; t < taps; ++t)
    for (int64_t i = 0; i < stride; ++i) weight[t * stride + i] = float(double(weight[t * stride + i]) * sum[i]);
}

FASTCL_MULTIVERSION void triangle_taps(int64_t in, int64_t out, bool flip, int64_t taps, int64_t stride,
                                       int32_t* __restrict first, float* __restrict weight, double* __restrict center,
                                       double* __restrict sum) {
  filter_taps<false>(in, out, flip, taps, stride, first, weight, center, sum);
}

FASTCL_MULTIVERSION void cubic_taps(int64_t in, int64_t out, bool flip, int64_t taps, int64_t stride,
                                    int32_t* __restrict first, float* __restrict weight, double* __restrict center,
                                    double* __restrict sum) {
  filter_taps<true>(in, out, flip, taps, stride, first, weight, center, sum);
}

// The memory of one axis' taps, for any crop of images of `in_most` pixels.
struct Axis {
  Axis(int64_t in_most, int64_t out, bool cubic_)
      : cubic(cubic_),
        first(row_steps(out)),
        base(row_steps(out)),
        weight(std::max(std::min<int64_t>(in_most, cubic ? 4 : 2), resize_taps(in_most, out, cubic)) * row_steps(out)),
        center(row_steps(out)),
        sum(row_steps(out)) {}

  void build(int64_t in, int64_t out, bool flip) {
    table = {out, row_steps(out), resize_taps(in, out, cubic), first.get(), weight.get(), base.get(), false, 0};
    (cubic ? cubic_taps : triangle_taps)(in, out, flip, table.taps, table.stride, first.get(), weight.get(),
                                         center.get(), sum.get());
  }

  bool cubic;
  Buffer<int32_t> first, base;
  Buffer<float> weight;
  Buffer<double> center, sum;
  ResizeTaps table{};
};

// A Gaussian kernel; taps below float's precision are left out. Zeros stand around it, as AugmentRows::blur_y wants.
struct Gaussian {
  explicit Gaussian(int64_t radius_most) : memory(2 * radius_most + 1 + 2 * kBlurRows) {}

  void build(int64_t radius, double sigma) {
    const auto tap = [&](int64_t d) { return std::exp(-double(d * d) / (2 * sigma * sigma)); };
    double sum = 1;
    reach = 0;
    for (int64_t d = 1; d <= radius; ++d) {
      const double value = tap(d);
      sum += 2 * value;
      if (!(value > 1e-9)) break;
      reach = d;
    }
    std::memset(memory.get(), 0, size_t(2 * reach + 1 + 2 * kBlurRows) * sizeof(float));
    weight = memory.get() + kBlurRows;
    for (int64_t d = 0; d <= reach; ++d) weight[reach - d] = weight[reach + d] = float(tap(d) / sum);
  }

  Buffer<float> memory;
  int64_t reach = 0;        // taps on either side of the middle
  float* weight = nullptr;  // [2 reach + 1]
};

}  // namespace
}  // namespace fastcl

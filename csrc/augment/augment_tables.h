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

// The memory of one axis' taps, for any crop of images of `in_most` pixels.
struct Axis {
  Axis(int64_t in_most, int64_t out, bool cubic_)
      : cubic(cubic_),
        first(row_steps(out)),
        base(row_steps(out)),
        weight(std::max(std::min<int64_t>(in_most, cubic ? 4 : 2), resize_taps(in_most, out, cubic)) * row_steps(out)) {
  }

  void build(const AugmentRows& rows, int64_t in, int64_t out, bool flip) {
    table = {out, row_steps(out), resize_taps(in, out, cubic), first.get(), weight.get(), base.get(), false, 0};
    rows.resize_taps_of(in, flip, cubic, &table);
  }

  bool cubic;
  Buffer<int32_t> first, base;
  Buffer<float> weight;
  ResizeTaps table{};
};

// A Gaussian kernel; taps below float's precision are left out. Zeros stand around it, as AugmentRows::blur_y wants.
struct Gaussian {
  explicit Gaussian(int64_t radius_most) : memory(2 * radius_most + 1 + 2 * kBlurRows) {}

  void build(int64_t radius, double sigma) {
    // exp(-d^2 / (2 sigma^2)) is a product: of exp(-(2 d - 1) / (2 sigma^2)) and the one before it.
    const double step = std::exp(-1 / (2 * sigma * sigma)), square = step * step;
    double value = 1, ratio = step, sum = 1;
    const auto next = [&] {
      value *= ratio;
      ratio *= square;
    };
    reach = 0;
    for (next(); reach < radius; next(), ++reach) {
      sum += 2 * value;
      if (!(value > 1e-7)) break;
    }
    std::memset(memory.get(), 0, size_t(2 * reach + 1 + 2 * kBlurRows) * sizeof(float));
    weight = memory.get() + kBlurRows;
    value = 1, ratio = step;
    for (int64_t d = 0; d <= reach; next(), ++d) weight[reach - d] = weight[reach + d] = float(value / sum);
  }

  Buffer<float> memory;
  int64_t reach = 0;        // taps on either side of the middle
  float* weight = nullptr;  // [2 reach + 1]
};

}  // namespace
}  // namespace fastcl

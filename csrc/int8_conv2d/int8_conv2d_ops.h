// int8_conv2d between torch and the kernels: what it checks beyond int8_linear_ops.h.
#pragma once

#include <array>
#include <limits>
#include <vector>

#include "int8_conv2d/int8_conv2d.h"
#include "int8_linear/int8_linear_ops.h"

namespace fastcl {

// From the sizes of images [height, width, channels], kernel, stride and dilation (y, x), padding (left, right, top,
// bottom).
inline Int8Patches int8_patches(const char* op, const std::array<int64_t, 3>& image, const std::vector<int64_t>& kernel,
                                const std::vector<int64_t>& stride, const std::vector<int64_t>& padding,
                                const std::vector<int64_t>& dilation) {
  FASTCL_CHECK(kernel.size() == 2 && stride.size() == 2 && dilation.size() == 2 && padding.size() == 4, op,
               ": kernel, stride and dilation must have 2 values and padding 4, got ", kernel.size(), ", ",
               stride.size(), ", ", dilation.size(), " and ", padding.size());
  constexpr int64_t kMost = std::numeric_limits<int32_t>::max();  // so that products of two do not overflow
  for (const auto* values : {&kernel, &stride, &dilation})
    for (int64_t value : *values)
      FASTCL_CHECK(value >= 1 && value <= kMost, op, ": kernel, stride and dilation must be from 1 to ", kMost,
                   ", got ", value);
  for (int64_t value : padding)
    FASTCL_CHECK(value >= 0 && value <= kMost, op, ": padding must be from 0 to ", kMost, ", got ", value);
  Int8Patches p;
  p.height = image[0], p.width = image[1], p.channels = image[2];
  p.kernel_height = kernel[0], p.kernel_width = kernel[1];
  p.stride_y = stride[0], p.stride_x = stride[1];
  p.dilation_y = dilation[0], p.dilation_x = dilation[1];
  p.pad_left = padding[0], p.pad_top = padding[2];
  const int64_t spare_y = p.height + padding[2] + padding[3] - p.dilation_y * (p.kernel_height - 1) - 1;
  const int64_t spare_x = p.width + padding[0] + padding[1] - p.dilation_x * (p.kernel_width - 1) - 1;
  FASTCL_CHECK(spare_y >= 0 && spare_x >= 0, op, ": x must be at least as large as the kernel, got ", p.height, " by ",
               p.width);
  p.out_height = spare_y / p.stride_y + 1, p.out_width = spare_x / p.stride_x + 1;
  return p;
}

// The same from x [B, H, W, C] and weight [N, kernel height, kernel width, C].
inline Int8Patches int8_patches(const char* op, const Tensor& x, const Tensor& weight,
                                const std::vector<int64_t>& stride, const std::vector<int64_t>& padding,
                                const std::vector<int64_t>& dilation) {
  FASTCL_CHECK(weight.dim() == 4, op, ": weight must be [N, kernel height, kernel width, C], got ", shape(weight));
  FASTCL_CHECK(x.dim() == 4 && x.size(3) == weight.size(3), op, ": x must be [B, H, W, ", weight.size(3), "], got ",
               shape(x));
  return int8_patches(op, {x.size(1), x.size(2), x.size(3)}, {weight.size(1), weight.size(2)}, stride, padding,
                      dilation);
}

}  // namespace fastcl

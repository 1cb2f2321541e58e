// int8_conv2d between torch and the kernels: what it checks beyond int8_linear_ops.h.
#pragma once

#include <vector>

#include "int8_conv2d/int8_conv2d.h"
#include "int8_linear/int8_linear_ops.h"

namespace fastcl {

// From x [B, H, W, C], weight [N, kernel height, kernel width, C], stride and dilation (y, x), padding (left, right,
// top, bottom).
inline Int8Patches int8_patches(const Tensor& x, const Tensor& weight, const std::vector<int64_t>& stride,
                                const std::vector<int64_t>& padding, const std::vector<int64_t>& dilation) {
  constexpr const char* kOp = "int8_conv2d";
  FASTCL_CHECK(weight.dim() == 4, kOp, ": weight must be [N, kernel height, kernel width, C], got ", shape(weight));
  FASTCL_CHECK(x.dim() == 4 && x.size(3) == weight.size(3), kOp, ": x must be [B, H, W, ", weight.size(3), "], got ",
               shape(x));
  FASTCL_CHECK(stride.size() == 2 && dilation.size() == 2 && padding.size() == 4, kOp,
               ": stride and dilation must have 2 values and padding 4, got ", stride.size(), ", ", dilation.size(),
               " and ", padding.size());
  for (const auto& values : {stride, dilation})
    for (int64_t value : values) FASTCL_CHECK(value >= 1, kOp, ": stride and dilation must be at least 1, got ", value);
  for (int64_t value : padding) FASTCL_CHECK(value >= 0, kOp, ": padding must not be negative, got ", value);
  Int8Patches p;
  p.height = x.size(1), p.width = x.size(2), p.channels = x.size(3);
  p.kernel_height = weight.size(1), p.kernel_width = weight.size(2);
  p.stride_y = stride[0], p.stride_x = stride[1];
  p.dilation_y = dilation[0], p.dilation_x = dilation[1];
  p.pad_left = padding[0], p.pad_top = padding[2];
  const int64_t spare_y = p.height + padding[2] + padding[3] - p.dilation_y * (p.kernel_height - 1) - 1;
  const int64_t spare_x = p.width + padding[0] + padding[1] - p.dilation_x * (p.kernel_width - 1) - 1;
  FASTCL_CHECK(spare_y >= 0 && spare_x >= 0, kOp, ": x must be at least as large as the kernel, got ", shape(x));
  p.out_height = spare_y / p.stride_y + 1, p.out_width = spare_x / p.stride_x + 1;
  return p;
}

}  // namespace fastcl

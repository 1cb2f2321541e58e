// Convolution as int8_linear.h on patches: row m of its x is what output pixel m sees, gathered as it is quantised, so
// that the patches of an image never stand in memory together. Each patch has its own scale.
#pragma once

#include <cstdint>

namespace fastcl {

struct Int8Patches {
  int64_t height, width, channels;      // of each image, [height, width, channels], contiguous
  int64_t out_height, out_width;        // rows are numbered [batch, out_height, out_width]
  int64_t kernel_height, kernel_width;  // a row is [kernel_height, kernel_width, channels]
  int64_t stride_y, stride_x;
  int64_t dilation_y, dilation_x;
  int64_t pad_top, pad_left;  // of zeros

  bool are_rows() const {  // the patches are x as it stands
    return kernel_height == 1 && kernel_width == 1 && out_height == height && out_width == width && pad_top == 0 &&
           pad_left == 0;
  }
};

}  // namespace fastcl

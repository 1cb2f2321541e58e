// Largest value of each channel within windows of an image: every pair of a range of lines and a range of columns is
// one. Max pooling, adaptive too, with its padding taken off the windows.
//
//   y_bijc = max x_bvuc    over rows[2i] <= v < rows[2i + 1], columns[2j] <= u < columns[2j + 1]; NaN if one is
#pragma once

#include <cstdint>

namespace fastcl {

struct MaxPool2d {
  const void* x;  // [batch, height, width, channels], uint8 or float32
  int64_t batch, height, width, channels;
  const int64_t* rows;     // [out_height, 2], each range within the image and not empty
  const int64_t* columns;  // [out_width, 2], likewise
  int64_t out_height, out_width;
  void* y;  // [batch, out_height, out_width, channels]
};

void max_pool2d_uint8(const MaxPool2d& params);
void max_pool2d_float(const MaxPool2d& params);

}  // namespace fastcl

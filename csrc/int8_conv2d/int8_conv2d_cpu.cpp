#include "int8_conv2d/int8_conv2d_cpu.h"

#include <algorithm>
#include <cstring>

namespace fastcl {

void gather_patch(const Int8Patches& p, const Int8PatchPlace& place, int64_t pixel, uint8_t* out, uint8_t outside) {
  const auto& [image, top, left] = place;
  const int64_t line = p.kernel_width * pixel;
  for (int64_t i = 0; i < p.kernel_height; ++i, out += line) {
    const int64_t y = top + i * p.dilation_y;
    if (y < 0 || y >= p.height) {
      std::memset(out, outside, size_t(line));
    } else if (p.dilation_x == 1) {  // neighbours in the patch are neighbours in the image
      const int64_t begin = std::clamp<int64_t>(-left, 0, p.kernel_width);
      const int64_t end = std::clamp<int64_t>(p.width - left, begin, p.kernel_width);
      std::memset(out, outside, size_t(begin * pixel));
      if (end > begin)
        std::memcpy(out + begin * pixel, image + (y * p.width + left + begin) * pixel, size_t((end - begin) * pixel));
      std::memset(out + end * pixel, outside, size_t((p.kernel_width - end) * pixel));
    } else {
      for (int64_t j = 0; j < p.kernel_width; ++j) {
        const int64_t x = left + j * p.dilation_x;
        if (x < 0 || x >= p.width)
          std::memset(out + j * pixel, outside, size_t(pixel));
        else
          std::memcpy(out + j * pixel, image + (y * p.width + x) * pixel, size_t(pixel));
      }
    }
  }
}

}  // namespace fastcl

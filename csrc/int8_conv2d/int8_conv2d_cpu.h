// The patches of images, one after the other, as rows for int8_linear's kernels.
#pragma once

#include <cstdint>
#include <cstring>

#include "common/portable.h"
#include "int8_conv2d/int8_conv2d.h"

namespace fastcl {

// A patch that starts at (top, left) of its image, some of it perhaps outside.
struct Int8PatchPlace {
  const uint8_t* image;
  int64_t top, left;
};

// Copies any patch to `out`, with bytes of `outside` for what lies there.
void gather_patch(const Int8Patches& patches, const Int8PatchPlace& place, int64_t pixel_bytes, uint8_t* out,
                  uint8_t outside);

namespace {  // a copy for each kernel's file, which compiles it as it may

template <size_t kBytes>
FASTCL_INLINE void copy_ends(const uint8_t* from, int64_t bytes, uint8_t* to) {
  std::memcpy(to, from, kBytes);
  std::memcpy(to + bytes - kBytes, from + bytes - kBytes, kBytes);
}

// In vectors as wide as the caller's: memcpy takes longer to find out what to do.
FASTCL_INLINE void copy_line(const uint8_t* from, int64_t bytes, uint8_t* to) {
  if (bytes >= 64) {
    for (int64_t i = 0; i + 64 < bytes; i += 64) std::memcpy(to + i, from + i, 64);
    std::memcpy(to + bytes - 64, from + bytes - 64, 64);
  } else if (bytes >= 32) {
    copy_ends<32>(from, bytes, to);
  } else if (bytes >= 16) {
    copy_ends<16>(from, bytes, to);
  } else if (bytes >= 8) {
    copy_ends<8>(from, bytes, to);
  } else if (bytes >= 4) {
    copy_ends<4>(from, bytes, to);
  } else {
    for (int64_t i = 0; i < bytes; ++i) to[i] = from[i];
  }
}

class Int8PatchWalk {
 public:
  Int8PatchWalk(const Int8Patches& patches, const void* images, int64_t value_bytes, int64_t row)
      : p_(patches),
        pixel_bytes_(p_.channels * value_bytes),
        line_bytes_(p_.kernel_width * pixel_bytes_),
        x_(row % p_.out_width),
        y_(row / p_.out_width % p_.out_height) {
    place_.image = static_cast<const uint8_t*>(images) + row / (p_.out_width * p_.out_height) * image_bytes();
    place_.top = y_ * p_.stride_y - p_.pad_top;
    place_.left = x_ * p_.stride_x - p_.pad_left;
  }

  void next() {
    place_.left += p_.stride_x;
    if (++x_ < p_.out_width) return;
    x_ = 0;
    place_.left = -p_.pad_left;
    place_.top += p_.stride_y;
    if (++y_ < p_.out_height) return;
    y_ = 0;
    place_.top = -p_.pad_top;
    place_.image += image_bytes();
  }

  bool is_inside() const {
    return place_.top >= 0 && place_.left >= 0 && place_.top + (p_.kernel_height - 1) * p_.dilation_y < p_.height &&
           place_.left + (p_.kernel_width - 1) * p_.dilation_x < p_.width;
  }

  // Where the patch begins, if all of it is inside.
  const uint8_t* begin() const { return place_.image + (place_.top * p_.width + place_.left) * pixel_bytes_; }

  // The patch's values: as they stand in the image, if they stand there in one piece, else gathered in `scratch`.
  // What lies outside is bytes of `outside`.
  FASTCL_INLINE const uint8_t* values(uint8_t* scratch, uint8_t outside = 0) const {
    if (!is_inside() || (p_.dilation_x > 1 && p_.kernel_width > 1)) {
      gather_patch(p_, place_, pixel_bytes_, scratch, outside);
      return scratch;
    }
    const uint8_t* line = begin();
    if (p_.kernel_height == 1) return line;
    const int64_t step = p_.dilation_y * p_.width * pixel_bytes_;
    uint8_t* out = scratch;
    for (int64_t i = 0; i < p_.kernel_height; ++i, line += step, out += line_bytes_) copy_line(line, line_bytes_, out);
    return scratch;
  }

 private:
  int64_t image_bytes() const { return p_.height * p_.width * pixel_bytes_; }

  const Int8Patches& p_;
  int64_t pixel_bytes_, line_bytes_, x_, y_;  // x_, y_: of the output pixel
  Int8PatchPlace place_;
};

}  // namespace
}  // namespace fastcl

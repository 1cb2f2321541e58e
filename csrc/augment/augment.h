// Augmentation in two ops: a recipe and a sample number give one row of parameters, a row and an image give a view.
//
//   crop, antialiased resize, flips -> warp -> colour jitter in the row's order -> grayscale -> blur -> sharpen ->
//   invert -> posterize -> solarize -> autocontrast -> equalize -> normalise -> erase
//
// A stage whose parameters say "identity" is skipped. Values stay float32 between the stages.
#pragma once

#include <cstdint>

namespace fastcl {

enum ColorOp { kNoOp, kBrightness, kContrast, kSaturation, kHue, kColorOps };
enum Crop { kWhole, kRandom, kCenter };
enum FlipAt { kBeforeCrop, kAfterCrop, kAfterWarp };

// One row of the params table; the fields are the columns PARAM_NAMES of fastcl/ops/augment_table.py.
struct AugmentParams {
  float crop_top, crop_left, crop_height, crop_width;  // box in source pixels, taken before the flips
  float hflip, vflip;                                  // 0 or 1
  float map[9];       // output pixel to source pixel, row by row, (x, y, 1) counted from the images' centres
  float color_op[4];  // ColorOp, in the order of application
  float brightness, contrast, saturation;                  // factors
  float hue;                                               // shift in turns of the circle, -0.5 to 0.5
  float grayscale;                                         // 0 or 1
  float blur_sigma;                                        // pixels; 0: no blur
  float blur_radius_x, blur_radius_y;                      // pixels; the kernel has 2 radius + 1 taps
  float sharpen, sharpness;                                // 0 or 1; a factor, 1: unchanged
  float invert;                                            // 0 or 1
  float posterize;                                         // how many levels are left, 0: all
  float solarize;                                          // 0 or 1
  float solarize_threshold;                                // of values from 0 to 1: these and larger ones are inverted
  float autocontrast, equalize;                            // 0 or 1
  float erase_top, erase_left, erase_height, erase_width;  // box in output pixels; a side of 0: nothing is erased
  float erase_seed;                                        // 0: the value given; else of normal noise, below 2^24
};
constexpr int64_t kParams = sizeof(AugmentParams) / sizeof(float);

// What may happen; the fields are RECIPE_NAMES of fastcl/ops/augment_table.py.
struct AugmentRecipe {
  double pass;                            // of several over one image: each draws its own numbers
  double crop;                            // Crop
  double crop_scale_min, crop_scale_max;  // fraction of the image's area
  double crop_ratio_min, crop_ratio_max, crop_log_ratio_min, crop_log_ratio_max;  // width / height
  double hflip_p, hflip_at, vflip_p, vflip_at;                                    // at: FlipAt
  double warp_p;
  double perspective;               // share of half a side by which a corner moves at most; negative: an affine map
  double angle_from, angle_to;      // degrees, clockwise
  double translate_x, translate_y;  // at most, as a fraction of the side; negative: none
  double zoom_min, zoom_max;
  double shear_x_min, shear_x_max, shear_y_min, shear_y_max;  // degrees
  double center_given, center_x, center_y;                    // of the warp, pixels; not given: the image's centre
  double rot90_p;  // quarter turns after the warp; of an output that is not square, half turns
  double jitter_p;
  double brightness_min, brightness_max, contrast_min, contrast_max, saturation_min, saturation_max, hue_min, hue_max;
  double grayscale_p;
  double blur_p, blur_sigma_min, blur_sigma_max;
  double blur_radius_x, blur_radius_y;  // -1: ceil(4 sigma)
  double sharpen_p, sharpness, invert_p, posterize_p, posterize_levels, solarize_p, solarize_threshold;
  double autocontrast_p, equalize_p;
  double erase_p, erase_scale_min, erase_scale_max;  // scale: fraction of the output's area
  double erase_log_ratio_min, erase_log_ratio_max;   // height / width
  double erase_noise;                                // 0 or 1
};
constexpr int64_t kRecipe = sizeof(AugmentRecipe) / sizeof(double);

// Where a batch of draws stands in the stream of all draws, and the sizes that they are for.
struct AugmentStream {
  uint64_t seed;
  uint32_t epoch;
  uint32_t view;                  // < 2^16
  int32_t height, width;          // of the images
  int32_t out_height, out_width;  // of the views
};

struct AugmentSample {
  AugmentRecipe recipe;
  AugmentStream stream;
  const int64_t* index;   // [n], sample numbers
  const int32_t* shapes;  // [n, 3]: the images' heights, widths and channels; null: all are as `stream` says
  int64_t n;
  AugmentParams* params;  // [n]
};

enum class PixelType { kUint8, kFloat32, kBFloat16, kFloat16 };

struct AugmentApply {
  const void* images;  // [n, channels, height, width], kUint8 (0 to 255) or kFloat32 (0 to 1)
  PixelType image_type;
  bool channels_last;  // images lie as [n, height, width, channels]
  int64_t n, channels, height, width;
  // Images of different sizes lie anywhere in `images`, uint8 and channels_last; height and width are the largest.
  const int64_t* offsets;       // [n], where each begins; null: all are height x width, one after another
  const int32_t* shapes;        // [n, 3]: height, width, channels
  const AugmentParams* params;  // [n], checked
  int64_t out_height, out_width;
  bool nearest;              // the warp's interpolation, else bilinear
  bool bicubic;              // the crop's resize, else bilinear
  const float* fill;         // [channels], what a warp shows outside the image, in the images' units; null: none
  const float* mean;         // [channels]
  const float* inverse_std;  // [channels]
  const float* erase;        // [channels], of an erased box, in the output's units
  void* out;                 // [n, channels, out_height, out_width], of out_type
  PixelType out_type;
  bool out_channels_last;  // the output lies as [n, out_height, out_width, channels]
};

inline int64_t pixel_bytes(PixelType type) {
  return type == PixelType::kUint8 ? 1 : type == PixelType::kFloat32 ? 4 : 2;
}

// The problem of image i alone, without its output.
inline AugmentApply image_alone(const AugmentApply& all, int64_t i) {
  AugmentApply one = all;
  const int64_t before = all.offsets ? all.offsets[i] : i * all.channels * all.height * all.width;
  one.images = static_cast<const uint8_t*>(all.images) + before * pixel_bytes(all.image_type);
  one.n = 1;
  one.height = all.offsets ? all.shapes[3 * i] : all.height;
  one.width = all.offsets ? all.shapes[3 * i + 1] : all.width;
  one.offsets = nullptr;
  one.params = all.params + i;
  return one;
}

void augment_sample(const AugmentSample& problem);
// Several views of the same images: all but params, the output and its size are equal.
void augment_apply(const AugmentApply* views, int64_t count);

}  // namespace fastcl

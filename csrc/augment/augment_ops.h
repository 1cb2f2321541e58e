// Augmentation between torch and the kernels: check, allocate, fill the Params; once, for every device.
#pragma once

#include <cstring>
#include <string>
#include <vector>

#include "augment/augment.h"
#include "augment/augment_math.h"
#include "common/tensor_ops.h"

namespace fastcl {

inline AugmentSample augment_sample_problem(const Tensor& recipe, const Tensor& index, int64_t seed, int64_t epoch,
                                            int64_t view, int64_t height, int64_t width, int64_t out_height,
                                            int64_t out_width) {
  const char* op = "augment_sample";
  check_dtype(op, "recipe", recipe, ScalarType::Double);
  FASTCL_CHECK(recipe.dim() == 1 && recipe.size(0) == kRecipe && recipe.is_contiguous() && recipe.is_cpu(), op,
               ": recipe must be contiguous [", kRecipe, "] on the CPU, got ", shape(recipe));
  check_dtype(op, "index", index, ScalarType::Long);
  FASTCL_CHECK(index.dim() == 1 && index.is_contiguous(), op, ": index must be contiguous [n], got ", shape(index));
  AugmentSample problem{};
  std::memcpy(&problem.recipe, recipe.const_data_ptr(), sizeof problem.recipe);
  problem.stream = {uint64_t(seed), uint32_t(epoch),     uint32_t(view),    int32_t(height),
                    int32_t(width), int32_t(out_height), int32_t(out_width)};
  problem.index = static_cast<const int64_t*>(index.const_data_ptr());
  problem.n = index.size(0);
  return problem;
}

inline PixelType pixel_type(const char* name, ScalarType type) {
  switch (type) {
    case ScalarType::Byte:
      return PixelType::kUint8;
    case ScalarType::Float:
      return PixelType::kFloat32;
    case ScalarType::BFloat16:
      return PixelType::kBFloat16;
    case ScalarType::Half:
      return PixelType::kFloat16;
    default:
      break;
  }
  FASTCL_CHECK(false, "augment_apply: ", name, " must be uint8, float32, bfloat16 or float16, got ", toString(type));
  return PixelType::kUint8;
}

// One value per channel: what was given, or one for all, or none.
inline std::vector<float> per_channel(const char* name, const std::vector<double>& values, int64_t channels,
                                      float none) {
  FASTCL_CHECK(values.size() <= 1 || int64_t(values.size()) == channels, "augment_apply: ", name, " must have 1 or ",
               channels, " values, got ", values.size());
  std::vector<float> out(size_t(channels), none);
  for (size_t c = 0; !values.empty() && c < out.size(); ++c) out[c] = float(values[values.size() == 1 ? 0 : c]);
  return out;
}

// The inputs as the kernel reads them, and what it reads them through.
struct AugmentInputs {
  Tensor images, params;
  std::vector<float> fill, mean, inverse_std, erase;
  AugmentApply problem{};

  AugmentInputs(const Tensor& images_in, const Tensor& params_in, int64_t height, int64_t width,
                const std::string& interpolation, const std::vector<double>& fills, const std::vector<double>& means,
                const std::vector<double>& stds, ScalarType dtype, const std::string& resize,
                const std::vector<double>& erases)
      : images(images_in), params(torch::stable::contiguous(params_in)) {
    const char* op = "augment_apply";
    FASTCL_CHECK(images.dim() == 4 && images.size(1) > 0 && images.size(2) > 0 && images.size(3) > 0, op,
                 ": images must be [B, C, H, W], C, H, W not 0, got ", shape(images));
    const int64_t n = images.size(0), channels = images.size(1);
    constexpr int64_t kMaxSide = 1 << 20;
    FASTCL_CHECK(images.size(2) <= kMaxSide && images.size(3) <= kMaxSide && channels <= 1024 && height >= 1 &&
                     width >= 1 && height <= kMaxSide && width <= kMaxSide,
                 op, ": sides must be from 1 to ", kMaxSide, ", got images ", shape(images), ", size ", height, " x ",
                 width);
    check_dtype(op, "params", params, ScalarType::Float);
    FASTCL_CHECK(params.dim() == 2 && params.size(0) == n && params.size(1) == kParams, op, ": params must be [", n,
                 ", ", kParams, "], got ", shape(params));
    FASTCL_CHECK(interpolation == "nearest" || interpolation == "bilinear", op,
                 ": interpolation must be nearest or bilinear, got ", interpolation);
    FASTCL_CHECK(resize == "bilinear" || resize == "bicubic", op, ": resize must be bilinear or bicubic, got ", resize);
    FASTCL_CHECK(means.empty() == stds.empty(), op, ": mean and std must be given together");
    problem.image_type = pixel_type("images", images.scalar_type());
    FASTCL_CHECK(problem.image_type == PixelType::kUint8 || problem.image_type == PixelType::kFloat32, op,
                 ": images must be uint8 or float32, got ", toString(images.scalar_type()));
    problem.out_type = pixel_type("dtype", dtype);
    FASTCL_CHECK(means.empty() || problem.out_type != PixelType::kUint8, op, ": mean and std need a floating dtype");
    fill = per_channel("fill", fills, channels, 0);
    mean = per_channel("mean", means, channels, 0);
    inverse_std = per_channel("std", stds, channels, 1);
    for (float& v : inverse_std) v = 1 / v;
    erase = per_channel("erase", erases, channels, 0);

    problem.channels_last = channels_last();
    if (!problem.channels_last) images = torch::stable::contiguous(images);
    problem.images = images.const_data_ptr();
    problem.n = n;
    problem.channels = channels;
    problem.height = images.size(2);
    problem.width = images.size(3);
    problem.params = static_cast<const AugmentParams*>(params.const_data_ptr());
    problem.out_height = height;
    problem.out_width = width;
    problem.nearest = interpolation == "nearest";
    problem.bicubic = resize == "bicubic";
    problem.erase = erase.data();
    problem.fill = fills.empty() ? nullptr : fill.data();
    problem.mean = mean.data();
    problem.inverse_std = inverse_std.data();
  }

  AugmentInputs(const AugmentInputs&) = delete;

  // For params in host memory; `at` is the table's place in a list.
  void check_rows(const std::string& op = "augment_apply", const std::string& at = "") const {
    static const std::vector<std::string> names = param_names();
    for (int64_t i = 0; i < problem.n; ++i) {
      int64_t bad;
      const float* row = reinterpret_cast<const float*>(problem.params + i);
      FASTCL_CHECK(params_fit(problem.params[i], problem, &bad), op, ": params", at, "[", i, "] has ",
                   names[size_t(bad)], " = ", row[bad], ", which does not fit images ", shape(images),
                   " and an output of ", problem.out_height, " x ", problem.out_width);
    }
  }

 private:
  bool channels_last() const {
    const int64_t c = images.size(1), h = images.size(2), w = images.size(3);
    const auto strides = images.strides();
    return c > 1 && strides[1] == 1 && strides[3] == c && strides[2] == c * w && strides[0] == c * w * h;
  }

  static std::vector<std::string> param_names() {
    std::vector<std::string> names = {"crop_top", "crop_left", "crop_height", "crop_width", "hflip", "vflip"};
    for (int i = 0; i < 9; ++i) names.push_back("map_" + std::to_string(i));
    for (int i = 0; i < 4; ++i) names.push_back("color_op_" + std::to_string(i));
    for (const char* name :
         {"brightness",    "contrast", "saturation", "hue",        "grayscale",    "blur_sigma",  "blur_radius_x",
          "blur_radius_y", "sharpen",  "sharpness",  "invert",     "posterize",    "solarize",    "solarize_threshold",
          "autocontrast",  "equalize", "erase_top",  "erase_left", "erase_height", "erase_width", "erase_seed"})
      names.push_back(name);
    return names;
  }
};

}  // namespace fastcl

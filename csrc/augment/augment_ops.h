// Augmentation between torch and the kernels: check, allocate, fill the Params; once, for every device.
#pragma once

#include <cstring>
#include <string>
#include <vector>

#include "augment/augment.h"
#include "augment/augment_math.h"
#include "common/tensor_ops.h"

namespace fastcl {

constexpr int64_t kMaxSide = 1 << 20, kMaxChannels = 1024;

// Heights, widths and channels of ragged images, [n, 3] in host memory and contiguous.
inline const int32_t* ragged_shapes(const char* op, const Tensor& shapes, int64_t n) {
  check_dtype(op, "shapes", shapes, ScalarType::Int);
  FASTCL_CHECK(shapes.dim() == 2 && shapes.size(0) == n && shapes.size(1) == 3 && shapes.is_cpu(), op,
               ": shapes must be [", n, ", 3] on the CPU, got ", shape(shapes));
  const int32_t* values = static_cast<const int32_t*>(shapes.const_data_ptr());
  for (int64_t i = 0; i < n; ++i) {
    const int32_t h = values[3 * i], w = values[3 * i + 1], c = values[3 * i + 2];
    FASTCL_CHECK(h >= 1 && w >= 1 && h <= kMaxSide && w <= kMaxSide, op, ": image ", i, " (shapes[", i, "] = [", h,
                 ", ", w, ", ", c, "]): height and width must be from 1 to ", kMaxSide);
    FASTCL_CHECK(c >= 1 && c <= kMaxChannels, op, ": image ", i, " (shapes[", i, "] = [", h, ", ", w, ", ", c,
                 "]): channels must be from 1 to ", kMaxChannels);
  }
  return values;
}

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
  Tensor offsets, shapes;  // of ragged images
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
    FASTCL_CHECK(images.size(2) <= kMaxSide && images.size(3) <= kMaxSide && images.size(1) <= kMaxChannels, op,
                 ": sides must be from 1 to ", kMaxSide, ", got images ", shape(images));
    problem.image_type = pixel_type("images", images.scalar_type());
    FASTCL_CHECK(problem.image_type == PixelType::kUint8 || problem.image_type == PixelType::kFloat32, op,
                 ": images must be uint8 or float32, got ", toString(images.scalar_type()));
    problem.channels_last = channels_last();
    if (!problem.channels_last) images = torch::stable::contiguous(images);
    problem.images = images.const_data_ptr();
    problem.n = images.size(0);
    problem.channels = images.size(1);
    problem.height = images.size(2);
    problem.width = images.size(3);
    describe(height, width, interpolation, fills, means, stds, dtype, resize, erases);
  }

  // Of ragged images, in host memory.
  AugmentInputs(const Tensor& data, const Tensor& offsets_in, const Tensor& shapes_in, int64_t channels,
                const Tensor& params_in, int64_t height, int64_t width, const std::string& interpolation,
                const std::vector<double>& fills, const std::vector<double>& means, const std::vector<double>& stds,
                ScalarType dtype, const std::string& resize, const std::vector<double>& erases)
      : images(data),
        params(torch::stable::contiguous(params_in)),
        offsets(torch::stable::contiguous(offsets_in)),
        shapes(torch::stable::contiguous(shapes_in)) {
    const char* op = "augment_views";
    check_dtype(op, "images.data", images, ScalarType::Byte);
    check_dtype(op, "images.offsets", offsets, ScalarType::Long);
    FASTCL_CHECK(
        images.dim() == 1 && images.is_contiguous() && offsets.dim() == 1 && images.is_cpu() && offsets.is_cpu(), op,
        ": images.data must be contiguous [bytes] and offsets [n] on the CPU, got ", shape(images), " and ",
        shape(offsets));
    problem.shapes = ragged_shapes(op, shapes, offsets.size(0));
    problem.offsets = static_cast<const int64_t*>(offsets.const_data_ptr());
    problem.image_type = PixelType::kUint8;
    problem.images = images.const_data_ptr();
    problem.n = offsets.size(0);
    problem.channels = channels;
    problem.channels_last = channels > 1;
    problem.height = problem.width = 1;
    for (int64_t i = 0; i < problem.n; ++i) {
      const int64_t h = problem.shapes[3 * i], w = problem.shapes[3 * i + 1], c = problem.shapes[3 * i + 2];
      FASTCL_CHECK(c == channels, op, ": image ", i, " has ", c, " channels, wanted ", channels);
      const int64_t offset = problem.offsets[i], last = images.size(0) - h * w * c;
      FASTCL_CHECK(offset >= 0 && offset <= last, op, ": image ", i, " (shapes[", i, "] = [", h, ", ", w, ", ", c,
                   "], offsets[", i, "] = ", offset, "): must lie inside the ", images.size(0), " bytes of data");
      problem.height = h > problem.height ? h : problem.height;
      problem.width = w > problem.width ? w : problem.width;
    }
    describe(height, width, interpolation, fills, means, stds, dtype, resize, erases);
  }

  AugmentInputs(const AugmentInputs&) = delete;

  // For params in host memory; `at` is the table's place in a list.
  void check_rows(const std::string& op = "augment_apply", const std::string& at = "") const {
    static const std::vector<std::string> names = param_names();
    for (int64_t i = 0; i < problem.n; ++i) {
      int64_t bad;
      const float* row = reinterpret_cast<const float*>(problem.params + i);
      const bool ragged = problem.offsets != nullptr;
      FASTCL_CHECK(params_fit(problem.params[i], ragged ? image_alone(problem, i) : problem, &bad), op, ": params", at,
                   "[", i, "] has ", names[size_t(bad)], " = ", row[bad], ", which does not fit images ",
                   ragged ? shape_of(i) : shape(images), " and an output of ", problem.out_height, " x ",
                   problem.out_width);
    }
  }

 private:
  // What does not depend on how the images lie.
  void describe(int64_t height, int64_t width, const std::string& interpolation, const std::vector<double>& fills,
                const std::vector<double>& means, const std::vector<double>& stds, ScalarType dtype,
                const std::string& resize, const std::vector<double>& erases) {
    const char* op = "augment_apply";
    FASTCL_CHECK(height >= 1 && width >= 1 && height <= kMaxSide && width <= kMaxSide, op, ": sides must be from 1 to ",
                 kMaxSide, ", got size ", height, " x ", width);
    check_dtype(op, "params", params, ScalarType::Float);
    FASTCL_CHECK(params.dim() == 2 && params.size(0) == problem.n && params.size(1) == kParams, op,
                 ": params must be [", problem.n, ", ", kParams, "], got ", shape(params));
    FASTCL_CHECK(interpolation == "nearest" || interpolation == "bilinear", op,
                 ": interpolation must be nearest or bilinear, got ", interpolation);
    FASTCL_CHECK(resize == "bilinear" || resize == "bicubic", op, ": resize must be bilinear or bicubic, got ", resize);
    FASTCL_CHECK(means.empty() == stds.empty(), op, ": mean and std must be given together");
    problem.out_type = pixel_type("dtype", dtype);
    FASTCL_CHECK(means.empty() || problem.out_type != PixelType::kUint8, op, ": mean and std need a floating dtype");
    fill = per_channel("fill", fills, problem.channels, 0);
    mean = per_channel("mean", means, problem.channels, 0);
    inverse_std = per_channel("std", stds, problem.channels, 1);
    for (float& v : inverse_std) v = 1 / v;
    erase = per_channel("erase", erases, problem.channels, 0);
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

  std::string shape_of(int64_t i) const {
    const int32_t* s = problem.shapes + 3 * i;
    return message("[", s[0], ", ", s[1], ", ", s[2], "]");
  }

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

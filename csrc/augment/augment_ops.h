// Augmentation between torch and the kernels: check, allocate, fill the Params; once, for every device.
#pragma once

#include <cstring>
#include <memory>
#include <string>
#include <vector>

#include "augment/augment.h"
#include "augment/augment_math.h"
#include "common/tensor_ops.h"

namespace fastcl {

constexpr int64_t kMaxSide = 1 << 20, kMaxChannels = 1024;

// Heights, widths and channels of ragged images, [n, 3] and contiguous; looked at where the host can.
inline const int32_t* ragged_shapes(const char* op, const Tensor& shapes, int64_t n, bool on_host) {
  check_dtype(op, "shapes", shapes, ScalarType::Int);
  FASTCL_CHECK(shapes.dim() == 2 && shapes.size(0) == n && shapes.size(1) == 3, op, ": shapes must be [", n,
               ", 3], got ", shape(shapes));
  const int32_t* values = static_cast<const int32_t*>(shapes.const_data_ptr());
  for (int64_t i = 0; i < n && on_host; ++i) {
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

// Whether [n, C, H, W] lies as [n, H, W, C] and not also as it is.
inline bool lies_channels_last(const Tensor& images) {
  const int64_t c = images.size(1), h = images.size(2), w = images.size(3);
  const auto strides = images.strides();
  return c > 1 && strides[1] == 1 && (w == 1 || strides[3] == c) && (h == 1 || strides[2] == c * w) &&
         (images.size(0) == 1 || strides[0] == c * w * h);
}
inline bool is_dense(const Tensor& out) { return out.is_contiguous() || lies_channels_last(out); }

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
    problem.channels_last = lies_channels_last(images);
    if (!problem.channels_last) images = torch::stable::contiguous(images);
    problem.images = images.const_data_ptr();
    problem.n = images.size(0);
    problem.channels = images.size(1);
    problem.height = images.size(2);
    problem.width = images.size(3);
    describe(height, width, interpolation, fills, means, stds, dtype, resize, erases);
  }

  // Of ragged images; `on_host`: the host can look at them.
  AugmentInputs(const Tensor& data, const Tensor& offsets_in, const Tensor& shapes_in, int64_t channels,
                const Tensor& params_in, int64_t height, int64_t width, const std::string& interpolation,
                const std::vector<double>& fills, const std::vector<double>& means, const std::vector<double>& stds,
                ScalarType dtype, const std::string& resize, const std::vector<double>& erases, bool on_host)
      : images(data),
        params(torch::stable::contiguous(params_in)),
        offsets(torch::stable::contiguous(offsets_in)),
        shapes(torch::stable::contiguous(shapes_in)) {
    const char* op = "augment_views";
    check_dtype(op, "images.data", images, ScalarType::Byte);
    check_dtype(op, "images.offsets", offsets, ScalarType::Long);
    FASTCL_CHECK(images.dim() == 1 && images.is_contiguous() && offsets.dim() == 1, op,
                 ": images.data must be contiguous [bytes] and offsets [n], got ", shape(images), " and ",
                 shape(offsets));
    problem.shapes = ragged_shapes(op, shapes, offsets.size(0), on_host);
    problem.offsets = static_cast<const int64_t*>(offsets.const_data_ptr());
    problem.image_type = PixelType::kUint8;
    problem.images = images.const_data_ptr();
    problem.n = offsets.size(0);
    problem.channels = channels;
    problem.channels_last = channels > 1;
    problem.height = problem.width = 1;
    for (int64_t i = 0; i < problem.n && on_host; ++i) {
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

  void write_to(const Tensor& out) {
    problem.out = out.mutable_data_ptr();
    problem.out_channels_last = lies_channels_last(out) && !out.is_contiguous();
  }

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

// The ops on one device. Device says:
//   Scope                 makes the device of a tensor the current one
//   kOnHost               whether the host can read its tensors
//   holds(tensor, like)   whether the tensor lies where `like` does
//   make(like, ...)       a new view
//   sample(problem, like), apply(views, count, inputs)
template <class Device>
struct AugmentOps {
  using Floats = std::vector<double>;
  using Inputs = std::vector<std::unique_ptr<AugmentInputs>>;

  static Tensor sample(const Tensor& recipe, const Tensor& index, int64_t seed, int64_t epoch, int64_t view,
                       int64_t height, int64_t width, int64_t out_height, int64_t out_width) {
    const typename Device::Scope scope(index);
    const Tensor numbers = torch::stable::contiguous(index);
    return draw(numbers,
                augment_sample_problem(recipe, numbers, seed, epoch, view, height, width, out_height, out_width));
  }

  static Tensor sample_ragged(const Tensor& recipe, const Tensor& index, const Tensor& shapes, int64_t seed,
                              int64_t epoch, int64_t view, int64_t out_height, int64_t out_width) {
    const typename Device::Scope scope(index);
    const Tensor numbers = torch::stable::contiguous(index), sizes = torch::stable::contiguous(shapes);
    check_place("augment_sample", "shapes", sizes, index);
    AugmentSample problem = augment_sample_problem(recipe, numbers, seed, epoch, view, 1, 1, out_height, out_width);
    problem.shapes = ragged_shapes("augment_sample", sizes, problem.n, Device::kOnHost);
    return draw(numbers, problem);
  }

  static Tensor apply(const Tensor& images, const Tensor& params, int64_t height, int64_t width,
                      std::string interpolation, Floats fill, Floats mean, Floats std, ScalarType dtype,
                      std::string resize, Floats erase) {
    const typename Device::Scope scope(images);
    check_place("augment_apply", "params", params, images);
    AugmentInputs inputs(images, params, height, width, interpolation, fill, mean, std, dtype, resize, erase);
    if (Device::kOnHost) inputs.check_rows();
    const Tensor out = Device::make(images, height, width, dtype);
    inputs.write_to(out);
    Device::apply(&inputs.problem, 1, inputs);
    return out;
  }

  static void apply_out(const Tensor& images, const Tensor& params, std::string interpolation, Floats fill, Floats mean,
                        Floats std, const Tensor& out, std::string resize, Floats erase) {
    const typename Device::Scope scope(images);
    FASTCL_CHECK(images.dim() == 4, "augment_apply: images must be [B, C, H, W], got ", shape(images));
    check_out("augment_apply", out, images);
    check_place("augment_apply", "params", params, images);
    AugmentInputs inputs(images, params, out.size(2), out.size(3), interpolation, fill, mean, std, out.scalar_type(),
                         resize, erase);
    if (Device::kOnHost) inputs.check_rows();
    inputs.write_to(out);
    Device::apply(&inputs.problem, 1, inputs);
  }

  static std::vector<Tensor> views(const Tensor& images, std::vector<Tensor> params, std::vector<int64_t> heights,
                                   std::vector<int64_t> widths, std::string interpolation, Floats fill, Floats mean,
                                   Floats std, ScalarType dtype, std::string resize, Floats erase) {
    const typename Device::Scope scope(images);
    FASTCL_CHECK(heights.size() == params.size() && widths.size() == params.size(),
                 "augment_views: heights and widths must have one entry for each of ", params.size(), " tables, got ",
                 heights.size(), " and ", widths.size());
    std::vector<Tensor> out;
    for (size_t v = 0; v < params.size(); ++v) {
      FASTCL_CHECK(
          images.dim() == 4 && heights[v] >= 1 && widths[v] >= 1 && heights[v] <= kMaxSide && widths[v] <= kMaxSide,
          "augment_views: sides must be from 1 to ", kMaxSide, ", got images ", shape(images), ", size ", heights[v],
          " x ", widths[v]);
      out.push_back(Device::make(images, heights[v], widths[v], dtype));
    }
    views_of_one_size(images, params, out, interpolation, fill, mean, std, resize, erase);
    return out;
  }

  static void views_out(const Tensor& images, std::vector<Tensor> params, std::string interpolation, Floats fill,
                        Floats mean, Floats std, std::string resize, Floats erase, std::vector<Tensor> out) {
    const typename Device::Scope scope(images);
    FASTCL_CHECK(images.dim() == 4, "augment_views: images must be [B, C, H, W], got ", shape(images));
    FASTCL_CHECK(out.size() == params.size(), "augment_views: out must have one tensor for each of ", params.size(),
                 " tables, got ", out.size());
    for (const Tensor& view : out) {
      check_out("augment_views", view, images);
      FASTCL_CHECK(view.scalar_type() == out[0].scalar_type(), "augment_views: out must be of one dtype");
    }
    views_of_one_size(images, params, out, interpolation, fill, mean, std, resize, erase);
  }

  static void views_ragged(const Tensor& data, const Tensor& offsets, const Tensor& shapes, std::vector<Tensor> params,
                           std::string interpolation, Floats fill, Floats mean, Floats std, std::string resize,
                           Floats erase, std::vector<Tensor> out) {
    const typename Device::Scope scope(data);
    FASTCL_CHECK(out.size() == params.size(), "augment_views: out must have one tensor for each of ", params.size(),
                 " tables, got ", out.size());
    check_place("augment_views", "offsets", offsets, data);
    check_place("augment_views", "shapes", shapes, data);
    for (const Tensor& view : out) {
      FASTCL_CHECK(view.dim() == 4 && is_dense(view) && view.size(0) == offsets.numel(),
                   "augment_views: out must be contiguous or channels_last [", offsets.numel(), ", C, H, W], got ",
                   shape(view));
      check_place("augment_views", "out", view, data);
    }
    views_into(data, params, out, [&](size_t v) {
      return std::make_unique<AugmentInputs>(data, offsets, shapes, out[v].size(1), params[v], out[v].size(2),
                                             out[v].size(3), interpolation, fill, mean, std, out[v].scalar_type(),
                                             resize, erase, Device::kOnHost);
    });
  }

 private:
  static void check_place(const char* op, const char* name, const Tensor& tensor, const Tensor& like) {
    FASTCL_CHECK(Device::holds(tensor, like), op, ": ", name, " must be on the device that the op runs on");
  }

  static void check_out(const char* op, const Tensor& out, const Tensor& images) {
    FASTCL_CHECK(out.dim() == 4 && is_dense(out) && out.size(0) == images.size(0) && out.size(1) == images.size(1), op,
                 ": out must be contiguous or channels_last [", images.size(0), ", ", images.size(1), ", H, W], got ",
                 shape(out));
    check_place(op, "out", out, images);
  }

  static Tensor draw(const Tensor& index, AugmentSample problem) {
    Tensor params = new_tensor(index, {problem.n, kParams}, ScalarType::Float);
    problem.params = static_cast<AugmentParams*>(params.mutable_data_ptr());
    Device::sample(problem, index);
    return params;
  }

  // All tables are checked before anything is written. inputs_of(v): of view v.
  template <class InputsOf>
  static void views_into(const Tensor& images, const std::vector<Tensor>& params, const std::vector<Tensor>& out,
                         InputsOf&& inputs_of) {
    Inputs inputs;
    std::vector<AugmentApply> problems;
    for (size_t v = 0; v < out.size(); ++v) {
      check_place("augment_views", "params", params[v], images);
      inputs.push_back(inputs_of(v));
      if (Device::kOnHost) inputs[v]->check_rows("augment_views", "[" + std::to_string(v) + "]");
      inputs[v]->write_to(out[v]);
      problems.push_back(inputs[v]->problem);
    }
    if (!problems.empty()) Device::apply(problems.data(), int64_t(problems.size()), *inputs[0]);
  }

  static void views_of_one_size(const Tensor& images, const std::vector<Tensor>& params, const std::vector<Tensor>& out,
                                const std::string& interpolation, const Floats& fill, const Floats& mean,
                                const Floats& std, const std::string& resize, const Floats& erase) {
    views_into(images, params, out, [&](size_t v) {
      return std::make_unique<AugmentInputs>(images, params[v], out[v].size(2), out[v].size(3), interpolation, fill,
                                             mean, std, out[v].scalar_type(), resize, erase);
    });
  }
};

// The line of each op in a library `m`; TORCH_BOX wants the functions by name.
#define FASTCL_AUGMENT_OPS(m, Device)                                             \
  m.impl("augment_sample", TORCH_BOX(&AugmentOps<Device>::sample));               \
  m.impl("augment_sample_ragged", TORCH_BOX(&AugmentOps<Device>::sample_ragged)); \
  m.impl("augment_apply", TORCH_BOX(&AugmentOps<Device>::apply));                 \
  m.impl("augment_apply_out", TORCH_BOX(&AugmentOps<Device>::apply_out));         \
  m.impl("augment_views", TORCH_BOX(&AugmentOps<Device>::views));                 \
  m.impl("augment_views_out", TORCH_BOX(&AugmentOps<Device>::views_out));         \
  m.impl("augment_views_ragged", TORCH_BOX(&AugmentOps<Device>::views_ragged))

}  // namespace fastcl

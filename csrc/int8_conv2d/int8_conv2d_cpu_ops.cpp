#include <torch/csrc/stable/library.h>

#include <cmath>
#include <limits>
#include <optional>

#include "common/memory.h"
#include "int8_conv2d/int8_conv2d_ops.h"

namespace fastcl {
namespace {

Tensor int8_conv2d_cpu(const Tensor& x, const Tensor& weight, const Tensor& weight_scale, std::optional<Tensor> bias,
                       std::optional<Tensor> packed, std::optional<Tensor> x_range, std::optional<Tensor> x_multiplier,
                       std::optional<Tensor> outlier_columns, std::optional<Tensor> outlier_weight, std::string mode,
                       std::vector<int64_t> stride, std::vector<int64_t> padding, std::vector<int64_t> dilation,
                       std::string activation) {
  constexpr const char* kOp = "int8_conv2d";
  const Int8Patches patches = int8_patches(kOp, x, weight, stride, padding, dilation);
  check_int8_weight(kOp, weight);
  const int64_t n = weight.size(0), k = weight.numel() / n;
  const Int8Activations activations =
      int8_activations(kOp, mode, x_range, x_multiplier, outlier_columns, outlier_weight, n, k);
  Tensor y = new_tensor(x, {x.size(0), patches.out_height, patches.out_width, n}, x.scalar_type());
  run_int8_linear(kOp, x, patches.are_rows() ? nullptr : &patches, weight, weight_scale, bias, packed, activations,
                  activation, y);
  return y;
}

// Of a dimension of size 1 the stride has no meaning.
bool is_channels_last(const Tensor& x) {
  int64_t stride = 1;
  for (int64_t d : {1, 3, 2, 0}) {
    if (x.size(d) != 1 && x.stride(d) != stride) return false;
    stride *= x.size(d);
  }
  return true;
}

// Whether the layer can hand integers on: images quantised whole, and no sum of theirs that could give more than floats
// hold, so that only what is not finite in x is not finite in y.
bool gives_integers(const Int8Linear& p, const std::optional<Tensor>& bias) {
  if (p.mode != Int8Mode::kStatic || p.x_multiplier || p.outliers) return false;
  const float* add = bias ? floats(*bias) : nullptr;
  bool finite = true;
  for (int64_t n = 0; n < p.n; ++n) {
    const float most = 0x1p31f * (p.x_scale * p.weight_scale[n]) + (add ? std::fabs(add[n]) : 0.f);
    finite &= most <= std::numeric_limits<float>::max();  // false of NaN
  }
  return finite;
}

Tensor int8_conv2d_packed_cpu(const Tensor& x, const Tensor& packed, std::optional<Tensor> bias, int64_t n,
                              std::vector<int64_t> kernel, std::vector<int64_t> stride, std::vector<int64_t> padding,
                              std::vector<int64_t> dilation, std::optional<Tensor> reader) {
  constexpr const char* kOp = "int8_conv2d_packed";
  FASTCL_CHECK(x.dim() == 4 && is_channels_last(x), kOp,
               ": x must be [B, C, H, W] in channels-last memory format, got ", shape(x));
  const int64_t channels = x.size(1);
  const Int8Patches patches = int8_patches(kOp, {x.size(2), x.size(3), channels}, kernel, stride, padding, dilation);
  for (int64_t size : {channels, kernel[0], kernel[1]})
    FASTCL_CHECK(size >= 1 && size <= kInt8MaxDepth, kOp, ": channels and kernel must be from 1 to ", kInt8MaxDepth,
                 ", got ", size);
  FASTCL_CHECK(n >= 1 && n <= packed.numel(), kOp, ": n must be the rows of the weight, got ", n);
  const Int8Kernel& used = int8_kernel_of(kOp, packed, n, kernel[0] * kernel[1] * channels);
  Int8Linear p = int8_packed_layer(kOp, packed);
  if (bias) bias = float_vector(kOp, "bias", *bias, n);
  p.x_quantized = x.scalar_type() == ScalarType::Byte;
  FASTCL_CHECK(!p.x_quantized || (p.mode == Int8Mode::kStatic && !p.x_multiplier && !p.outliers), kOp,
               ": x may be uint8 where the layer is static, without multiplier and outlier columns");
  if (reader) {
    take_reader(kOp, *reader, p);
    p.y_quantized &= (p.x_quantized || x.scalar_type() == ScalarType::Float) && gives_integers(p, bias);
  }
  if (!patches.are_rows() || p.x_quantized || p.y_quantized) p.patches = &patches;
  const int64_t batch = x.size(0), height = patches.out_height, width = patches.out_width;
  const int64_t sizes[] = {batch, n, height, width}, strides[] = {height * width * n, 1, width * n, n};
  const ScalarType type = p.x_quantized ? ScalarType::Float : x.scalar_type();
  if (p.y_quantized) {
    Tensor y = new_result(x, sizes, strides, ScalarType::Byte);
    if (run_int8_kernel(kOp, used, p, x, bias, y)) return y;
    p.y_quantized = false;
  }
  Tensor y = new_result(x, sizes, strides, type);
  run_int8_kernel(kOp, used, p, x, bias, y);
  return y;
}

STABLE_TORCH_LIBRARY_IMPL(fastcl, CPU, m) {
  m.impl("int8_conv2d", TORCH_BOX(&int8_conv2d_cpu));
  m.impl("int8_conv2d_packed", TORCH_BOX(&int8_conv2d_packed_cpu));
}

}  // namespace
}  // namespace fastcl

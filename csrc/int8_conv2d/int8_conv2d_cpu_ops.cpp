#include <torch/csrc/stable/library.h>

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
  const Int8Patches patches = int8_patches(x, weight, stride, padding, dilation);
  check_int8_weight(kOp, weight);
  const int64_t n = weight.size(0), k = weight.numel() / n;
  const Int8Activations activations =
      int8_activations(kOp, mode, x_range, x_multiplier, outlier_columns, outlier_weight, n, k);
  Tensor y = new_tensor(x, {x.size(0), patches.out_height, patches.out_width, n}, x.scalar_type());
  run_int8_linear(kOp, x, patches.are_rows() ? nullptr : &patches, weight, weight_scale, bias, packed, activations,
                  activation, y);
  return y;
}

STABLE_TORCH_LIBRARY_IMPL(fastcl, CPU, m) { m.impl("int8_conv2d", TORCH_BOX(&int8_conv2d_cpu)); }

}  // namespace
}  // namespace fastcl

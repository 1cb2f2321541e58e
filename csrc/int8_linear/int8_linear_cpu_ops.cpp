#include <torch/csrc/stable/library.h>

#include "int8_linear/int8_linear_ops.h"

namespace fastcl {
namespace {

Tensor new_linear_result(const Tensor& x, int64_t n) {
  const std::vector<int64_t> sizes = linear_output_sizes(x, n);
  const std::vector<int64_t> strides = contiguous_strides({sizes.data(), sizes.size()});
  return new_result(x, {sizes.data(), sizes.size()}, {strides.data(), strides.size()}, x.scalar_type());
}

Tensor int8_pack_weight_cpu(const Tensor& weight, std::string kernel_name, std::optional<Tensor> weight_scale,
                            std::optional<Tensor> x_range, std::optional<Tensor> x_multiplier,
                            std::optional<Tensor> outlier_columns, std::optional<Tensor> outlier_weight,
                            std::string mode, std::string activation) {
  constexpr const char* kOp = "int8_pack_weight";
  check_int8_weight(kOp, weight);
  FASTCL_CHECK(weight.dim() == 2, kOp, ": weight must be [N, K], got ", shape(weight));
  const Int8Kernel* kernel = int8_kernel(kernel_name);
  FASTCL_CHECK(kernel, kOp, ": kernel must be auto or one that this machine has (", int8_kernel_names(), "), got ",
               kernel_name);
  const int64_t n = weight.size(0), k = weight.size(1);
  if (!weight_scale) return int8_pack(*kernel, weight, n, k);
  const Int8Activations activations =
      int8_activations(kOp, mode, x_range, x_multiplier, outlier_columns, outlier_weight, n, k);
  const Tensor scale = float_vector(kOp, "weight_scale", *weight_scale, n);
  const Int8Linear layer = int8_layer(kOp, n, k, scale, activations, activation);
  Tensor packed =
      int8_pack(*kernel, weight, n, k, int8_packed_layer_bytes(n, k, x_multiplier.has_value(), layer.outliers));
  int8_pack_layer(layer, static_cast<uint8_t*>(packed.mutable_data_ptr()));
  return packed;
}

Tensor int8_linear_packed_cpu(const Tensor& x, const Tensor& packed, std::optional<Tensor> bias, int64_t n) {
  constexpr const char* kOp = "int8_linear_packed";
  const int64_t k = x.dim() >= 1 ? x.size(x.dim() - 1) : 0;
  FASTCL_CHECK(k >= 1 && k <= kInt8MaxDepth && n >= 1 && n <= packed.numel(), kOp,
               ": x must be [..., K] and n the rows of the weight, got ", shape(x), " and ", n);
  const Int8Kernel& kernel = int8_kernel_of(kOp, packed, n, k);
  Int8Linear p = int8_packed_layer(kOp, packed);
  Tensor y = new_linear_result(x, n);
  run_int8_kernel(kOp, kernel, p, as_contiguous(x), bias, y);
  return y;
}

Tensor int8_linear_cpu(const Tensor& x, const Tensor& weight, const Tensor& weight_scale, std::optional<Tensor> bias,
                       std::optional<Tensor> packed, std::optional<Tensor> x_range, std::optional<Tensor> x_multiplier,
                       std::optional<Tensor> outlier_columns, std::optional<Tensor> outlier_weight, std::string mode,
                       std::string activation) {
  constexpr const char* kOp = "int8_linear";
  check_int8_linear_shapes(kOp, x, weight);
  const int64_t n = weight.size(0), k = weight.size(1);
  const Int8Activations activations =
      int8_activations(kOp, mode, x_range, x_multiplier, outlier_columns, outlier_weight, n, k);
  check_int8_weight(kOp, weight);
  Tensor y = new_linear_result(x, n);
  run_int8_linear(kOp, x, nullptr, weight, weight_scale, bias, packed, activations, activation, y);
  return y;
}

STABLE_TORCH_LIBRARY_IMPL(fastcl, CPU, m) {
  m.impl("int8_pack_weight", TORCH_BOX(&int8_pack_weight_cpu));
  m.impl("int8_linear_packed", TORCH_BOX(&int8_linear_packed_cpu));
  m.impl("int8_linear", TORCH_BOX(&int8_linear_cpu));
}

}  // namespace
}  // namespace fastcl

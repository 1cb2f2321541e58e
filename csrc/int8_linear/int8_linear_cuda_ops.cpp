#include "int8_linear/int8_linear_cuda_ops.h"

namespace fastcl {
namespace {

Tensor int8_linear_cuda(const Tensor& x, const Tensor& weight, const Tensor& weight_scale, std::optional<Tensor> bias,
                        std::optional<Tensor> packed, std::optional<Tensor> x_range, std::optional<Tensor> x_multiplier,
                        std::optional<Tensor> outlier_columns, std::optional<Tensor> outlier_weight, std::string mode,
                        std::string activation) {
  constexpr const char* kOp = "int8_linear";
  const DeviceScope scope(x);
  check_int8_linear_shapes(kOp, x, weight);
  const int64_t n = weight.size(0), k = weight.size(1);
  const Int8Activations activations =
      int8_activations(kOp, mode, x_range, x_multiplier, outlier_columns, outlier_weight, n, k);
  const std::vector<int64_t> sizes = linear_output_sizes(x, n);
  Tensor y = new_tensor(x, {sizes.data(), sizes.size()}, x.scalar_type());
  run_int8_linear_cuda(kOp, x, nullptr, weight, weight_scale, bias, packed, activations, activation, y);
  return y;
}

FASTCL_CUDA_LIBRARY(m) { m.impl("int8_linear", TORCH_BOX(&int8_linear_cuda)); }

}  // namespace
}  // namespace fastcl

#include "int8_conv2d/int8_conv2d_ops.h"
#include "int8_linear/int8_linear_cuda_ops.h"

namespace fastcl {
namespace {

Tensor int8_conv2d_cuda(const Tensor& x, const Tensor& weight, const Tensor& weight_scale, std::optional<Tensor> bias,
                        std::optional<Tensor> packed, std::optional<Tensor> x_range, std::optional<Tensor> x_multiplier,
                        std::optional<Tensor> outlier_columns, std::optional<Tensor> outlier_weight, std::string mode,
                        std::vector<int64_t> stride, std::vector<int64_t> padding, std::vector<int64_t> dilation,
                        std::string activation) {
  constexpr const char* kOp = "int8_conv2d";
  const DeviceScope scope(x);
  const Int8Patches patches = int8_patches(kOp, x, weight, stride, padding, dilation);
  constexpr int64_t kMost = int64_t(1) << 29;  // the kernel counts in int
  for (int64_t size : {patches.height, patches.width, patches.channels, patches.stride_y, patches.stride_x,
                       patches.dilation_y, patches.dilation_x, patches.pad_top, patches.pad_left})
    FASTCL_CHECK(size <= kMost, kOp, ": on CUDA sizes, stride, padding and dilation must be at most ", kMost, ", got ",
                 size);
  check_int8_weight(kOp, weight);
  const int64_t n = weight.size(0), k = weight.numel() / n;
  const Int8Activations activations =
      int8_activations(kOp, mode, x_range, x_multiplier, outlier_columns, outlier_weight, n, k);
  Tensor y = new_tensor(x, {x.size(0), patches.out_height, patches.out_width, n}, x.scalar_type());
  run_int8_linear_cuda(kOp, x, patches.are_rows() ? nullptr : &patches, weight, weight_scale, bias, packed, activations,
                       activation, y);
  return y;
}

FASTCL_CUDA_LIBRARY(m) { m.impl("int8_conv2d", TORCH_BOX(&int8_conv2d_cuda)); }

}  // namespace
}  // namespace fastcl

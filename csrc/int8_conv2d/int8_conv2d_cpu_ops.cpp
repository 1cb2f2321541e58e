#include <torch/csrc/stable/library.h>

#include <optional>

#include "common/memory.h"
#include "int8_conv2d/int8_conv2d_ops.h"

namespace fastcl {
namespace {

Tensor int8_conv2d_cpu(const Tensor& x, const Tensor& weight, const Tensor& weight_scale, std::optional<Tensor> bias,
                       std::optional<Tensor> packed, std::vector<int64_t> stride, std::vector<int64_t> padding,
                       std::vector<int64_t> dilation, std::string activation) {
  constexpr const char* kOp = "int8_conv2d";
  const Int8Patches patches = int8_patches(x, weight, stride, padding, dilation);
  const int64_t n = weight.size(0), k = weight.size(1) * weight.size(2) * weight.size(3);
  const Int8LinearTensors t = int8_linear_tensors(kOp, x, weight, n, k, weight_scale, bias, packed);
  Tensor y = new_tensor(x, {x.size(0), patches.out_height, patches.out_width, n}, x.scalar_type());
  const bool rows_as_they_stand = patches.kernel_height == 1 && patches.kernel_width == 1 &&
                                  patches.out_height == patches.height && patches.out_width == patches.width &&
                                  patches.pad_top == 0 && patches.pad_left == 0;
  run_int8_linear(kOp, t, rows_as_they_stand ? nullptr : &patches, activation, y);
  return y;
}

STABLE_TORCH_LIBRARY_IMPL(fastcl, CPU, m) { m.impl("int8_conv2d", TORCH_BOX(&int8_conv2d_cpu)); }

}  // namespace
}  // namespace fastcl

#include <torch/csrc/stable/library.h>

#include <optional>

#include "common/memory.h"
#include "int8_linear/int8_linear_ops.h"

namespace fastcl {
namespace {

Tensor pack(const Int8Kernel& kernel, const Tensor& weight) {
  const Tensor rows = torch::stable::contiguous(weight);
  const int64_t n = weight.size(0), k = weight.size(1);
  Tensor packed = new_tensor(weight, {int8_packed_bytes(n, k)}, ScalarType::Byte);
  int8_pack_weight(kernel, {static_cast<const int8_t*>(rows.const_data_ptr()), n, k,
                            static_cast<uint8_t*>(packed.mutable_data_ptr())});
  return packed;
}

Tensor int8_pack_weight_cpu(const Tensor& weight, std::string kernel_name) {
  check_int8_weight("int8_pack_weight", weight);
  const Int8Kernel* kernel = int8_kernel(kernel_name);
  FASTCL_CHECK(kernel, "int8_pack_weight: kernel must be auto or one that this machine has (", int8_kernel_names(),
               "), got ", kernel_name);
  return pack(*kernel, weight);
}

Tensor int8_linear_cpu(const Tensor& x, const Tensor& weight, const Tensor& weight_scale, std::optional<Tensor> bias,
                       std::optional<Tensor> packed, std::string activation) {
  constexpr const char* kOp = "int8_linear";
  check_int8_weight(kOp, weight);
  const int64_t n = weight.size(0), k = weight.size(1);
  FASTCL_CHECK(x.dim() >= 1 && x.size(x.dim() - 1) == k, kOp, ": x must be [..., ", k, "], got ", shape(x));
  const Tensor rows = torch::stable::contiguous(x), scales = float_vector(kOp, "weight_scale", weight_scale, n);
  if (bias) bias = float_vector(kOp, "bias", *bias, n);
  const Tensor block = packed ? *packed : pack(*int8_kernel("auto"), weight);
  const Int8Kernel& kernel = int8_kernel_of(kOp, block, n, k);
  const FloatType type = float_type(kOp, "x", x);
  const Activation act = activation_by_name(kOp, activation);
  Tensor y = new_linear_output(x, n);
  const int64_t m = x.numel() / k;
  if (m == 0) return y;
  prefer_huge_pages(y.mutable_data_ptr(), size_t(m * n * size_of(type)));
  kernel.linear({rows.const_data_ptr(), type, m, k, n, static_cast<const uint8_t*>(block.const_data_ptr()),
                 static_cast<const float*>(scales.const_data_ptr()),
                 bias ? static_cast<const float*>(bias->const_data_ptr()) : nullptr, act, y.mutable_data_ptr()});
  return y;
}

STABLE_TORCH_LIBRARY_IMPL(fastcl, CPU, m) {
  m.impl("int8_pack_weight", TORCH_BOX(&int8_pack_weight_cpu));
  m.impl("int8_linear", TORCH_BOX(&int8_linear_cpu));
}

}  // namespace
}  // namespace fastcl

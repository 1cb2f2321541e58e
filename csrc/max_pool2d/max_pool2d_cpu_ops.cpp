#include <torch/csrc/stable/library.h>

#include "max_pool2d/max_pool2d_ops.h"

namespace fastcl {
namespace {

Tensor max_pool2d_cpu(const Tensor& x, std::vector<int64_t> rows, std::vector<int64_t> columns) {
  constexpr const char* kOp = "max_pool2d";
  MaxPool2d p = max_pool2d_params(kOp, x, rows, columns);
  const ScalarType type = x.scalar_type();
  FASTCL_CHECK(type == ScalarType::Float || type == ScalarType::Byte, kOp, ": x must be float32 or uint8, got ",
               toString(type));
  const Tensor images = as_contiguous(x);
  Tensor y = new_tensor(x, {p.batch, p.out_height, p.out_width, p.channels}, type);
  if (y.numel() == 0) return y;
  p.x = images.const_data_ptr();
  p.y = y.mutable_data_ptr();
  type == ScalarType::Byte ? max_pool2d_uint8(p) : max_pool2d_float(p);
  return y;
}

STABLE_TORCH_LIBRARY_IMPL(fastcl, CPU, m) { m.impl("max_pool2d", TORCH_BOX(&max_pool2d_cpu)); }

}  // namespace
}  // namespace fastcl

// NT-Xent between torch and the kernels: check, allocate, fill the Params; once, for every device.
#pragma once

#include <string>
#include <tuple>

#include "common/tensor_ops.h"
#include "ntxent/ntxent.h"

namespace fastcl {

struct NtxentViews {
  Tensor z0, z1;  // contiguous
  FloatType type;
};

inline NtxentViews ntxent_views(const Tensor& z0, const Tensor& z1) {
  FASTCL_CHECK(z0.dim() == 2 && z0.numel() > 0, "ntxent: z0 must be [N, D], not empty, got ", shape(z0));
  FASTCL_CHECK(same_shape(z0, z1), "ntxent: z1 must have z0's shape ", shape(z0), ", got ", shape(z1));
  check_dtype("ntxent", "z1", z1, z0.scalar_type());
  return {torch::stable::contiguous(z0), torch::stable::contiguous(z1), float_type("ntxent", "z0", z0)};
}

}  // namespace fastcl

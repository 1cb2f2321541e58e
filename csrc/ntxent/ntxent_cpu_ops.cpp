#include <torch/csrc/stable/library.h>

#include "ntxent/ntxent_ops.h"

namespace fastcl {
namespace {

std::tuple<Tensor, Tensor> ntxent_cpu(const Tensor& z0, const Tensor& z1, const Tensor& scale, std::string precision) {
  const NtxentViews views = ntxent_views(z0, z1);
  const int64_t n = z0.size(0);
  Tensor losses = new_tensor(z0, {2 * n}, ScalarType::Float), lse = new_tensor(z0, {2 * n}, ScalarType::Float);
  ntxent_forward({views.z0.const_data_ptr(), views.z1.const_data_ptr(), views.type, n, z0.size(1),
                  scale_value("ntxent", scale), bf16_products("ntxent", precision),
                  static_cast<float*>(losses.mutable_data_ptr()), static_cast<float*>(lse.mutable_data_ptr())});
  return {losses, lse};
}

std::tuple<Tensor, Tensor, Tensor> ntxent_backward_cpu(const Tensor& grad_losses, const Tensor& z0, const Tensor& z1,
                                                   const Tensor& scale, const Tensor& lse, std::string precision) {
  const NtxentViews views = ntxent_views(z0, z1);
  const int64_t n = z0.size(0), dim = z0.size(1);
  for (const auto& [name, rows] : {std::pair<const char*, const Tensor&>{"grad_losses", grad_losses}, {"lse", lse}}) {
    check_dtype("ntxent_backward", name, rows, ScalarType::Float);
    FASTCL_CHECK(rows.dim() == 1 && rows.size(0) == 2 * n, "ntxent_backward: ", name, " must be [", 2 * n, "], got ",
                 shape(rows));
  }
  const Tensor grads = torch::stable::contiguous(grad_losses), lses = torch::stable::contiguous(lse);
  Tensor grad_z0 = new_tensor(z0, {n, dim}, z0.scalar_type()), grad_z1 = new_tensor(z0, {n, dim}, z0.scalar_type());
  Tensor grad_scale = new_tensor(z0, {}, ScalarType::Float);
  ntxent_backward({views.z0.const_data_ptr(), views.z1.const_data_ptr(), views.type, n, dim,
                   scale_value("ntxent", scale), bf16_products("ntxent", precision),
                   static_cast<const float*>(lses.const_data_ptr()), static_cast<const float*>(grads.const_data_ptr()),
                   grad_z0.mutable_data_ptr(), grad_z1.mutable_data_ptr(),
                   static_cast<float*>(grad_scale.mutable_data_ptr())});
  return {grad_z0, grad_z1, grad_scale};
}

STABLE_TORCH_LIBRARY_IMPL(fastcl, CPU, m) {
  m.impl("ntxent", TORCH_BOX(&ntxent_cpu));
  m.impl("ntxent_backward", TORCH_BOX(&ntxent_backward_cpu));
}

}  // namespace
}  // namespace fastcl

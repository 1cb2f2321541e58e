#include <torch/csrc/stable/library.h>

#include "ntxent/ntxent_ops.h"

namespace fastcl {
namespace {

std::tuple<Tensor, Tensor> ntxent_cpu(const Tensor& z0, const Tensor& z1, const Tensor& scale, std::string precision,
                                      int64_t keep) {
  const NtxentViews views = ntxent_views(z0, z1);
  const int64_t n = z0.size(0);
  Tensor losses = new_tensor(z0, {2 * n}, ScalarType::Float), kept = new_scratch_tensor(keep);
  ntxent_forward({views.z0.const_data_ptr(), views.z1.const_data_ptr(), views.type, n, z0.size(1),
                  scale_value("ntxent", scale), bf16_products("ntxent", precision),
                  static_cast<float*>(losses.mutable_data_ptr()), static_cast<float*>(kept.mutable_data_ptr()), keep});
  return {losses, kept};
}

std::tuple<Tensor, Tensor> ntxent_backward_cpu(const Tensor& grad_losses, const Tensor& z0, const Tensor& z1,
                                               const Tensor& scale, const Tensor& losses, std::string precision,
                                               std::optional<Tensor> kept) {
  const NtxentViews views = ntxent_views(z0, z1);
  const int64_t n = z0.size(0), dim = z0.size(1);
  const Tensor grads = float_vector("ntxent_backward", "grad_losses", grad_losses, 2 * n);
  const Tensor values = float_vector("ntxent_backward", "losses", losses, 2 * n);
  const KeptFloats saved("ntxent_backward", kept);
  Tensor grad_z = new_tensor(z0, {2, n, dim}, z0.scalar_type()), grad_scale = new_tensor(z0, {}, ScalarType::Float);
  ntxent_backward({views.z0.const_data_ptr(), views.z1.const_data_ptr(), views.type, n, dim,
                   scale_value("ntxent", scale), bf16_products("ntxent", precision), floats(values), floats(grads),
                   grad_z.mutable_data_ptr(), static_cast<float*>(grad_scale.mutable_data_ptr()), saved.data,
                   saved.count});
  return {grad_z, grad_scale};
}

STABLE_TORCH_LIBRARY_IMPL(fastcl, CPU, m) {
  m.impl("ntxent", TORCH_BOX(&ntxent_cpu));
  m.impl("ntxent_backward", TORCH_BOX(&ntxent_backward_cpu));
}

}  // namespace
}  // namespace fastcl

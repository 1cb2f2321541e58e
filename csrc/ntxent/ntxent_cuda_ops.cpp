#include "contrast/contrast_cuda_ops.h"
#include "ntxent/ntxent_ops.h"

namespace fastcl {
namespace {

constexpr const char* kOp = "ntxent";

CudaContrast problem_of(const NtxentViews& views, const Tensor& z0, const Tensor& z1, const Tensor& scale,
                        const std::string& precision) {
  const int64_t rows = 2 * z0.size(0), dim = z0.size(1);
  check_on_device(kOp, "z1", z1, z0);
  check_cuda_size(kOp, rows, rows, dim);
  return {views.z0.const_data_ptr(),
          views.z1.const_data_ptr(),
          true,
          true,
          views.type,
          static_cast<int>(rows),
          static_cast<int>(rows),
          static_cast<int>(dim),
          device_scale(kOp, scale, z0),
          nullptr,
          nullptr,
          products_for(kOp, views.type, precision)};
}

// Nothing is kept here: the kernels form the exponentials again.
std::tuple<Tensor, Tensor> ntxent_cuda(const Tensor& z0, const Tensor& z1, const Tensor& scale, std::string precision,
                                       int64_t keep) {
  const DeviceScope scope(z0);
  const NtxentViews views = ntxent_views(z0, z1);
  const CudaContrast problem = problem_of(views, z0, z1, scale, precision);
  Tensor losses = new_tensor(z0, {problem.rows}, ScalarType::Float);
  Tensor scratch = cuda_scratch(z0, cuda_contrast_forward_bytes(problem, false));
  cuda_contrast_forward(problem, {static_cast<float*>(losses.mutable_data_ptr()), nullptr}, scratch.mutable_data_ptr(),
                        current_stream(z0));
  return {losses, new_tensor(z0, {keep}, ScalarType::Float)};
}

std::tuple<Tensor, Tensor> ntxent_backward_cuda(const Tensor& grad_losses, const Tensor& z0, const Tensor& z1,
                                                const Tensor& scale, const Tensor& losses, std::string precision,
                                                std::optional<Tensor>) {
  const DeviceScope scope(z0);
  const NtxentViews views = ntxent_views(z0, z1);
  const CudaContrast problem = problem_of(views, z0, z1, scale, precision);
  check_on_device("ntxent_backward", "grad_losses", grad_losses, z0);
  check_on_device("ntxent_backward", "losses", losses, z0);
  const Tensor grads = float_vector("ntxent_backward", "grad_losses", grad_losses, problem.rows);
  const Tensor values = float_vector("ntxent_backward", "losses", losses, problem.rows);
  Tensor grad_z = new_tensor(z0, {2, z0.size(0), z0.size(1)}, z0.scalar_type());
  Tensor grad_scale = new_tensor(z0, {}, ScalarType::Float);
  Tensor scratch = cuda_scratch(z0, cuda_contrast_backward_bytes(problem));
  cuda_contrast_backward(problem,
                         {floats(values), floats(grads), nullptr, nullptr, grad_z.mutable_data_ptr(), nullptr,
                          static_cast<float*>(grad_scale.mutable_data_ptr())},
                         scratch.mutable_data_ptr(), current_stream(z0));
  return {grad_z, grad_scale};
}

FASTCL_CUDA_LIBRARY(m) {
  m.impl("ntxent", TORCH_BOX(&ntxent_cuda));
  m.impl("ntxent_backward", TORCH_BOX(&ntxent_backward_cuda));
}

}  // namespace
}  // namespace fastcl

#include "contrast/contrast_cuda_ops.h"
#include "similarity_lse/similarity_lse_ops.h"

namespace fastcl {
namespace {

constexpr const char* kOp = SimilarityLseInputs::kOp;

CudaContrast problem_of(const SimilarityLseInputs& inputs, const Tensor& scale, const std::string& precision) {
  if (inputs.k) check_on_device(kOp, "k", *inputs.k, inputs.q);
  if (inputs.q_group) check_on_device(kOp, "q_group", *inputs.q_group, inputs.q);
  if (inputs.k_group) check_on_device(kOp, "k_group", *inputs.k_group, inputs.q);
  check_cuda_size(kOp, inputs.rows, inputs.cols, inputs.dim);
  const SimilarityLse p = inputs.problem(0.f, false);
  return {p.q,
          p.k,
          p.symmetric,
          false,
          p.type,
          static_cast<int>(p.rows),
          static_cast<int>(p.cols),
          static_cast<int>(p.dim),
          device_scale(kOp, scale, inputs.q),
          p.q_group,
          p.symmetric ? p.q_group : p.k_group,
          products_for(kOp, p.type, precision)};
}

// Nothing is kept here: the kernels form the exponentials again.
std::tuple<Tensor, Tensor, Tensor> similarity_lse_cuda(const Tensor& q, std::optional<Tensor> k, const Tensor& scale,
                                                       std::optional<Tensor> q_group, std::optional<Tensor> k_group,
                                                       bool columns, std::string precision, int64_t keep) {
  const DeviceScope scope(q);
  const SimilarityLseInputs inputs(q, k, q_group, k_group);
  FASTCL_CHECK(!columns || k, kOp, ": columns needs k");
  const CudaContrast problem = problem_of(inputs, scale, precision);
  Tensor row_lse = new_tensor(q, {inputs.rows}, ScalarType::Float);
  Tensor col_lse = new_tensor(q, {columns ? inputs.cols : 0}, ScalarType::Float);
  Tensor scratch = cuda_scratch(q, cuda_contrast_forward_bytes(problem, columns));
  cuda_contrast_forward(problem,
                        {static_cast<float*>(row_lse.mutable_data_ptr()),
                         columns ? static_cast<float*>(col_lse.mutable_data_ptr()) : nullptr},
                        scratch.mutable_data_ptr(), current_stream(q));
  return {row_lse, col_lse, new_tensor(q, {keep}, ScalarType::Float)};
}

std::tuple<Tensor, Tensor, Tensor> similarity_lse_backward_cuda(const Tensor& grad_row, const Tensor& grad_col,
                                                                const Tensor& q, std::optional<Tensor> k,
                                                                const Tensor& scale, std::optional<Tensor> q_group,
                                                                std::optional<Tensor> k_group, const Tensor& row_lse,
                                                                const Tensor& col_lse, bool need_q, bool need_k,
                                                                std::string precision, std::optional<Tensor>) {
  const DeviceScope scope(q);
  const SimilarityLseInputs inputs(q, k, q_group, k_group);
  const CudaContrast problem = problem_of(inputs, scale, precision);
  const bool columns = k && col_lse.numel() > 0;
  need_q = need_q || !k;
  need_k = need_k && k;
  check_on_device(kOp, "row_lse", row_lse, q);
  check_on_device(kOp, "grad_row", grad_row, q);
  const Tensor rows = float_vector(kOp, "row_lse", row_lse, inputs.rows);
  const Tensor grad_rows = float_vector(kOp, "grad_row", grad_row, inputs.rows);
  const Tensor cols = float_vector(kOp, "col_lse", col_lse, columns ? inputs.cols : 0);
  const Tensor grad_cols = float_vector(kOp, "grad_col", grad_col, columns ? inputs.cols : 0);
  if (columns) {
    check_on_device(kOp, "col_lse", cols, q);
    check_on_device(kOp, "grad_col", grad_cols, q);
  }
  const auto gradient = [&](bool wanted, int64_t count) {
    return wanted ? new_tensor(q, {count, inputs.dim}, q.scalar_type()) : new_tensor(q, {0}, q.scalar_type());
  };
  Tensor grad_q = gradient(need_q, inputs.rows), grad_k = gradient(need_k, inputs.cols);
  Tensor grad_scale = new_tensor(q, {}, ScalarType::Float);
  Tensor scratch = cuda_scratch(q, cuda_contrast_backward_bytes(problem));
  cuda_contrast_backward(
      problem,
      {floats(rows), floats(grad_rows), columns ? floats(cols) : nullptr, columns ? floats(grad_cols) : nullptr,
       need_q ? grad_q.mutable_data_ptr() : nullptr, need_k ? grad_k.mutable_data_ptr() : nullptr,
       static_cast<float*>(grad_scale.mutable_data_ptr())},
      scratch.mutable_data_ptr(), current_stream(q));
  return {grad_q, grad_k, grad_scale};
}

FASTCL_CUDA_LIBRARY(m) {
  m.impl("similarity_lse", TORCH_BOX(&similarity_lse_cuda));
  m.impl("similarity_lse_backward", TORCH_BOX(&similarity_lse_backward_cuda));
}

}  // namespace
}  // namespace fastcl

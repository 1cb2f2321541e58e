#include <torch/csrc/stable/library.h>

#include "similarity_lse/similarity_lse_ops.h"

namespace fastcl {
namespace {

constexpr const char* kOp = SimilarityLseInputs::kOp;

std::tuple<Tensor, Tensor, Tensor> similarity_lse_cpu(const Tensor& q, std::optional<Tensor> k, const Tensor& scale,
                                                      std::optional<Tensor> q_group, std::optional<Tensor> k_group,
                                                      bool columns, std::string precision, int64_t keep) {
  const SimilarityLseInputs inputs(q, k, q_group, k_group);
  FASTCL_CHECK(!columns || k, kOp, ": columns needs k");
  Tensor row_lse = new_tensor(q, {inputs.rows}, ScalarType::Float);
  Tensor col_lse = new_tensor(q, {columns ? inputs.cols : 0}, ScalarType::Float);
  Tensor kept = new_scratch_tensor(keep);
  similarity_lse_forward(inputs.problem(scale_value(kOp, scale), bf16_products(kOp, precision)),
                         {static_cast<float*>(row_lse.mutable_data_ptr()),
                          columns ? static_cast<float*>(col_lse.mutable_data_ptr()) : nullptr,
                          static_cast<float*>(kept.mutable_data_ptr()), keep});
  return {row_lse, col_lse, kept};
}

std::tuple<Tensor, Tensor, Tensor> similarity_lse_backward_cpu(const Tensor& grad_row, const Tensor& grad_col,
                                                               const Tensor& q, std::optional<Tensor> k,
                                                               const Tensor& scale, std::optional<Tensor> q_group,
                                                               std::optional<Tensor> k_group, const Tensor& row_lse,
                                                               const Tensor& col_lse, bool need_q, bool need_k,
                                                               std::string precision, std::optional<Tensor> kept) {
  const SimilarityLseInputs inputs(q, k, q_group, k_group);
  const bool columns = k && col_lse.numel() > 0;
  need_q = need_q || !k;
  need_k = need_k && k;
  const Tensor rows = float_vector(kOp, "row_lse", row_lse, inputs.rows);
  const Tensor grad_rows = float_vector(kOp, "grad_row", grad_row, inputs.rows);
  const Tensor cols = float_vector(kOp, "col_lse", col_lse, columns ? inputs.cols : 0);
  const Tensor grad_cols = float_vector(kOp, "grad_col", grad_col, columns ? inputs.cols : 0);
  const KeptFloats saved(kOp, kept);
  const auto gradient = [&](bool wanted, int64_t count) {
    return wanted ? new_tensor(q, {count, inputs.dim}, q.scalar_type()) : new_tensor(q, {0}, q.scalar_type());
  };
  Tensor grad_q = gradient(need_q, inputs.rows), grad_k = gradient(need_k, inputs.cols);
  Tensor grad_scale = new_tensor(q, {}, ScalarType::Float);
  similarity_lse_backward(
      inputs.problem(scale_value(kOp, scale), bf16_products(kOp, precision)),
      {floats(rows), floats(grad_rows), columns ? floats(cols) : nullptr, columns ? floats(grad_cols) : nullptr,
       need_q ? grad_q.mutable_data_ptr() : nullptr, need_k ? grad_k.mutable_data_ptr() : nullptr,
       static_cast<float*>(grad_scale.mutable_data_ptr()), saved.data, saved.count});
  return {grad_q, grad_k, grad_scale};
}

STABLE_TORCH_LIBRARY_IMPL(fastcl, CPU, m) {
  m.impl("similarity_lse", TORCH_BOX(&similarity_lse_cpu));
  m.impl("similarity_lse_backward", TORCH_BOX(&similarity_lse_backward_cpu));
}

}  // namespace
}  // namespace fastcl

// similarity_lse between torch and the kernels: check and fill the Params; once, for every device.
#pragma once

#include <optional>
#include <string>
#include <tuple>

#include "common/tensor_ops.h"
#include "similarity_lse/similarity_lse.h"

namespace fastcl {

// The inputs, contiguous and checked; owns what the Params point to.
struct SimilarityLseInputs {
  Tensor q;
  std::optional<Tensor> k, q_group, k_group;
  FloatType type;
  int64_t rows, cols, dim;

  SimilarityLseInputs(const Tensor& q_in, const std::optional<Tensor>& k_in, const std::optional<Tensor>& q_group_in,
                      const std::optional<Tensor>& k_group_in)
      : q(torch::stable::contiguous(q_in)), type(float_type(kOp, "q", q_in)) {
    FASTCL_CHECK(q.dim() == 2 && q.size(1) > 0, kOp, ": q must be [M, D], D at least 1, got ", shape(q));
    rows = cols = q.size(0);
    dim = q.size(1);
    if (k_in) {
      check_dtype(kOp, "k", *k_in, q.scalar_type());
      FASTCL_CHECK(k_in->dim() == 2 && k_in->size(1) == dim, kOp, ": k must be [P, ", dim, "], got ", shape(*k_in));
      k = torch::stable::contiguous(*k_in);
      cols = k->size(0);
    }
    FASTCL_CHECK(k_group_in.has_value() == (k_in && q_group_in), kOp, ": k_group is given where q_group and k are");
    if (q_group_in) q_group = group("q_group", *q_group_in, rows);
    if (k_group_in) k_group = group("k_group", *k_group_in, cols);
  }

  SimilarityLse problem(float scale, bool bf16_products) const {
    return {q.const_data_ptr(),
            k ? k->const_data_ptr() : nullptr,
            !k,
            type,
            rows,
            cols,
            dim,
            scale,
            q_group.has_value(),
            integers(q_group),
            integers(k_group),
            bf16_products};
  }

  static constexpr const char* kOp = "similarity_lse";

 private:
  static Tensor group(const char* name, const Tensor& tensor, int64_t count) {
    check_dtype(kOp, name, tensor, ScalarType::Long);
    FASTCL_CHECK(tensor.dim() == 1 && tensor.size(0) == count, kOp, ": ", name, " must be [", count, "], got ",
                 shape(tensor));
    return torch::stable::contiguous(tensor);
  }
  static const int64_t* integers(const std::optional<Tensor>& tensor) {
    return tensor ? static_cast<const int64_t*>(tensor->const_data_ptr()) : nullptr;
  }
};

}  // namespace fastcl

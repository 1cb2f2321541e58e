#include <torch/csrc/stable/library.h>

#include "augment/augment_ops.h"
#include "common/memory.h"

namespace fastcl {
namespace {

Tensor augment_sample_cpu(const Tensor& recipe, const Tensor& index, int64_t seed, int64_t epoch, int64_t view,
                          int64_t height, int64_t width, int64_t out_height, int64_t out_width) {
  const Tensor numbers = torch::stable::contiguous(index);
  AugmentSample problem =
      augment_sample_problem(recipe, numbers, seed, epoch, view, height, width, out_height, out_width);
  Tensor params = new_tensor(index, {problem.n, kParams}, ScalarType::Float);
  problem.params = static_cast<AugmentParams*>(params.mutable_data_ptr());
  augment_sample(problem);
  return params;
}

Tensor augment_sample_ragged_cpu(const Tensor& recipe, const Tensor& index, const Tensor& shapes, int64_t seed,
                                 int64_t epoch, int64_t view, int64_t out_height, int64_t out_width) {
  const Tensor numbers = torch::stable::contiguous(index), sizes = torch::stable::contiguous(shapes);
  AugmentSample problem = augment_sample_problem(recipe, numbers, seed, epoch, view, 1, 1, out_height, out_width);
  problem.shapes = ragged_shapes("augment_sample", sizes, problem.n);
  Tensor params = new_tensor(index, {problem.n, kParams}, ScalarType::Float);
  problem.params = static_cast<AugmentParams*>(params.mutable_data_ptr());
  augment_sample(problem);
  return params;
}

void apply_into(AugmentInputs& inputs, const Tensor& out) {
  inputs.check_rows();
  inputs.problem.out = out.mutable_data_ptr();
  augment_apply(inputs.problem);
}

Tensor augment_apply_cpu(const Tensor& images, const Tensor& params, int64_t height, int64_t width,
                         std::string interpolation, std::vector<double> fill, std::vector<double> mean,
                         std::vector<double> std, ScalarType dtype) {
  AugmentInputs inputs(images, params, height, width, interpolation, fill, mean, std, dtype);
  Tensor out = new_tensor(images, {images.size(0), images.size(1), height, width}, dtype);
  prefer_huge_pages(out.mutable_data_ptr(), size_t(out.numel()) * out.element_size());
  apply_into(inputs, out);
  return out;
}

void augment_apply_out_cpu(const Tensor& images, const Tensor& params, std::string interpolation,
                           std::vector<double> fill, std::vector<double> mean, std::vector<double> std,
                           const Tensor& out) {
  FASTCL_CHECK(out.dim() == 4 && out.is_contiguous() && out.is_cpu(),
               "augment_apply: out must be contiguous [B, C, H, W] on the CPU, got ", shape(out));
  AugmentInputs inputs(images, params, out.size(2), out.size(3), interpolation, fill, mean, std, out.scalar_type());
  FASTCL_CHECK(out.size(0) == images.size(0) && out.size(1) == images.size(1), "augment_apply: out must be [",
               images.size(0), ", ", images.size(1), ", H, W], got ", shape(out));
  apply_into(inputs, out);
}

void augment_apply_ragged_cpu(const Tensor& data, const Tensor& offsets, const Tensor& shapes, const Tensor& params,
                              std::string interpolation, std::vector<double> fill, std::vector<double> mean,
                              std::vector<double> std, const Tensor& out) {
  FASTCL_CHECK(out.dim() == 4 && out.is_contiguous() && out.is_cpu() && out.size(0) == offsets.numel(),
               "augment_apply: out must be contiguous [", offsets.numel(), ", C, H, W] on the CPU, got ", shape(out));
  AugmentInputs inputs(data, offsets, shapes, out.size(1), params, out.size(2), out.size(3), interpolation, fill, mean,
                       std, out.scalar_type());
  apply_into(inputs, out);
}

STABLE_TORCH_LIBRARY_IMPL(fastcl, CPU, m) {
  m.impl("augment_sample", TORCH_BOX(&augment_sample_cpu));
  m.impl("augment_sample_ragged", TORCH_BOX(&augment_sample_ragged_cpu));
  m.impl("augment_apply", TORCH_BOX(&augment_apply_cpu));
  m.impl("augment_apply_out", TORCH_BOX(&augment_apply_out_cpu));
  m.impl("augment_apply_ragged", TORCH_BOX(&augment_apply_ragged_cpu));
}

}  // namespace
}  // namespace fastcl

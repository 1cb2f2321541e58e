#include <torch/csrc/stable/library.h>

#include "augment/augment_ops.h"

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

Tensor augment_apply_cpu(const Tensor& images, const Tensor& params, int64_t height, int64_t width,
                         std::string interpolation, std::vector<double> fill, std::vector<double> mean,
                         std::vector<double> std, ScalarType dtype) {
  AugmentInputs inputs(images, params, height, width, interpolation, fill, mean, std, dtype);
  inputs.check_rows();
  Tensor out = new_tensor(images, {images.size(0), images.size(1), height, width}, dtype);
  inputs.problem.out = out.mutable_data_ptr();
  augment_apply(inputs.problem);
  return out;
}

STABLE_TORCH_LIBRARY_IMPL(fastcl, CPU, m) {
  m.impl("augment_sample", TORCH_BOX(&augment_sample_cpu));
  m.impl("augment_apply", TORCH_BOX(&augment_apply_cpu));
}

}  // namespace
}  // namespace fastcl

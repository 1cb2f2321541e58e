#include <torch/csrc/stable/library.h>

#include <memory>

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

using Floats = std::vector<double>;

Tensor new_view(const Tensor& images, int64_t height, int64_t width, ScalarType dtype) {
  Tensor out = new_tensor(images, {images.size(0), images.size(1), height, width}, dtype);
  prefer_huge_pages(out.mutable_data_ptr(), size_t(out.numel()) * out.element_size());
  return out;
}

void check_out(const char* op, const Tensor& out, const Tensor& images) {
  FASTCL_CHECK(out.dim() == 4 && out.is_contiguous() && out.is_cpu() && out.size(0) == images.size(0) &&
                   out.size(1) == images.size(1),
               op, ": out must be contiguous [", images.size(0), ", ", images.size(1), ", H, W] on the CPU, got ",
               shape(out));
}

Tensor augment_apply_cpu(const Tensor& images, const Tensor& params, int64_t height, int64_t width,
                         std::string interpolation, Floats fill, Floats mean, Floats std, ScalarType dtype,
                         std::string resize, Floats erase) {
  AugmentInputs inputs(images, params, height, width, interpolation, fill, mean, std, dtype, resize, erase);
  inputs.check_rows();
  const Tensor out = new_view(images, height, width, dtype);
  inputs.problem.out = out.mutable_data_ptr();
  augment_apply(&inputs.problem, 1);
  return out;
}

void augment_apply_out_cpu(const Tensor& images, const Tensor& params, std::string interpolation, Floats fill,
                           Floats mean, Floats std, const Tensor& out, std::string resize, Floats erase) {
  FASTCL_CHECK(images.dim() == 4, "augment_apply: images must be [B, C, H, W], got ", shape(images));
  check_out("augment_apply", out, images);
  AugmentInputs inputs(images, params, out.size(2), out.size(3), interpolation, fill, mean, std, out.scalar_type(),
                       resize, erase);
  inputs.check_rows();
  inputs.problem.out = out.mutable_data_ptr();
  augment_apply(&inputs.problem, 1);
}

// All tables are checked before anything is written. inputs_of(v): of view v.
template <class InputsOf>
void views_into(const std::vector<Tensor>& out, InputsOf&& inputs_of) {
  std::vector<std::unique_ptr<AugmentInputs>> inputs;
  std::vector<AugmentApply> problems;
  for (size_t v = 0; v < out.size(); ++v) {
    inputs.push_back(inputs_of(v));
    inputs[v]->check_rows("augment_views", "[" + std::to_string(v) + "]");
    inputs[v]->problem.out = out[v].mutable_data_ptr();
    problems.push_back(inputs[v]->problem);
  }
  augment_apply(problems.data(), int64_t(problems.size()));
}

void views_of_one_size(const Tensor& images, const std::vector<Tensor>& params, const std::vector<Tensor>& out,
                       const std::string& interpolation, const Floats& fill, const Floats& mean, const Floats& std,
                       const std::string& resize, const Floats& erase) {
  views_into(out, [&](size_t v) {
    return std::make_unique<AugmentInputs>(images, params[v], out[v].size(2), out[v].size(3), interpolation, fill, mean,
                                           std, out[v].scalar_type(), resize, erase);
  });
}

std::vector<Tensor> augment_views_cpu(const Tensor& images, std::vector<Tensor> params, std::vector<int64_t> heights,
                                      std::vector<int64_t> widths, std::string interpolation, Floats fill, Floats mean,
                                      Floats std, ScalarType dtype, std::string resize, Floats erase) {
  FASTCL_CHECK(heights.size() == params.size() && widths.size() == params.size(),
               "augment_views: heights and widths must have one entry for each of ", params.size(), " tables, got ",
               heights.size(), " and ", widths.size());
  std::vector<Tensor> out;
  for (size_t v = 0; v < params.size(); ++v) {
    FASTCL_CHECK(
        images.dim() == 4 && heights[v] >= 1 && widths[v] >= 1 && heights[v] <= kMaxSide && widths[v] <= kMaxSide,
        "augment_views: sides must be from 1 to ", kMaxSide, ", got images ", shape(images), ", size ", heights[v],
        " x ", widths[v]);
    out.push_back(new_view(images, heights[v], widths[v], dtype));
  }
  views_of_one_size(images, params, out, interpolation, fill, mean, std, resize, erase);
  return out;
}

void augment_views_out_cpu(const Tensor& images, std::vector<Tensor> params, std::string interpolation, Floats fill,
                           Floats mean, Floats std, std::string resize, Floats erase, std::vector<Tensor> out) {
  FASTCL_CHECK(images.dim() == 4, "augment_views: images must be [B, C, H, W], got ", shape(images));
  FASTCL_CHECK(out.size() == params.size(), "augment_views: out must have one tensor for each of ", params.size(),
               " tables, got ", out.size());
  for (const Tensor& view : out) {
    check_out("augment_views", view, images);
    FASTCL_CHECK(view.scalar_type() == out[0].scalar_type(), "augment_views: out must be of one dtype");
  }
  views_of_one_size(images, params, out, interpolation, fill, mean, std, resize, erase);
}

void augment_views_ragged_cpu(const Tensor& data, const Tensor& offsets, const Tensor& shapes,
                              std::vector<Tensor> params, std::string interpolation, Floats fill, Floats mean,
                              Floats std, std::string resize, Floats erase, std::vector<Tensor> out) {
  FASTCL_CHECK(out.size() == params.size(), "augment_views: out must have one tensor for each of ", params.size(),
               " tables, got ", out.size());
  for (const Tensor& view : out)
    FASTCL_CHECK(view.dim() == 4 && view.is_contiguous() && view.is_cpu() && view.size(0) == offsets.numel(),
                 "augment_views: out must be contiguous [", offsets.numel(), ", C, H, W] on the CPU, got ",
                 shape(view));
  views_into(out, [&](size_t v) {
    return std::make_unique<AugmentInputs>(data, offsets, shapes, out[v].size(1), params[v], out[v].size(2),
                                           out[v].size(3), interpolation, fill, mean, std, out[v].scalar_type(), resize,
                                           erase);
  });
}

STABLE_TORCH_LIBRARY_IMPL(fastcl, CPU, m) {
  m.impl("augment_sample", TORCH_BOX(&augment_sample_cpu));
  m.impl("augment_sample_ragged", TORCH_BOX(&augment_sample_ragged_cpu));
  m.impl("augment_apply", TORCH_BOX(&augment_apply_cpu));
  m.impl("augment_apply_out", TORCH_BOX(&augment_apply_out_cpu));
  m.impl("augment_views", TORCH_BOX(&augment_views_cpu));
  m.impl("augment_views_out", TORCH_BOX(&augment_views_out_cpu));
  m.impl("augment_views_ragged", TORCH_BOX(&augment_views_ragged_cpu));
}

}  // namespace
}  // namespace fastcl

#include <torch/csrc/stable/library.h>

#include "augment/augment_ops.h"
#include "common/memory.h"

namespace fastcl {
namespace {

struct Cpu {
  static constexpr bool kOnHost = true;
  struct Scope {
    explicit Scope(const Tensor&) {}
  };

  static bool holds(const Tensor& tensor, const Tensor&) { return tensor.is_cpu(); }

  static Tensor make(const Tensor& images, int64_t height, int64_t width, ScalarType dtype) {
    Tensor out = new_tensor(images, {images.size(0), images.size(1), height, width}, dtype);
    prefer_huge_pages(out.mutable_data_ptr(), size_t(out.numel()) * out.element_size());
    return out;
  }

  static void sample(const AugmentSample& problem, const Tensor&) { augment_sample(problem); }
  static void apply(const AugmentApply* views, int64_t count, const AugmentInputs&) { augment_apply(views, count); }
};

STABLE_TORCH_LIBRARY_IMPL(fastcl, CPU, m) { FASTCL_AUGMENT_OPS(m, Cpu); }

}  // namespace
}  // namespace fastcl

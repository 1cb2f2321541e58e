#include "augment/augment_cuda.h"
#include "augment/augment_ops.h"
#include "common/cuda_ops.h"

namespace fastcl {
namespace {

struct Cuda {
  static constexpr bool kOnHost = false;
  using Scope = DeviceScope;

  static bool holds(const Tensor& tensor, const Tensor& like) { return on_device_of(tensor, like); }

  static Tensor make(const Tensor& images, int64_t height, int64_t width, ScalarType dtype) {
    return new_tensor(images, {images.size(0), images.size(1), height, width}, dtype);
  }

  static void sample(const AugmentSample& problem, const Tensor& like) {
    augment_sample_cuda(problem, current_stream(like));
  }

  static void apply(const AugmentApply* views, int64_t count, const AugmentInputs& inputs) {
    const Tensor& images = inputs.images;
    for (int64_t v = 0; v < count; ++v) {
      FASTCL_CHECK(views[v].out_height * views[v].out_width <= kCudaMaxPixels,
                   "augment_apply: on CUDA a view must have at most ", kCudaMaxPixels, " pixels, got ",
                   views[v].out_height, " x ", views[v].out_width);
      const Tensor scratch = new_tensor(images, {int64_t(augment_apply_cuda_bytes(views[v]))}, ScalarType::Byte);
      augment_apply_cuda(views[v], images.numel() * int64_t(images.element_size()), scratch.mutable_data_ptr(),
                         current_stream(images));
    }
  }
};

FASTCL_CUDA_LIBRARY(m) { FASTCL_AUGMENT_OPS(m, Cuda); }

}  // namespace
}  // namespace fastcl

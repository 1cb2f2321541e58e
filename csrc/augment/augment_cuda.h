// Augmentation on a GPU: the stages of augment.h, an image by one thread block, in one launch for each view.
//
// What an image needs between its stages, its planes and those of a second one, lies in shared memory where it fits,
// else in scratch memory of the device, which the L2 cache holds in part. Nothing is read back to the host and no float
// is added by an atomic: the same inputs give the same bits on one device.
//
// A row of parameters that does not fit its image, or a ragged image outside of its bytes, is no error here, since the
// host does not look: the view of that image is NaN, or 0 in uint8.
#pragma once

#include <cstddef>
#include <cstdint>

#include "augment/augment.h"
#include "common/cuda/launch.h"

namespace fastcl {

constexpr int64_t kCudaMaxPixels = 1 << 28;  // of a view: indices fit an int

// index, shapes and params in device memory.
void augment_sample_cuda(const AugmentSample& problem, cuda::Stream stream);

// Bytes of scratch memory that a view needs.
size_t augment_apply_cuda_bytes(const AugmentApply& view);

// images, offsets, shapes, params and out in device memory, fill, mean, inverse_std and erase on the host. `bytes`: of
// all images together.
void augment_apply_cuda(const AugmentApply& view, int64_t bytes, void* scratch, cuda::Stream stream);

}  // namespace fastcl

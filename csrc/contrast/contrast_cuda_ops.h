// What both ops of the primitive need of torch on a GPU: checks.
#pragma once

#include <string>

#include "common/cuda_ops.h"
#include "contrast/contrast_cuda.h"

namespace fastcl {

inline const float* device_scale(const char* op, const Tensor& scale, const Tensor& like) {
  check_dtype(op, "scale", scale, ScalarType::Float);
  FASTCL_CHECK(scale.numel() == 1, op, ": scale must have one element, got ", shape(scale));
  check_on_device(op, "scale", scale, like);
  return floats(scale);
}

inline CudaProducts products_for(const char* op, FloatType type, const std::string& precision) {
  bf16_products(op, precision);  // refuses what is none
  return cuda_products(type, precision.c_str(), cuda::compute_capability());
}

inline void check_cuda_size(const char* op, int64_t rows, int64_t cols, int64_t dim) {
  FASTCL_CHECK(dim <= kCudaMaxDim, op, ": on CUDA rows must have at most ", kCudaMaxDim, " elements, got ", dim,
               "; fastcl.use_backend('reference') takes longer ones");
  FASTCL_CHECK(rows <= kCudaMaxRows && cols <= kCudaMaxRows, op, ": on CUDA at most ", kCudaMaxRows,
               " rows are allowed, got ", rows > cols ? rows : cols);
}

}  // namespace fastcl

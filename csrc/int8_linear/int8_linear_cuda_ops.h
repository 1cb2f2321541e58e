// int8_linear between torch and the CUDA kernels, for int8_conv2d too.
#pragma once

#include <optional>
#include <string>

#include "common/cuda_ops.h"
#include "int8_linear/int8_linear_cuda.h"
#include "int8_linear/int8_linear_ops.h"

namespace fastcl {

// On a GPU, fills y, whose last dimension is n, with the product of x's rows of k values, as they stand or in patches.
inline void run_int8_linear_cuda(const char* op, const Tensor& x, const Int8Patches* patches, const Tensor& weight,
                                 const Tensor& weight_scale, const std::optional<Tensor>& bias,
                                 const std::optional<Tensor>& packed, const Int8Activations& a,
                                 const std::string& activation, Tensor& y) {
  check_int8_weight(op, weight);
  FASTCL_CHECK(!packed, op, ": packed must be None on CUDA, whose kernels read the weight as it stands");
  const int64_t n = weight.size(0), k = weight.numel() / n, m = y.numel() / n;
  FASTCL_CHECK(m <= kCudaInt8MaxRows && n <= kCudaInt8MaxRows, op, ": on CUDA x and weight may have at most ",
               kCudaInt8MaxRows, " rows, got ", m, " and ", n);
  for (const auto& [name, tensor] : {std::pair<const char*, std::optional<Tensor>>{"weight", weight},
                                     {"weight_scale", weight_scale},
                                     {"bias", bias},
                                     {"x_range", a.x_range},
                                     {"x_multiplier", a.x_multiplier},
                                     {"outlier_columns", a.outlier_columns},
                                     {"outlier_weight", a.outlier_weight}})
    if (tensor) check_on_device(op, name, *tensor, x);
  const Tensor values = as_contiguous(x), rows = as_contiguous(weight);
  const Tensor scale = float_vector(op, "weight_scale", weight_scale, n);
  const Tensor bias_vector = bias ? float_vector(op, "bias", *bias, n) : scale;
  CudaInt8Linear p = {};
  p.x = values.const_data_ptr();
  p.patches = patches;
  p.type = float_type(op, "x", x);
  p.m = static_cast<int>(m), p.k = static_cast<int>(k), p.n = static_cast<int>(n);
  p.weight = static_cast<const int8_t*>(rows.const_data_ptr());
  p.weight_scale = floats(scale);
  if (bias) p.bias = floats(bias_vector);
  p.mode = a.mode;
  if (a.x_range) p.x_range = floats(*a.x_range);
  if (a.x_multiplier) p.x_multiplier = floats(*a.x_multiplier);
  if (a.outlier_columns) {
    FASTCL_CHECK(a.outlier_columns->size(0) <= kInt8MaxDepth, op, ": outlier_columns must be at most ", kInt8MaxDepth,
                 ", got ", a.outlier_columns->size(0));
    p.outliers = static_cast<int>(a.outlier_columns->size(0));
    p.outlier_columns = static_cast<const int64_t*>(a.outlier_columns->const_data_ptr());
    p.outlier_weight = floats(*a.outlier_weight);
  }
  p.activation = activation_by_name(op, activation);
  if (y.numel() == 0) return;
  p.y = y.mutable_data_ptr();
  Tensor scratch = cuda_scratch(x, cuda_int8_linear_bytes(p));
  cuda_int8_linear(p, scratch.mutable_data_ptr(), current_stream(x));
}

}  // namespace fastcl

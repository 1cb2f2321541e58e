// int8_linear between torch and the kernels: check, allocate, fill the Params; once, for every device.
#pragma once

#include <algorithm>
#include <cstring>
#include <new>
#include <optional>
#include <string>
#include <vector>

#include "common/memory.h"
#include "common/tensor_ops.h"
#include "int8_linear/int8_linear.h"

namespace fastcl {

inline Activation activation_by_name(const char* op, const std::string& name) {
  if (name == "none") return Activation::kNone;
  if (name == "relu") return Activation::kRelu;
  if (name == "gelu") return Activation::kGelu;
  if (name == "silu") return Activation::kSilu;
  FASTCL_CHECK(false, op, ": activation must be none, relu, gelu or silu, got ", name);
  return Activation::kNone;
}

inline Int8Mode int8_mode_by_name(const char* op, const std::string& name) {
  if (name == "dynamic") return Int8Mode::kDynamic;
  if (name == "asymmetric") return Int8Mode::kAsymmetric;
  if (name == "static") return Int8Mode::kStatic;
  if (name == "int16") return Int8Mode::kInt16;
  FASTCL_CHECK(false, op, ": mode must be dynamic, asymmetric, static or int16, got ", name);
  return Int8Mode::kDynamic;
}

inline void check_int8_weight(const char* op, const Tensor& weight) {
  check_dtype(op, "weight", weight, ScalarType::Char);
  FASTCL_CHECK(weight.dim() >= 2 && weight.numel() > 0 && weight.numel() / weight.size(0) <= kInt8MaxDepth, op,
               ": weight must be [N, K], not empty, K at most ", kInt8MaxDepth, ", got ", shape(weight));
}

inline void check_int8_linear_shapes(const char* op, const Tensor& x, const Tensor& weight) {
  FASTCL_CHECK(weight.dim() == 2, op, ": weight must be [N, K], got ", shape(weight));
  FASTCL_CHECK(x.dim() >= 1 && x.size(x.dim() - 1) == weight.size(1), op, ": x must be [..., ", weight.size(1),
               "], got ", shape(x));
}

// The kernel that a packed weight is for.
inline const Int8Kernel& int8_kernel_of(const char* op, const Tensor& packed, int64_t n, int64_t k) {
  check_dtype(op, "packed", packed, ScalarType::Byte);
  Int8PackedHeader header = {};
  const bool whole = packed.dim() == 1 && packed.is_contiguous() && packed.size(0) >= int8_packed_bytes(n, k);
  if (whole) std::memcpy(&header, packed.const_data_ptr(), sizeof header);
  const int64_t outliers = std::clamp<int64_t>(header.outliers, 0, kInt8MaxDepth);
  const int64_t bytes =
      header.layer ? int8_packed_layer_bytes(n, k, header.multiplied, outliers) : int8_packed_bytes(n, k);
  FASTCL_CHECK(whole && packed.size(0) == bytes, op, ": packed must be int8_pack_weight's for a weight [", n, ", ", k,
               "], got ", shape(packed));
  header.kernel[sizeof header.kernel - 1] = 0;
  const Int8Kernel* kernel = header.kernel[0] ? int8_kernel(header.kernel) : nullptr;
  FASTCL_CHECK(kernel && header.n == n && header.k == k && header.outliers == outliers, op,
               ": packed must be int8_pack_weight's for a weight [", n, ", ", k, "] and a kernel of this machine (",
               int8_kernel_names(), "), got [", header.n, ", ", header.k, "] for '", header.kernel, "'");
  FASTCL_CHECK(reinterpret_cast<uintptr_t>(packed.const_data_ptr()) % 64 == 0, op,
               ": packed must stand on a multiple of 64 bytes");
  return *kernel;
}

// How x is to be quantised, and which of its columns are multiplied in float as well.
struct Int8Activations {
  Int8Mode mode;
  std::optional<Tensor> x_range, x_multiplier, outlier_columns, outlier_weight;
};

// For a packed weight: where it holds a huge page or more, it begins with one.
inline Tensor new_block(const Tensor& like, int64_t bytes) {
  if (bytes < int64_t(kHugePage)) return new_tensor(like, {bytes}, ScalarType::Byte);
  constexpr std::align_val_t kAlignment{kHugePage};
  const int64_t stride = 1;
  return torch::stable::from_blob(::operator new(size_t(bytes), kAlignment), {&bytes, 1}, {&stride, 1}, like.device(),
                                  ScalarType::Byte, [](void* data) { ::operator delete(data, kAlignment); });
}

// A weight [n, k], packed, in a block of so many bytes or just what it needs.
inline Tensor int8_pack(const Int8Kernel& kernel, const Tensor& weight, int64_t n, int64_t k, int64_t bytes = 0) {
  const Tensor rows = as_contiguous(weight);
  Tensor packed = new_block(weight, std::max(bytes, int8_packed_bytes(n, k)));
  int8_pack_weight(kernel, {static_cast<const int8_t*>(rows.const_data_ptr()), n, k,
                            static_cast<uint8_t*>(packed.mutable_data_ptr())});
  return packed;
}

inline Int8Activations int8_activations(const char* op, const std::string& mode, std::optional<Tensor> x_range,
                                        std::optional<Tensor> x_multiplier, std::optional<Tensor> outlier_columns,
                                        std::optional<Tensor> outlier_weight, int64_t n, int64_t k) {
  Int8Activations a = {int8_mode_by_name(op, mode)};
  FASTCL_CHECK(a.mode == Int8Mode::kDynamic || k <= kInt8MaxDepthUnsigned, op, ": in mode ", mode,
               " the weight must have at most ", kInt8MaxDepthUnsigned, " values for each of N, got ", k);
  FASTCL_CHECK((a.mode == Int8Mode::kStatic) == x_range.has_value(), op,
               ": x_range must be given in mode static and no other, got mode ", mode);
  if (x_range) a.x_range = float_vector(op, "x_range", *x_range, 2);
  if (x_multiplier) a.x_multiplier = float_vector(op, "x_multiplier", *x_multiplier, k);
  FASTCL_CHECK(outlier_columns.has_value() == outlier_weight.has_value(), op,
               ": outlier_columns and outlier_weight must be given together");
  if (outlier_columns) {
    check_dtype(op, "outlier_columns", *outlier_columns, ScalarType::Long);
    check_dtype(op, "outlier_weight", *outlier_weight, ScalarType::Float);
    FASTCL_CHECK(outlier_columns->dim() == 1 && outlier_weight->dim() == 2 &&
                     outlier_weight->size(0) == outlier_columns->size(0) && outlier_weight->size(1) == n,
                 op, ": outlier_weight must be [J, ", n, "] for outlier_columns [J], got ", shape(*outlier_weight),
                 " and ", shape(*outlier_columns));
    a.outlier_columns = as_contiguous(*outlier_columns);
    a.outlier_weight = as_contiguous(*outlier_weight);
  }
  return a;
}

// What only the CPU's kernels can look at before they run.
inline void check_int8_values(const char* op, const Int8Activations& a, int64_t k) {
  if (a.x_range) {
    const float scale = floats(*a.x_range)[0], zero = floats(*a.x_range)[1];
    FASTCL_CHECK(scale >= 0x1p-100f && scale <= 0x1p100f && zero >= 0 && zero <= 255 && zero == float(int32_t(zero)),
                 op, ": x_range must hold a scale from 2^-100 to 2^100 and a whole zero point from 0 to 255, got ",
                 scale, " and ", zero);
  }
  const int64_t outliers = a.outlier_columns ? a.outlier_columns->size(0) : 0;
  for (int64_t j = 0; j < outliers; ++j) {
    const int64_t column = static_cast<const int64_t*>(a.outlier_columns->const_data_ptr())[j];
    FASTCL_CHECK(column >= 0 && column < k, op, ": outlier_columns must be from 0 to ", k - 1, ", got ", column);
  }
}

// The layer in a packed block, for int8_kernel_of's kernel.
inline Int8Linear int8_packed_layer(const char* op, const Tensor& packed) {
  const auto* block = static_cast<const uint8_t*>(packed.const_data_ptr());
  FASTCL_CHECK(reinterpret_cast<const Int8PackedHeader*>(block)->layer, op, ": packed must be a layer's, with scales");
  return int8_packed_layer(block);
}

// Fills in how y is quantised for the layer of that packed block; not where it does not take integers.
inline void take_reader(const char* op, const Tensor& reader, Int8Linear& p) {
  check_dtype(op, "reader", reader, ScalarType::Byte);
  Int8PackedHeader header = {};
  const bool whole = reader.dim() == 1 && reader.is_contiguous() && reader.size(0) >= int64_t(sizeof header);
  if (whole) std::memcpy(&header, reader.const_data_ptr(), sizeof header);
  FASTCL_CHECK(header.layer, op, ": reader must be a packed layer, got ", shape(reader));
  p.y_scale = header.x_scale, p.y_zero = header.x_zero;
  p.y_quantized = Int8Mode(header.mode) == Int8Mode::kStatic && !header.multiplied && header.outliers == 0 &&
                  p.y_scale >= 0x1p-100f && p.y_scale <= 0x1p100f && p.y_zero >= 0 && p.y_zero <= 255;
}

// What does not depend on x, y and bias.
inline Int8Linear int8_layer(const char* op, int64_t n, int64_t k, const Tensor& weight_scale, const Int8Activations& a,
                             const std::string& activation) {
  check_int8_values(op, a, k);
  Int8Linear p = {};
  p.n = n, p.k = k;
  p.weight_scale = floats(weight_scale);
  p.mode = a.mode;
  if (a.x_range) p.x_scale = floats(*a.x_range)[0], p.x_zero = static_cast<int32_t>(floats(*a.x_range)[1]);
  if (a.x_multiplier) p.x_multiplier = floats(*a.x_multiplier);
  if (a.outlier_columns) {
    p.outliers = a.outlier_columns->size(0);
    p.outlier_columns = static_cast<const int64_t*>(a.outlier_columns->const_data_ptr());
    p.outlier_weight = floats(*a.outlier_weight);
  }
  p.activation = activation_by_name(op, activation);
  return p;
}

// Fills y, as it lies in memory, with the layer's results for x's rows of p.k values, likewise. False as Int8Kernel's.
inline bool run_int8_kernel(const char* op, const Int8Kernel& kernel, Int8Linear& p, const Tensor& x,
                            const std::optional<Tensor>& bias, Tensor& y) {
  std::optional<Tensor> bias_vector;
  if (bias) bias_vector = float_vector(op, "bias", *bias, p.n), p.bias = floats(*bias_vector);
  p.type = p.x_quantized ? FloatType::kFloat32 : float_type(op, "x", x);
  p.m = y.numel() / p.n;
  if (p.m == 0) return true;
  p.x = x.const_data_ptr();
  p.y = y.mutable_data_ptr();
  prefer_huge_pages(p.y, size_t(y.numel() * (p.y_quantized ? 1 : size_of(p.type))));
  return kernel.linear(p);
}

// On the CPU, fills y with the product of x's rows, as they stand or in patches.
inline void run_int8_linear(const char* op, const Tensor& x, const Int8Patches* patches, const Tensor& weight,
                            const Tensor& weight_scale, const std::optional<Tensor>& bias,
                            const std::optional<Tensor>& packed, const Int8Activations& a,
                            const std::string& activation, Tensor& y) {
  check_int8_weight(op, weight);
  const int64_t n = weight.size(0), k = weight.numel() / n;
  const Tensor scale = float_vector(op, "weight_scale", weight_scale, n);
  const Tensor block = packed ? *packed : int8_pack(*int8_kernel("auto"), weight, n, k);
  Int8Linear p = int8_layer(op, n, k, scale, a, activation);
  p.packed = static_cast<const uint8_t*>(block.const_data_ptr());
  p.patches = patches;
  run_int8_kernel(op, int8_kernel_of(op, block, n, k), p, as_contiguous(x), bias, y);
}

inline std::vector<int64_t> linear_output_sizes(const Tensor& x, int64_t n) {
  std::vector<int64_t> sizes;
  for (int64_t d = 0; d + 1 < x.dim(); ++d) sizes.push_back(x.size(d));
  sizes.push_back(n);
  return sizes;
}

}  // namespace fastcl

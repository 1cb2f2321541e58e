// int8_linear between torch and the kernels: check, allocate, fill the Params; once, for every device.
#pragma once

#include <cstring>
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

inline void check_int8_weight(const char* op, const Tensor& weight) {
  check_dtype(op, "weight", weight, ScalarType::Char);
  FASTCL_CHECK(weight.dim() >= 2 && weight.numel() > 0 && weight.numel() / weight.size(0) <= kInt8MaxDepth, op,
               ": weight must be [N, K], not empty, K at most ", kInt8MaxDepth, ", got ", shape(weight));
}

// The kernel that a packed weight is for.
inline const Int8Kernel& int8_kernel_of(const char* op, const Tensor& packed, int64_t n, int64_t k) {
  check_dtype(op, "packed", packed, ScalarType::Byte);
  FASTCL_CHECK(packed.dim() == 1 && packed.size(0) == int8_packed_bytes(n, k) && packed.is_contiguous(), op,
               ": packed must be int8_pack_weight's for a weight [", n, ", ", k, "], got ", shape(packed));
  Int8PackedHeader header;
  std::memcpy(&header, packed.const_data_ptr(), sizeof header);
  header.kernel[sizeof header.kernel - 1] = 0;
  const Int8Kernel* kernel = header.kernel[0] ? int8_kernel(header.kernel) : nullptr;
  FASTCL_CHECK(kernel && header.n == n && header.k == k, op, ": packed must be int8_pack_weight's for a weight [", n,
               ", ", k, "] and a kernel of this machine (", int8_kernel_names(), "), got [", header.n, ", ", header.k,
               "] for '", header.kernel, "'");
  FASTCL_CHECK(reinterpret_cast<uintptr_t>(packed.const_data_ptr()) % 64 == 0, op,
               ": packed must stand on a multiple of 64 bytes");
  return *kernel;
}

// The arguments of a product of rows of k values by n columns, contiguous and of the right size.
struct Int8LinearTensors {
  Tensor x, weight_scale, packed;
  std::optional<Tensor> bias;
  const Int8Kernel* kernel;
  FloatType type;
  int64_t n, k;
};

inline Tensor int8_pack(const Int8Kernel& kernel, const Tensor& weight, int64_t n, int64_t k) {
  const Tensor rows = torch::stable::contiguous(weight);
  Tensor packed = new_tensor(weight, {int8_packed_bytes(n, k)}, ScalarType::Byte);
  int8_pack_weight(kernel, {static_cast<const int8_t*>(rows.const_data_ptr()), n, k,
                            static_cast<uint8_t*>(packed.mutable_data_ptr())});
  return packed;
}

inline Int8LinearTensors int8_linear_tensors(const char* op, const Tensor& x, const Tensor& weight, int64_t n,
                                             int64_t k, const Tensor& weight_scale, std::optional<Tensor> bias,
                                             const std::optional<Tensor>& packed) {
  check_int8_weight(op, weight);
  const FloatType type = float_type(op, "x", x);
  if (bias) bias = float_vector(op, "bias", *bias, n);
  const Tensor block = packed ? *packed : int8_pack(*int8_kernel("auto"), weight, n, k);
  const Int8Kernel& kernel = int8_kernel_of(op, block, n, k);
  return {torch::stable::contiguous(x),
          float_vector(op, "weight_scale", weight_scale, n),
          block,
          bias,
          &kernel,
          type,
          n,
          k};
}

// Fills y, whose last dimension is n.
inline void run_int8_linear(const char* op, const Int8LinearTensors& t, const Int8Patches* patches,
                            const std::string& activation, Tensor& y) {
  const Activation act = activation_by_name(op, activation);
  if (y.numel() == 0) return;
  prefer_huge_pages(y.mutable_data_ptr(), size_t(y.numel() * size_of(t.type)));
  t.kernel->linear({t.x.const_data_ptr(), patches, t.type, y.numel() / t.n, t.k, t.n,
                    static_cast<const uint8_t*>(t.packed.const_data_ptr()),
                    static_cast<const float*>(t.weight_scale.const_data_ptr()),
                    t.bias ? static_cast<const float*>(t.bias->const_data_ptr()) : nullptr, act, y.mutable_data_ptr()});
}

inline Tensor new_linear_output(const Tensor& x, int64_t n) {
  std::vector<int64_t> sizes;
  for (int64_t d = 0; d + 1 < x.dim(); ++d) sizes.push_back(x.size(d));
  sizes.push_back(n);
  return torch::stable::new_empty(x, {sizes.data(), sizes.size()}, x.scalar_type());
}

}  // namespace fastcl

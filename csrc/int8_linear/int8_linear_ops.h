// int8_linear between torch and the kernels: check, allocate, fill the Params; once, for every device.
#pragma once

#include <cstring>
#include <string>
#include <vector>

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
  FASTCL_CHECK(weight.dim() == 2 && weight.numel() > 0 && weight.size(1) <= kInt8MaxDepth, op,
               ": weight must be [N, K], not empty, K at most ", kInt8MaxDepth, ", got ", shape(weight));
}

// The contiguous form of a float32 [n] argument.
inline Tensor float_vector(const char* op, const char* name, const Tensor& tensor, int64_t n) {
  check_dtype(op, name, tensor, ScalarType::Float);
  FASTCL_CHECK(tensor.dim() == 1 && tensor.size(0) == n, op, ": ", name, " must be [", n, "], got ", shape(tensor));
  return torch::stable::contiguous(tensor);
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
  FASTCL_CHECK(kernel && header.n == n && header.k == k, op, ": packed must be int8_pack_weight's for a weight [", n, ", ", k,
               "] and a kernel of this machine (", int8_kernel_names(), "), got [", header.n, ", ", header.k, "] for '",
               header.kernel, "'");
  FASTCL_CHECK(reinterpret_cast<uintptr_t>(packed.const_data_ptr()) % 64 == 0, op,
               ": packed must stand on a multiple of 64 bytes");
  return *kernel;
}

inline Tensor new_linear_output(const Tensor& x, int64_t n) {
  std::vector<int64_t> sizes;
  for (int64_t d = 0; d + 1 < x.dim(); ++d) sizes.push_back(x.size(d));
  sizes.push_back(n);
  return torch::stable::new_empty(x, {sizes.data(), sizes.size()}, x.scalar_type());
}

}  // namespace fastcl

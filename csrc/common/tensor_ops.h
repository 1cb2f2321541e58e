// What the torch side of every op does: float types, contiguous inputs, new outputs.
#pragma once

#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>
#include <torch/headeronly/core/ScalarType.h>

#include <algorithm>
#include <initializer_list>
#include <vector>

#include "common/buffer.h"
#include "common/check.h"
#include "common/float_types.h"

namespace fastcl {

using torch::headeronly::ScalarType;
using torch::stable::Tensor;

// The kernels' name of a tensor's dtype; float64 is the reference's business.
inline FloatType float_type(const char* op, const char* name, const Tensor& tensor) {
  switch (tensor.scalar_type()) {
    case ScalarType::Float:
      return FloatType::kFloat32;
    case ScalarType::BFloat16:
      return FloatType::kBFloat16;
    case ScalarType::Half:
      return FloatType::kFloat16;
    default:
      break;
  }
  FASTCL_CHECK(false, op, ": ", name, " must be float32, bfloat16 or float16, got ", toString(tensor.scalar_type()));
  return FloatType::kFloat32;
}

inline void check_dtype(const char* op, const char* name, const Tensor& tensor, ScalarType wanted) {
  FASTCL_CHECK(tensor.scalar_type() == wanted, op, ": ", name, " must be ", toString(wanted), ", got ",
               toString(tensor.scalar_type()));
}

inline bool same_shape(const Tensor& a, const Tensor& b) {
  if (a.dim() != b.dim()) return false;
  for (int64_t d = 0; d < a.dim(); ++d)
    if (a.size(d) != b.size(d)) return false;
  return true;
}

inline Tensor as_contiguous(const Tensor& tensor) {  // the dispatcher is called only where there is something to do
  return tensor.is_contiguous() ? tensor : torch::stable::contiguous(tensor);
}

// Uninitialised, on the device of `like`. Not through the dispatcher: a small op would wait for it.
inline Tensor new_strided_tensor(const Tensor& like, torch::headeronly::IntHeaderOnlyArrayRef sizes,
                                 torch::headeronly::IntHeaderOnlyArrayRef strides, ScalarType type) {
  int32_t device_type, device_index;
  STABLE_TORCH_ERROR_CODE_CHECK(aoti_torch_get_device_type(like.get(), &device_type));
  STABLE_TORCH_ERROR_CODE_CHECK(aoti_torch_get_device_index(like.get(), &device_index));
  const int32_t dtype = torch::stable::detail::to<int32_t>(torch::stable::detail::from(type));
  AtenTensorHandle handle;
  STABLE_TORCH_ERROR_CODE_CHECK(aoti_torch_empty_strided(int64_t(sizes.size()), sizes.data(), strides.data(), dtype,
                                                         device_type, device_index, &handle));
  return Tensor(handle);
}

inline std::vector<int64_t> contiguous_strides(torch::headeronly::IntHeaderOnlyArrayRef sizes) {
  std::vector<int64_t> strides(sizes.size());
  int64_t stride = 1;
  for (size_t d = sizes.size(); d-- > 0; stride *= std::max<int64_t>(sizes[d], 1)) strides[d] = stride;
  return strides;
}

// The same, contiguous.
inline Tensor new_tensor(const Tensor& like, torch::headeronly::IntHeaderOnlyArrayRef sizes, ScalarType type) {
  const std::vector<int64_t> strides = contiguous_strides(sizes);
  return new_strided_tensor(like, sizes, {strides.data(), strides.size()}, type);
}

inline Tensor new_tensor(const Tensor& like, std::initializer_list<int64_t> sizes, ScalarType type) {
  return new_tensor(like, torch::headeronly::IntHeaderOnlyArrayRef(sizes.begin(), sizes.size()), type);
}

// As new_strided_tensor, on the CPU, dense, of floats or bytes. A large one stands in a buffer, whose memory the next
// one takes over: the heap gives that much back to the system, and fresh pages take up to a third of a product's time.
// The storage cannot grow.
inline Tensor new_result(const Tensor& like, torch::headeronly::IntHeaderOnlyArrayRef sizes,
                         torch::headeronly::IntHeaderOnlyArrayRef strides, ScalarType type) {
  constexpr double kLargeBytes = 1 << 22;
  double bytes = type == ScalarType::Float ? 4 : type == ScalarType::Byte ? 1 : 2;  // does not overflow
  for (int64_t size : sizes) bytes *= double(size);
  const bool known =
      type == ScalarType::Float || type == ScalarType::BFloat16 || type == ScalarType::Half || type == ScalarType::Byte;
  if (!known || bytes < kLargeBytes || bytes > double(kMostKeptBytes))
    return new_strided_tensor(like, sizes, strides, type);
  return torch::stable::from_blob(acquire_buffer(size_t(bytes)), sizes, strides, like.device(), type, release_buffer);
}

// Uninitialised floats on the CPU in memory that goes back to the kernels' scratch: for what lives from a forward pass
// to its backward pass, whose pages the system would else hand out afresh at every step.
inline Tensor new_scratch_tensor(int64_t count) {
  const int64_t stride = 1;
  return torch::stable::from_blob(acquire_buffer(size_t(std::max<int64_t>(count, 1)) * sizeof(float)), {&count, 1},
                                  {&stride, 1}, torch::stable::Device(torch::headeronly::DeviceType::CPU),
                                  ScalarType::Float, &release_buffer);
}

inline const float* floats(const Tensor& tensor) { return static_cast<const float*>(tensor.const_data_ptr()); }

// A contiguous float32 vector of `count` elements.
inline Tensor float_vector(const char* op, const char* name, const Tensor& tensor, int64_t count) {
  check_dtype(op, name, tensor, ScalarType::Float);
  FASTCL_CHECK(tensor.dim() == 1 && tensor.size(0) == count, op, ": ", name, " must be [", count, "], got ",
               shape(tensor));
  return as_contiguous(tensor);
}

// What a forward pass kept for its backward pass, if it did; owns what `data` points to.
struct KeptFloats {
  std::optional<Tensor> tensor;
  const float* data = nullptr;
  int64_t count = 0;

  KeptFloats(const char* op, const std::optional<Tensor>& kept) {
    if (!kept) return;
    tensor = float_vector(op, "kept", *kept, kept->numel());
    data = floats(*tensor);
    count = kept->numel();
  }
};

// A precision as torch.get_float32_matmul_precision() names it.
inline bool bf16_products(const char* op, const std::string& precision) {
  FASTCL_CHECK(precision == "highest" || precision == "high" || precision == "medium", op,
               ": precision must be highest, high or medium, got ", precision);
  return precision == "medium";
}

// A 0-d float32 scale on the CPU.
inline float scale_value(const char* op, const Tensor& scale) {
  check_dtype(op, "scale", scale, ScalarType::Float);
  FASTCL_CHECK(scale.numel() == 1, op, ": scale must have one element, got ", shape(scale));
  return *static_cast<const float*>(scale.const_data_ptr());
}

}  // namespace fastcl

// int8_linear.h on a GPU: one launch quantises the rows, one multiplies them. The weight is read as it stands.
#pragma once

#include <cstddef>
#include <cstdint>

#include "common/cuda/launch.h"
#include "common/float_types.h"
#include "int8_linear/int8_linear.h"

namespace fastcl {

constexpr int64_t kCudaInt8MaxRows = int64_t(1) << 29;

// Every pointer but `patches` is to the device. What lies outside on the device, where the host does not look, gives
// NaN: all of y for an x_range that cannot be, a row of an outlier column that is none.
struct CudaInt8Linear {
  const void* x;               // [m, k], of type `type`, contiguous
  const Int8Patches* patches;  // null, or how the rows lie in x: then x is images; read by the host
  FloatType type;              // of x and y
  int m, k, n;                 // m and n at most kCudaInt8MaxRows
  const int8_t* weight;        // [n, k], contiguous
  const float* weight_scale;   // [n]
  const float* bias;           // [n], null: none
  Int8Mode mode;
  const float* x_range;       // [2], scale and zero point of kStatic
  const float* x_multiplier;  // [k], null: ones
  int outliers;
  const int64_t* outlier_columns;  // [outliers]
  const float* outlier_weight;     // [outliers, n]
  Activation activation;
  void* y;  // [m, n]
};

// Of scratch memory: the quantised rows, m * k bytes (kInt16: 2 m * k), and the weight once more where its rows do not
// start at multiples of 16 bytes.
size_t cuda_int8_linear_bytes(const CudaInt8Linear& problem);

void cuda_int8_linear(const CudaInt8Linear& problem, void* scratch, cuda::Stream stream);

}  // namespace fastcl

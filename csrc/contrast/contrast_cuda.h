// The primitive of contrast.h on a GPU: the same formulas, masks and results, as a sequence of launches.
//
//   prepare   rows as the tiles want them: in the products' type, zero-padded, 16-byte aligned; a factor, and for the
//             gradient a weight, for each row
//   tiles     128 rows x 64 columns at a time (contrast_cuda_tiles.h): thread blocks share out one list of tiles in
//   equal
//             spans, and write what they have of each block of rows as partial sums
//   finish    sums the partial sums in a fixed order
//
// Small batches of ntxent take one launch for each pass (contrast_cuda_small.h).
//
// Nothing is read back to the host, and no sum is formed by atomics: the same inputs give the same bits on one device.
#pragma once

#include <cstddef>
#include <cstdint>

#include "common/cuda/launch.h"
#include "common/float_types.h"

namespace fastcl {

// How similarities are multiplied; sums are always float32. The tensor cores need sm_80.
enum class CudaProducts {
  kSimt,    // float32, multiply-adds
  kTf32x3,  // float32 as the sum of two TF32, three products
  kTf32,    // 10 bits of mantissa
  kBFloat16,
  kFloat16,
};

// What multiplies rows of a type under a precision of torch.get_float32_matmul_precision() (highest, high, medium) on a
// device of compute capability `capability` (75, 80, ...).
CudaProducts cuda_products(FloatType type, const char* precision, int capability);

constexpr int kCudaMaxDim = 2048;
constexpr int kCudaMaxRows = 1 << 20;  // the number of tiles fits an int

// Two views of one batch, or two matrices. Rows and arrays are contiguous; arrays are null where they are not there.
struct CudaContrast {
  const void* q;   // [rows, dim]; ntxent: the first view, [rows / 2, dim]
  const void* k;   // [cols, dim]; not read where symmetric; ntxent: the second view, [rows / 2, dim]
  bool symmetric;  // k is q
  bool ntxent;     // symmetric, rows of both views normalised, pairs of one sample left out
  FloatType type;  // of q, k and their gradients
  int rows, cols;  // symmetric: cols = rows
  int dim;
  const float* scale;      // [1], on the device
  const int64_t* q_group;  // [rows]
  const int64_t* k_group;  // [cols]; not read where symmetric
  CudaProducts products;
};

struct CudaContrastForward {
  float* row_lse;  // [rows]; ntxent: the losses
  float* col_lse;  // [cols], null: not wanted
};

struct CudaContrastBackward {
  const float* row_lse;   // [rows]; ntxent: the losses
  const float* grad_row;  // [rows]; ntxent: of the losses
  const float* col_lse;   // [cols], null: no column terms
  const float* grad_col;  // [cols], null: no column terms
  void* grad_q;           // [rows, dim], null: not wanted (ntxent: never)
  void* grad_k;           // [cols, dim], null: not wanted, or symmetric
  float* grad_scale;      // [1]; formed from grad_q, 0 where that is not wanted
};

// Bytes of device memory that a pass needs as scratch, 256-byte aligned.
size_t cuda_contrast_forward_bytes(const CudaContrast& problem, bool columns);
size_t cuda_contrast_backward_bytes(const CudaContrast& problem);

void cuda_contrast_forward(const CudaContrast& problem, const CudaContrastForward& out, void* scratch,
                           cuda::Stream stream);
void cuda_contrast_backward(const CudaContrast& problem, const CudaContrastBackward& out, void* scratch,
                            cuda::Stream stream);

}  // namespace fastcl

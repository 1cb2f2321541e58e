// NT-Xent of two views (Chen et al. 2020, eq. 1), on raw embeddings:
//
//   z_i    = x_i / max(|x_i|, 1e-12),  x = [x0; x1],  pos(i) = i +- N
//   loss_i = lse_i - scale <z_i, z_pos(i)>,   lse_i = log sum_{j != i} exp(scale <z_i, z_j>)
//
// A row of zeros has similarity 0 to every row and a zero gradient.
#pragma once

#include <cstdint>

#include "common/float_types.h"

namespace fastcl {

struct NtxentForward {
  const void* z0;      // [n, dim], of type `type`, contiguous
  const void* z1;      // [n, dim]
  FloatType type;
  int64_t n;
  int64_t dim;
  float scale;         // 1 / temperature
  bool bf16_products;
  float* losses;       // [2n]
  float* lse;          // [2n]
};

struct NtxentBackward {
  const void* z0;      // [n, dim]
  const void* z1;      // [n, dim]
  FloatType type;
  int64_t n;
  int64_t dim;
  float scale;
  bool bf16_products;
  const float* lse;          // [2n]
  const float* grad_losses;  // [2n]
  void* grad_z0;             // [n, dim], of type `type`
  void* grad_z1;             // [n, dim]
  float* grad_scale;         // [1]
};

void ntxent_forward(const NtxentForward& params);
void ntxent_backward(const NtxentBackward& params);

}  // namespace fastcl

// NT-Xent of two views (Chen et al. 2020, eq. 1), on raw embeddings:
//
//   z_i    = x_i / max(|x_i|, 1e-12),  x = [x0; x1],  pos(i) = i +- n,  s_ij = scale <z_i, z_j>
//   loss_i = log sum_{j != i} exp(s_ij) - s_i,pos(i) = log(1 + exp(negatives_i - s_i,pos(i)))
//   negatives_i = log sum of exp(s_ij) over all j but i and pos(i)
//
// The second form is exact where the loss is small: 1 - p_positive is formed from the negatives, not as a difference.
// A row of zeros has similarity 0 to every row and a zero gradient. A NaN or an infinity makes every result NaN.
#pragma once

#include <cstdint>

#include "common/float_types.h"

namespace fastcl {

struct NtxentForward {
  const void* z0;  // [n, dim], of type `type`, contiguous
  const void* z1;  // [n, dim]
  FloatType type;
  int64_t n;
  int64_t dim;
  float scale;  // 1 / temperature
  bool bf16_products;
  float* losses;  // [2n]
  // What the backward pass would otherwise form again, `kept_floats` elements of it; left unwritten where more are
  // needed. Null: nothing.
  float* kept = nullptr;
  int64_t kept_floats = 0;
};

struct NtxentBackward {
  const void* z0;  // [n, dim]
  const void* z1;  // [n, dim]
  FloatType type;
  int64_t n;
  int64_t dim;
  float scale;
  bool bf16_products;
  const float* losses;          // [2n], of the forward pass
  const float* grad_losses;     // [2n]
  void* grad_z;                 // [2, n, dim], of type `type`
  float* grad_scale;            // [1]
  const float* kept = nullptr;  // of the forward pass of the same inputs
  int64_t kept_floats = 0;
};

void ntxent_forward(const NtxentForward& params);
void ntxent_backward(const NtxentBackward& params);

}  // namespace fastcl

// The primitive of csrc/contrast on a user's tensors: formula and shapes stand in contrast/contrast.h.
#pragma once

#include <cstdint>

#include "common/float_types.h"

namespace fastcl {

struct SimilarityLse {
  const void* q;   // [rows, dim], of type `type`, contiguous
  const void* k;   // [cols, dim]; not read where symmetric
  bool symmetric;  // k is q
  FloatType type;
  int64_t rows;
  int64_t cols;  // symmetric: rows
  int64_t dim;
  float scale;
  bool grouped;            // else no pair is left out or, where symmetric, each row's with itself
  const int64_t* q_group;  // [rows]
  const int64_t* k_group;  // [cols]; not read where symmetric
  bool bf16_products;
};

struct SimilarityLseForward {
  float* row_lse;  // [rows]
  float* col_lse;  // [cols], null: not wanted
  // What the backward pass would otherwise form again, `kept_floats` elements of it; left unwritten where more are
  // needed. Null: nothing.
  float* kept = nullptr;
  int64_t kept_floats = 0;
};

struct SimilarityLseBackward {
  const float* row_lse;         // [rows]
  const float* grad_row;        // [rows]
  const float* col_lse;         // [cols], null: the forward pass gave none
  const float* grad_col;        // [cols], null: likewise
  void* grad_q;                 // [rows, dim] of type `type`, null: not wanted
  void* grad_k;                 // [cols, dim] of type `type`, null: not wanted
  float* grad_scale;            // [1]; formed from grad_q, 0 where that is not wanted
  const float* kept = nullptr;  // of the forward pass of the same problem
  int64_t kept_floats = 0;
};

void similarity_lse_forward(const SimilarityLse& problem, const SimilarityLseForward& out);
void similarity_lse_backward(const SimilarityLse& problem, const SimilarityLseBackward& out);

}  // namespace fastcl

// The one primitive under every loss: masked log-sum-exp of scaled similarities, forward and backward, with no
// [rows, cols] matrix.
//
//   s_ij       = scale <q_i, k_j>                                    over all i, j with q_group[i] != k_group[j]
//   row_lse[i] = log sum_j exp(s_ij)        col_lse[j] = log sum_i exp(s_ij)        -inf where nothing is left
//   G_ij       = grad_row[i] exp(s_ij - row_lse[i]) + grad_col[j] exp(s_ij - col_lse[j])
//   grad_q_i   = scale sum_j G_ij k_j       grad_k_j   = scale sum_i G_ij q_i
//
// Symmetric (k is null): k is q, both groups are q_group (the row number where that is null), and the column terms are
// the row terms again, so that grad_q is the whole gradient.
#pragma once

#include <cstdint>

namespace fastcl {

struct Contrast {
  const float* q;          // [rows, dim]
  const float* k;          // [cols, dim], null: symmetric
  int64_t rows;
  int64_t cols;            // symmetric: rows
  int64_t dim;
  float scale;
  const int64_t* q_group;  // [rows], null: no pair is left out (symmetric: only i == j)
  const int64_t* k_group;  // [cols], null exactly where q_group is
  bool bf16_products;      // round the operands of every product to bfloat16; sums stay float32
};

struct ContrastForward {
  float* row_lse;  // [rows]
  float* col_lse;  // [cols], null: not wanted
};

struct ContrastBackward {
  const float* row_lse;   // [rows]
  const float* grad_row;  // [rows]
  const float* col_lse;   // [cols], null: no column terms
  const float* grad_col;  // [cols], null: no column terms
  float* grad_q;          // [rows, dim], null: not wanted
  float* grad_k;          // [cols, dim], null: not wanted or symmetric
};

void contrast_forward(const Contrast& problem, const ContrastForward& out);
void contrast_backward(const Contrast& problem, const ContrastBackward& out);

}  // namespace fastcl

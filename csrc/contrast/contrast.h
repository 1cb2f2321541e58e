// The primitive under every loss: masked log-sum-exp of scaled similarities, forward and backward, with no [rows, cols]
// matrix.
//
//   s_ij       = scale <q_i, k_j>                                    over all i, j that are not of one group
//   row_lse[i] = log sum_j exp(s_ij)        col_lse[j] = log sum_i exp(s_ij)        -inf where no pair is left
//   G_ij       = grad_row[i] exp(s_ij - row_lse[i]) + grad_col[j] exp(s_ij - col_lse[j])
//   grad_q_i   = scale sum_j G_ij k_j       grad_k_j   = scale sum_i G_ij q_i
//
// Symmetric (k is null): k is q, and the column terms are the row terms again, so that grad_q is the whole gradient and
// only tiles on and above the diagonal are computed: 4 rows^2 dim flop for both passes.
//
// Same inputs give the same bits, whatever the number of threads.
#pragma once

#include <cstdint>
#include <vector>

#include "common/buffer.h"

namespace fastcl {

// Rows of float32 as the tile kernels want them: 64-byte aligned, rows and dim zero-padded to the kernels' steps.
class PaddedRows {
 public:
  PaddedRows(int64_t count, int64_t dim);               // the values of the rows are the caller's to write
  PaddedRows(int64_t count, int64_t dim, float* data);  // floats() elements that stand there, 64-byte aligned
  void clear_padding();

  int64_t count() const { return count_; }
  int64_t dim() const { return dim_; }
  int64_t padded_count() const { return padded_count_; }
  int64_t stride() const { return stride_; }  // the padded dim
  int64_t floats() const { return padded_count_ * stride_; }
  static int64_t floats(int64_t count, int64_t dim) { return PaddedRows(count, dim, nullptr).floats(); }
  float* row(int64_t i) { return data_ + i * stride_; }
  const float* row(int64_t i) const { return data_ + i * stride_; }
  bool is_padded() const { return count_ != padded_count_ || dim_ != stride_; }

 private:
  int64_t count_, dim_, padded_count_, stride_;
  Buffer<float> own_;
  float* data_;
};

// Of padded rows, in float32: <a, b>; row += factor x; row *= factor.
float dot_rows(const float* a, const float* b, int64_t stride);
void add_scaled_row(float* row, const float* x, float factor, int64_t stride);
void scale_row(float* row, float factor, int64_t stride);

struct Contrast {
  const PaddedRows* q;
  const PaddedRows* k;  // null: symmetric
  float scale;
  float largest_logit;  // an upper bound of |s_ij|: small ones need no reference for their exponentials
  bool bf16_products;   // round the operands of every product to bfloat16, where the processor multiplies those
  // Which pairs are of one group: those with i % period == j % period, where period is not 0; else those with
  // q_group[i] == k_group[j], where there are groups; else none.
  int64_t period;
  const std::vector<int32_t>* q_group;  // [rows + kGroupPadding]
  const std::vector<int32_t>* k_group;  // [cols + kGroupPadding]; symmetric: q_group
};

constexpr int64_t kGroupPadding = 64;  // readable elements beyond the groups

struct ContrastForward {
  double* row_lse;        // [rows]
  double* col_lse;        // [cols], null: not wanted
  float* kept = nullptr;  // [contrast_kept_floats], written for the backward pass; null: that forms them again
};

struct ContrastBackward {
  const float* row_lse;         // [rows]; need not be the forward pass's own: any normaliser will do
  const float* grad_row;        // [rows]
  const float* col_lse;         // [cols], null: no column terms
  const float* grad_col;        // [cols], null: no column terms
  float* grad_q;                // q's padded shape, uninitialised; null: not wanted
  float* grad_k;                // k's padded shape, uninitialised; null: not wanted, or symmetric
  const float* kept = nullptr;  // what the forward pass of the same problem kept
};

// What a forward pass can keep: the exponentials, which are a quarter of the work of both passes.
int64_t contrast_kept_floats(int64_t rows, int64_t cols, bool bf16_products);

void contrast_forward(const Contrast& problem, const ContrastForward& out);
void contrast_backward(const Contrast& problem, const ContrastBackward& out);

// The name of the instruction set in use.
const char* contrast_instruction_set();

}  // namespace fastcl

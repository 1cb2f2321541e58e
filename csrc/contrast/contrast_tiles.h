// The work on one tile of the similarity matrix, as templates over the vectors of an instruction set (V) and the
// arithmetic of the products (Products). contrast_<isa>.cpp instantiate them; contrast_cpu.cpp calls them by the table
// ContrastKernels and does all else: threads, order, memory.
//
// Operands are arrays of 32-bit words: one float, or two bfloat16 that are neighbours along the contraction axis.
// The keys come as panels of `cols_step` columns, word-major and times scale * log2(e), so that a tile leaves the
// micro-kernel in powers of two and exp is 2^x.
#pragma once

#include <cstddef>
#include <cstdint>

#include "common/simd.h"

namespace fastcl {

constexpr int kMaxTile = 256;  // rows and columns of a tile, at most
constexpr int kSkew = 16;  // words between the rows of G beyond its width: a walk down a column spreads over L1 sets

// A tile on the diagonal of a symmetric problem is formed in blocks of `unit` rows and columns, which the steps divide:
// those on the diagonal, whose pairs count for the rows alone, and those above it, which stand for those below as well.
struct Tile {
  const float* a;                // rows, [rows, words]
  const float* b;                // panels of the keys, [cols / cols_step, words, cols_step]
  int words;                     // along dim
  int rows, cols;                // computed: multiples of rows_step and cols_step
  bool triangle;                 // on the diagonal of a symmetric problem
  int64_t i0, j0;                // of the tile's corner
  int64_t live_rows, live_cols;  // of the whole matrix: what lies beyond is padding
  // What follows is indexed from the tile's corner.
  const int32_t* row_group;    // pairs of one group are left out; null: none
  const int32_t* col_group;    // readable up to a panel beyond the columns
  const float* row_reference;  // sum, safe: log2 of what each row's sum is relative to
  const float* col_reference;
  const float* row_weight;  // gradient: scale grad 2^-lse; safe: scale grad
  const float* col_weight;
  const float* row_lse;  // gradient, safe: log2 of each row's sum
  const float* col_lse;
  float* kept;           // [rows, cols], powers of two of the similarities, which sums writes and gradient reads;
                         // null: gradient forms them again. Never where safe
  float* row_out;        // [rows], sum or maximum over the tile's columns
  float* col_out;        // [cols]
  float* g_rows;         // [rows, ld_rows] words, contraction along the columns
  float* g_cols;         // bfloat16 only: [rows / 2, ld_cols] pairs of rows; else g_rows is read for both
  int ld_rows, ld_cols;  // words
};

// What there is of A on the diagonal: the blocks on and above it; kAbove reads them transposed, where A's lie below.
enum class Part { kWhole, kDiagonalAndAbove, kAbove };

// out[rows, dim] += A Z, or = A Z where nothing stands in out yet, with A read in place through two strides. Z is
// packed a few columns at a time, which stay near.
struct Product {
  const float* a;
  ptrdiff_t row_stride, word_stride;  // words
  const float* z;                     // [words * pack, dim], floats
  int words;                          // along the contraction
  float* panel;                       // scratch, [words, product_cols]
  float* out;
  int rows;
  int64_t dim;
  Part part;
  bool first;  // nothing stands in out
};

// One instruction set's kernels. `masked`: the tile holds padding or pairs that are left out; `columns`: sums over the
// rows are wanted too; `safe`: exponents are taken relative to a reference, so that no logit is too large.
struct ContrastKernels {
  int rows_step, cols_step;
  int dim_step;  // rows are padded to multiples of it
  int product_cols;
  int pack;  // values in a word
  void (*maxima)(const Tile& tile, bool masked, bool columns);
  void (*sums)(const Tile& tile, bool masked, bool columns, bool safe);
  void (*gradient)(const Tile& tile, bool masked, bool columns, bool safe);
  void (*product)(const Product& product);
  // Panel `panel` of the keys z [rows, dim], times `factor`.
  void (*pack_panel)(const float* z, int64_t rows, int64_t dim, int64_t panel, float factor, float* out);
  // Rows of z as words along dim; only where pack > 1.
  void (*pack_words)(const float* z, int64_t rows, int64_t dim, float* out);
  // Of single rows, dim being a multiple of dim_step: <a, b>; row += factor x; row *= factor.
  float (*dot)(const float* a, const float* b, int64_t dim);
  void (*add_scaled)(float* row, const float* x, float factor, int64_t dim);
  void (*scale)(float* row, float factor, int64_t dim);
};

// Null where they were not compiled or this processor cannot run them.
const ContrastKernels* contrast_kernels_portable();
const ContrastKernels* contrast_kernels_avx2();
const ContrastKernels* contrast_kernels_avx512();
const ContrastKernels* contrast_kernels_avx512_bf16();

}  // namespace fastcl

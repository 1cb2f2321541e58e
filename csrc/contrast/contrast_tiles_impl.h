// The templates behind ContrastKernels; see contrast_tiles.h. Included inside a target region.
#pragma once

#include <algorithm>
#include <limits>
#include <numeric>

#include "contrast/contrast_tiles.h"

namespace fastcl {

// Products of float32.
template <class V>
struct Float32Products {
  static constexpr int kPack = 1;
  static FASTCL_INLINE typename V::F multiply_add(typename V::F a, typename V::F b, typename V::F sum) {
    return V::fma(a, b, sum);
  }
  static FASTCL_INLINE typename V::F words(const float* z, typename V::F factor) { return V::mul(V::load(z), factor); }
  // Two rows of the contraction side by side; one is enough here.
  static FASTCL_INLINE typename V::F rows(const float* z, int64_t) { return V::load(z); }
};

// A tile of similarities is formed in blocks of kRows rows and kVectors vectors, a product in blocks of kProductRows
// and kProductVectors: as many accumulators as leave registers for the operands, and wide rather than high, because a
// multiply-add waits for its loads: one for each row and each vector of a block.
template <class V, class Products, int kRows, int kVectors, int kProductRows, int kProductVectors>
struct ContrastTiles {
  using F = typename V::F;
  static constexpr int kLanes = V::kLanes;
  static constexpr int kCols = kVectors * kLanes;
  static constexpr int kProductCols = kProductVectors * kLanes;
  static constexpr int kDimStep = 2 * kLanes;
  static constexpr int kPack = Products::kPack;
  using Sums = F[kRows][kVectors];
  static constexpr int kUnit = std::lcm(kRows, kCols);
  static_assert(kUnit % kProductRows == 0 && kUnit % (2 * kPack) == 0);
  // Smaller powers of two count as 0: beside the largest, which is 1, they are lost, and their products would be
  // subnormal, which processors multiply a hundred times slower.
  static constexpr float kLeast = -64.f;
  static constexpr float kMinusInfinity = -std::numeric_limits<float>::infinity();

  // sums[r][:] = sum over words of a[r * row_stride + w * word_stride] * b[w * width + :], width being the sums'; words
  // is even
  template <int rows, int vectors>
  static FASTCL_INLINE void multiply(const float* a, ptrdiff_t row_stride, ptrdiff_t word_stride, const float* b,
                                     int words, F (&sums)[rows][vectors]) {
    FASTCL_UNROLL for (int r = 0; r < rows; ++r) FASTCL_UNROLL for (int v = 0; v < vectors; ++v) sums[r][v] =
        V::set(0.f);
    for (int w = 0; w < words; w += 2) FASTCL_UNROLL for (int u = 0; u < 2; ++u) {
        F columns[vectors];
        FASTCL_UNROLL for (int v = 0; v < vectors; ++v) columns[v] = V::load(b + v * kLanes);
        FASTCL_UNROLL for (int r = 0; r < rows; ++r) {
          const F x = V::set(a[r * row_stride]);
          FASTCL_UNROLL for (int v = 0; v < vectors; ++v) sums[r][v] =
              Products::multiply_add(x, columns[v], sums[r][v]);
        }
        a += word_stride;
        b += vectors * kLanes;
      }
  }

  // Asks for what comes next from far away: rows of q while the first panel is at work (later panels find them near),
  // and this row block's share of the next panel. The streams are too many for the processor to foresee by itself.
  static FASTCL_INLINE void prefetch(const Tile& t, int row, int col) {
    constexpr int kLine = 16;  // floats
    if (col == 0 && row + kRows < t.rows) {
      const float* next = t.a + ptrdiff_t(row + kRows) * t.words;
      for (int i = 0; i < kRows * t.words; i += kLine) FASTCL_PREFETCH(next + i);
    }
    if (col + kCols < t.cols) {
      const int share = (kCols * t.words / kLine * kRows + t.rows - 1) / t.rows * kLine;
      const float* next = t.b + ptrdiff_t(col + kCols) * t.words + row / kRows * share;
      for (int i = 0; i < share; i += kLine) FASTCL_PREFETCH(next + i);
    }
  }

  // Of a panel's rows: up to where they are formed, and up to where they count for the columns too.
  struct Rows {
    FASTCL_INLINE Rows(const Tile& t, int col)
        : end(t.triangle ? std::min(t.rows, unit(col) + kUnit) : t.rows), both(t.triangle ? unit(col) : t.rows) {}
    int end, both;
  };
  static FASTCL_INLINE int unit(int at) { return at / kUnit * kUnit; }

  // 2^(x - reference), reference being an upper bound of x.
  static FASTCL_INLINE F exp2_below(F x, F reference) {
    const F least = V::set(kLeast), power = V::max(V::sub(x, reference), least);
    return V::select_equal(power, least, V::set(0.f), V::exp2(power));
  }

  // The pairs of a panel's columns that count: bit l of kept(row, v) is the pair of `row` and lane l of vector v.
  struct Mask {
    FASTCL_INLINE Mask(const Tile& t, int col)
        : live_rows(t.live_rows - t.i0), row_group(t.row_group), col_group(t.col_group + (t.row_group ? col : 0)) {
      FASTCL_UNROLL for (int v = 0; v < kVectors; ++v) {
        const int64_t live = t.live_cols - t.j0 - col - v * kLanes;
        live_cols[v] = live >= kLanes ? (1u << kLanes) - 1u : live > 0 ? (1u << live) - 1u : 0u;
      }
    }
    FASTCL_INLINE uint32_t kept(int row, int v) const {
      const uint32_t live = row < live_rows ? live_cols[v] : 0u;
      return row_group ? live & ~V::equal_bits(row_group[row], col_group + v * kLanes) : live;
    }
    int64_t live_rows;
    const int32_t *row_group, *col_group;
    uint32_t live_cols[kVectors];
  };

  template <bool kMasked, bool kColumns>
  static FASTCL_NOINLINE void maxima_tile(const Tile& t) {
    alignas(64) float row_max[kMaxTile][kLanes];
    for (int i = 0; i < t.rows; ++i) V::store(row_max[i], V::set(kMinusInfinity));
    for (int col = 0; col < t.cols; col += kCols) {
      const Mask mask(t, col);
      F col_max[kVectors];
      FASTCL_UNROLL for (int v = 0; v < kVectors; ++v) col_max[v] = V::set(kMinusInfinity);
      const Rows rows(t, col);
      for (int row = 0; row < rows.end; row += kRows) {
        Sums s;
        prefetch(t, row, col);
        multiply(t.a + ptrdiff_t(row) * t.words, t.words, 1, t.b + ptrdiff_t(col) * t.words, t.words, s);
        FASTCL_UNROLL for (int r = 0; r < kRows; ++r) {
          F top = V::load(row_max[row + r]);
          FASTCL_UNROLL for (int v = 0; v < kVectors; ++v) {
            F x = s[r][v];
            if constexpr (kMasked) x = V::select(mask.kept(row + r, v), x, V::set(kMinusInfinity));
            top = V::max(top, x);
            if constexpr (kColumns)
              if (row < rows.both) col_max[v] = V::max(col_max[v], x);
          }
          V::store(row_max[row + r], top);
        }
      }
      if constexpr (kColumns)
        FASTCL_UNROLL for (int v = 0; v < kVectors; ++v) V::store(t.col_out + col + v * kLanes, col_max[v]);
    }
    for (int i = 0; i < t.rows; ++i) t.row_out[i] = V::largest(V::load(row_max[i]));
  }

  template <bool kMasked, bool kColumns, bool kSafe>
  static FASTCL_NOINLINE void sums_tile(const Tile& t) {
    alignas(64) float row_sum[kMaxTile][kLanes];
    for (int i = 0; i < t.rows; ++i) V::store(row_sum[i], V::set(0.f));
    for (int col = 0; col < t.cols; col += kCols) {  // a panel of keys stays in L1 ...
      const Mask mask(t, col);
      alignas(64) float col_sum[kCols];
      F col_reference[kVectors];
      FASTCL_UNROLL for (int v = 0; v < kVectors; ++v) {
        if constexpr (kColumns) V::store(col_sum + v * kLanes, V::set(0.f));
        if constexpr (kColumns && kSafe) col_reference[v] = V::load(t.col_reference + col + v * kLanes);
      }
      const Rows rows(t, col);
      for (int row = 0; row < rows.end; row += kRows) {  // ... while the rows stream by
        Sums s;
        prefetch(t, row, col);
        multiply(t.a + ptrdiff_t(row) * t.words, t.words, 1, t.b + ptrdiff_t(col) * t.words, t.words, s);
        F col_add[kVectors];
        FASTCL_UNROLL for (int v = 0; v < kVectors; ++v) col_add[v] = V::set(0.f);
        FASTCL_UNROLL for (int r = 0; r < kRows; ++r) {
          F sum = V::load(row_sum[row + r]);
          FASTCL_UNROLL for (int v = 0; v < kVectors; ++v) {
            const F x = s[r][v];
            F by_row, by_col;
            if constexpr (kSafe) {
              by_row = exp2_below(x, V::set(t.row_reference[row + r]));
              if constexpr (kColumns) by_col = exp2_below(x, col_reference[v]);
            } else {
              by_row = by_col = V::exp2(x);
            }
            if constexpr (kMasked) {
              const uint32_t bits = mask.kept(row + r, v);
              by_row = V::select(bits, by_row, V::set(0.f));
              if constexpr (kColumns) by_col = V::select(bits, by_col, V::set(0.f));
            }
            if constexpr (!kSafe)
              if (t.kept) V::store(t.kept + ptrdiff_t(row + r) * t.cols + col + v * kLanes, by_row);
            sum = V::add(sum, by_row);
            if constexpr (kColumns) col_add[v] = V::add(col_add[v], by_col);
          }
          V::store(row_sum[row + r], sum);
        }
        if constexpr (kColumns)
          if (row < rows.both)
            FASTCL_UNROLL for (int v = 0; v < kVectors; ++v)
                V::store(col_sum + v * kLanes, V::add(V::load(col_sum + v * kLanes), col_add[v]));
      }
      if constexpr (kColumns)
        FASTCL_UNROLL for (int v = 0; v < kVectors; ++v)
            V::store(t.col_out + col + v * kLanes, V::load(col_sum + v * kLanes));
    }
    for (int i = 0; i < t.rows; ++i) t.row_out[i] = V::sum(V::load(row_sum[i]));
  }

  template <bool kMasked, bool kColumns, bool kSafe>
  static FASTCL_NOINLINE void gradient_tile(const Tile& t) {
    for (int col = 0; col < t.cols; col += kCols) {
      const Mask mask(t, col);
      const Rows rows(t, col);
      for (int row = 0; row < rows.end; row += kRows) {
        Sums s;
        prefetch(t, row, col);
        multiply(t.a + ptrdiff_t(row) * t.words, t.words, 1, t.b + ptrdiff_t(col) * t.words, t.words, s);
        F col_weight[kVectors], col_lse[kVectors];
        FASTCL_UNROLL for (int v = 0; v < kVectors; ++v) {
          if constexpr (kColumns) col_weight[v] = V::load(t.col_weight + col + v * kLanes);
          if constexpr (kColumns && kSafe) col_lse[v] = V::load(t.col_lse + col + v * kLanes);
        }
        FASTCL_UNROLL for (int r = 0; r < kRows; ++r) {
          const F row_weight = V::set(t.row_weight[row + r]);
          FASTCL_UNROLL for (int v = 0; v < kVectors; ++v) {
            const F x = s[r][v];
            F g;
            if constexpr (kSafe) {  // both powers are at most 1
              g = V::mul(row_weight, exp2_below(x, V::set(t.row_lse[row + r])));
              if constexpr (kColumns) g = V::fma(col_weight[v], exp2_below(x, col_lse[v]), g);
            } else if constexpr (kColumns) {
              g = V::mul(V::exp2(x), V::add(row_weight, col_weight[v]));
            } else {
              g = V::mul(V::exp2(x), row_weight);
            }
            if constexpr (kMasked) g = V::select(mask.kept(row + r, v), g, V::set(0.f));
            s[r][v] = g;
          }
        }
        store_gradient(t, row, col, s);
      }
    }
  }

  // The same from the powers that the forward pass kept, which are 0 where a pair is left out. They come from far away:
  // two rows at a time are streams that the processor foresees.
  template <bool kColumns>
  static FASTCL_NOINLINE void kept_gradient_tile(const Tile& t) {
    for (int row = 0; row < t.rows; row += 2)
      for (int col = t.triangle ? unit(row) : 0; col < t.cols; col += kCols) {
        F s[2][kVectors];
        FASTCL_UNROLL for (int r = 0; r < 2; ++r) FASTCL_UNROLL for (int v = 0; v < kVectors; ++v) {
          F weight = V::set(t.row_weight[row + r]);
          if constexpr (kColumns) weight = V::add(weight, V::load(t.col_weight + col + v * kLanes));
          s[r][v] = V::mul(V::load(t.kept + ptrdiff_t(row + r) * t.cols + col + v * kLanes), weight);
        }
        store_gradient(t, row, col, s);
      }
  }

  template <int rows>
  static FASTCL_INLINE void store_gradient(const Tile& t, int row, int col, const F (&s)[rows][kVectors]) {
    if constexpr (kPack == 1) {
      FASTCL_UNROLL for (int r = 0; r < rows; ++r) FASTCL_UNROLL for (int v = 0; v < kVectors; ++v)
          V::store(t.g_rows + ptrdiff_t(row + r) * t.ld_rows + col + v * kLanes, s[r][v]);
    } else {
      FASTCL_UNROLL for (int r = 0; r < rows; r += 2) FASTCL_UNROLL for (int v = 0; v < kVectors; ++v) {
        Products::store_half(t.g_rows + ptrdiff_t(row + r) * t.ld_rows + (col + v * kLanes) / 2, s[r][v]);
        Products::store_half(t.g_rows + ptrdiff_t(row + r + 1) * t.ld_rows + (col + v * kLanes) / 2, s[r + 1][v]);
        V::store(t.g_cols + ptrdiff_t(row + r) / 2 * t.ld_cols + col + v * kLanes,
                 Products::pair(s[r][v], s[r + 1][v]));
      }
    }
  }

  // Rows of out += A times the panel, from `row` and `col` on.
  template <int rows, int vectors>
  static FASTCL_INLINE void product_block(const Product& p, int row, int col) {
    F sums[rows][vectors];
    float* out = p.out + row * p.dim + col;
    // out comes from far away: ask for it now, add to it after the multiplication, and its latency is hidden.
    FASTCL_UNROLL for (int r = 0; r < rows; ++r) for (int v = 0; v < vectors; ++v)
        FASTCL_PREFETCH(out + r * p.dim + v * kLanes);
    const int diagonal = unit(row) / kPack;
    const int begin = p.part == Part::kDiagonalAndAbove ? diagonal : 0;
    const int end = p.part == Part::kAbove ? diagonal : p.words;
    multiply(p.a + row * p.row_stride + begin * p.word_stride, p.row_stride, p.word_stride,
             p.panel + begin * vectors * kLanes, end - begin, sums);
    FASTCL_UNROLL for (int r = 0; r < rows; ++r) FASTCL_UNROLL for (int v = 0; v < vectors; ++v) {
      float* at = out + r * p.dim + v * kLanes;
      V::store(at, p.first ? sums[r][v] : V::add(V::load(at), sums[r][v]));
    }
  }

  template <int vectors>
  static FASTCL_INLINE void product_panel(const Product& p, int col) {
    for (int word = 0; word < p.words; ++word)
      FASTCL_UNROLL for (int v = 0; v < vectors; ++v)
          V::store(p.panel + (word * vectors + v) * kLanes,
                   Products::rows(p.z + word * kPack * p.dim + col + v * kLanes, p.dim));
    int row = 0;
    for (; row + kProductRows <= p.rows; row += kProductRows) product_block<kProductRows, vectors>(p, row, col);
    for (; row < p.rows; row += 2) product_block<2, vectors>(p, row, col);
  }

  static FASTCL_NOINLINE void product(const Product& p) {
    int col = 0;
    for (; col + kProductCols <= p.dim; col += kProductCols) product_panel<kProductVectors>(p, col);
    for (; col < p.dim; col += kDimStep) product_panel<2>(p, col);
  }

  static void pack_panel(const float* z, int64_t rows, int64_t dim, int64_t panel, float factor, float* out) {
    const int64_t words = dim / kPack;
    for (int v = 0; v < kVectors; ++v)
      for (int64_t w = 0; w < words; w += kLanes) {
        const int64_t first = panel * kCols + v * kLanes;
        F block[kLanes];
        FASTCL_UNROLL for (int r = 0; r < kLanes; ++r) block[r] =
            first + r < rows ? Products::words(z + (first + r) * dim + w * kPack, V::set(factor)) : V::set(0.f);
        V::transpose(block);
        FASTCL_UNROLL for (int k = 0; k < kLanes; ++k) V::store(out + (w + k) * kCols + v * kLanes, block[k]);
      }
  }

  static void pack_words(const float* z, int64_t rows, int64_t dim, float* out) {
    for (int64_t at = 0; at < rows * dim; at += kPack * kLanes)
      V::store(out + at / kPack, Products::words(z + at, V::set(1.f)));
  }

  static float dot(const float* a, const float* b, int64_t dim) {
    F low = V::set(0.f), high = V::set(0.f);
    for (int64_t d = 0; d < dim; d += kDimStep) {
      low = V::fma(V::load(a + d), V::load(b + d), low);
      high = V::fma(V::load(a + d + kLanes), V::load(b + d + kLanes), high);
    }
    return V::sum(V::add(low, high));
  }

  static void add_scaled(float* row, const float* x, float factor, int64_t dim) {
    for (int64_t d = 0; d < dim; d += kLanes)
      V::store(row + d, V::fma(V::load(x + d), V::set(factor), V::load(row + d)));
  }

  static void scale(float* row, float factor, int64_t dim) {
    for (int64_t d = 0; d < dim; d += kLanes) V::store(row + d, V::mul(V::load(row + d), V::set(factor)));
  }

  static void maxima(const Tile& t, bool masked, bool columns) {
    static constexpr void (*kVariants[2][2])(const Tile&) = {{maxima_tile<false, false>, maxima_tile<false, true>},
                                                             {maxima_tile<true, false>, maxima_tile<true, true>}};
    kVariants[masked][columns](t);
  }
  static void sums(const Tile& t, bool masked, bool columns, bool safe) {
    static constexpr void (*kVariants[2][2][2])(const Tile&) = {
        {{sums_tile<false, false, false>, sums_tile<false, false, true>},
         {sums_tile<false, true, false>, sums_tile<false, true, true>}},
        {{sums_tile<true, false, false>, sums_tile<true, false, true>},
         {sums_tile<true, true, false>, sums_tile<true, true, true>}}};
    kVariants[masked][columns][safe](t);
  }
  static void gradient(const Tile& t, bool masked, bool columns, bool safe) {
    static constexpr void (*kVariants[2][2][2])(const Tile&) = {
        {{gradient_tile<false, false, false>, gradient_tile<false, false, true>},
         {gradient_tile<false, true, false>, gradient_tile<false, true, true>}},
        {{gradient_tile<true, false, false>, gradient_tile<true, false, true>},
         {gradient_tile<true, true, false>, gradient_tile<true, true, true>}}};
    if (t.kept)
      columns ? kept_gradient_tile<true>(t) : kept_gradient_tile<false>(t);
    else
      kVariants[masked][columns][safe](t);
  }

  static constexpr ContrastKernels kTable = {kRows,    kCols,   kDimStep,   kProductCols, kPack, maxima,     sums,
                                             gradient, product, pack_panel, pack_words,   dot,   add_scaled, scale};
};

}  // namespace fastcl

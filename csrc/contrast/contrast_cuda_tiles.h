// The tile kernels of contrast_cuda.cu. A block of four warps takes 128 rows, 32 a warp, and lets tiles of columns
// stream by: similarities, their exponentials and the gradient's sums stay in registers, as in FlashAttention with
// Q = K = V. Rows are the M of the products, columns the N.
//
// Exponentials are powers of two: x_ij = s_ij log2(e). Where every |s_ij| is at most kLargestPlainLogit ("bounded") 2^x
// needs no reference and serves rows and columns; else each row keeps a running maximum.
#pragma once

#include <cstddef>
#include <cstdint>

#include "common/portable.h"
#include "contrast/contrast_cuda_products.h"

namespace fastcl {

constexpr int kBlockRows = 128;
constexpr int kForwardCols = 64;  // of a tile; the gradient's are narrower, P::kBackwardCols
constexpr int kTileThreads = 128;
constexpr int kWarpRows = 32;
constexpr int kRowFragments = kWarpRows / 16;
constexpr int kBlocksPerMultiprocessor = 2;  // thread blocks of tiles, as registers and shared memory allow
constexpr float kLog2E = 1.4426950408889634f, kLn2 = 0.6931471805599453f;
// e^50 times 2^20 terms stays in float32's range, and so does its inverse.
constexpr float kLargestPlainLogit = 50.f;

// What the gradient needs of a row beside its values.
struct alignas(16) RowTerm {
  float factor;    // the row is factor * stored row
  float weight;    // scale * gradient of its log-sum-exp
  float log2_sum;  // log2(e) * its log-sum-exp
  float plain;     // weight * 2^-log2_sum, for bounded logits
};

// Rows as `prepare` wrote them, zero-padded to a multiple of kBlockRows.
struct TileSide {
  const unsigned char* rows;  // [padded, panels * kPanelBytes]
  const float* factor;        // [padded]
  const RowTerm* term;        // [padded], the gradient only
  const int64_t* group;       // [count], null: none
  const float* largest;       // [largest_count], whose maximum is the longest row's length
  int largest_count;
  int count;

  FASTCL_HD int blocks() const { return (count + kBlockRows - 1) / kBlockRows; }
  FASTCL_HD int tiles(int cols) const { return (count + cols - 1) / cols; }
};

// The tiles of a pass as one list, row block by row block.
struct TileOrder {
  enum Kind {
    kRectangle,  // every tile
    kTriangle,   // symmetric: from the diagonal on, rows and columns from each
    kBoth,       // every tile of q by k, then of k by q
  } kind;
  int row_blocks, col_tiles;    // q by k
  int back_blocks, back_tiles;  // k by q
  int block_tiles;              // tiles as wide as a block of rows

  FASTCL_HD int blocks() const { return kind == kBoth ? row_blocks + back_blocks : row_blocks; }
  FASTCL_HD int first_tile(int block) const { return kind == kTriangle ? block * block_tiles : 0; }
  // Tiles of all blocks before `block`.
  FASTCL_HD int before(int block) const {
    if (kind == kTriangle) return block * col_tiles - block_tiles * (block * (block - 1) / 2);
    if (block <= row_blocks) return block * col_tiles;
    return row_blocks * col_tiles + (block - row_blocks) * back_tiles;
  }
  FASTCL_HD int total() const { return before(blocks()); }
  // Tiles of each of `shares` thread blocks.
  FASTCL_HD int share(int shares) const { return (total() + shares - 1) / shares; }
  FASTCL_HD int block_of(int tile) const {
    int low = 0, high = blocks() - 1;
    while (low < high) {
      const int middle = (low + high + 1) / 2;
      if (before(middle) <= tile)
        low = middle;
      else
        high = middle - 1;
    }
    return low;
  }
};

struct TilePass {
  TileSide q, k;
  bool symmetric;
  bool columns;        // column sums are wanted: from the tiles where logits are bounded and there is room for them
  bool column_room;    // for `col_partial`
  int period;          // pairs of i = j modulo period are left out; 0: none
  int panels;          // of a row
  const float* scale;  // [1]
  int shares;          // thread blocks that share the list of tiles

  // Partial sums: thread block b writes those of row block r in slot b + r, which no other one has.
  float2* row_partial;  // [shares + blocks, kBlockRows]: reference and sum of powers of two
  float* col_partial;   // [row blocks, col_stride], sums of powers of two
  size_t col_stride;
  float* gradient;         // [shares + blocks, kBlockRows, gradient_stride]
  int gradient_cols;       // of a tile of the gradient's pass
  size_t gradient_stride;  // dim, padded to whole panels
  float* scale_partial;    // [shares], sums of G_ij x_ij; null: not wanted
};

// The sum over the block, in a fixed order, for every thread.
template <int kThreads>
__device__ __forceinline__ float block_sum(float value) {
  FASTCL_SHARED(float, sums, [kThreads / 32]);
  value = warp_sum(value);
  if (lane_id() == 0) sums[threadIdx.x / 32] = value;
  __syncthreads();
  value = sums[0];
#pragma unroll
  for (int warp = 1; warp < kThreads / 32; ++warp) value += sums[warp];
  return value;
}

// The largest size of [count] values for every thread of the block.
template <int kThreads>
__device__ __forceinline__ float block_max(const float* values, int count) {
  FASTCL_SHARED(float, maxima, [kThreads / 32]);
  float largest = 0.f;
  for (int i = threadIdx.x; i < count; i += kThreads) largest = fmaxf(largest, fabsf(values[i]));
  largest = warp_max(largest);
  __syncthreads();  // a call before may still be read
  if (lane_id() == 0) maxima[threadIdx.x / 32] = largest;
  __syncthreads();
  largest = maxima[0];
#pragma unroll
  for (int warp = 1; warp < kThreads / 32; ++warp) largest = fmaxf(largest, maxima[warp]);
  return largest;
}

template <int kThreads>
__device__ __forceinline__ bool logits_are_bounded(const TilePass& p) {
  const float q = block_max<kThreads>(p.q.largest, p.q.largest_count);
  const float k = p.symmetric ? q : block_max<kThreads>(p.k.largest, p.k.largest_count);
  return fabsf(*p.scale) * q * k <= kLargestPlainLogit;
}

FASTCL_HD inline TileOrder forward_order(const TilePass& p, bool bounded) {
  const bool from_tiles = bounded && p.column_room;
  const TileOrder::Kind kind = p.symmetric ? (from_tiles ? TileOrder::kTriangle : TileOrder::kRectangle)
                                           : (p.columns && !from_tiles ? TileOrder::kBoth : TileOrder::kRectangle);
  return {
      kind, p.q.blocks(), p.k.tiles(kForwardCols), p.k.blocks(), p.q.tiles(kForwardCols), kBlockRows / kForwardCols};
}

// Of the gradient of q's rows.
FASTCL_HD inline TileOrder backward_order(const TilePass& p) {
  return {TileOrder::kRectangle, p.q.blocks(), p.k.tiles(p.gradient_cols), 0, 0, 0};
}

// The panels of tiles of kCols columns, and the rows' where they are not resident, on their way through a ring of
// stages.
template <class P, int kCols>
class TileStream {
 public:
  __device__ TileStream(const TilePass& p, unsigned char* shared)
      : panels_(p.panels), resident_(p.panels <= P::kResidentPanels), shared_(shared) {}

  static size_t shared_bytes(int panels) {
    const bool resident = panels <= P::kResidentPanels;
    return size_t(kPanelBytes) *
           (resident ? panels * kBlockRows + P::kStages * kCols : P::kStages * (kCols + kBlockRows));
  }

  // Tiles [begin, end) of `cols`, each `gradient_panels` panels from `gradient_panel` on once more.
  __device__ void start(const TileSide& rows, const TileSide& cols, int row, int begin, int end, int gradient_panel,
                        int gradient_panels) {
    rows_ = rows.rows + size_t(row) * stride();
    cols_ = cols.rows;
    tile_ = begin, end_ = end, step_ = 0;
    gradient_panel_ = gradient_panel, steps_ = panels_ + gradient_panels;
    load_stage_ = use_stage_ = 0;
    __syncthreads();  // the last segment's stages may still be read
    if (resident_)
      for (int panel = 0; panel < panels_; ++panel)
        copy(shared_ + panel * (kBlockRows * kPanelBytes), rows_, kBlockRows, panel);
    for (int stage = 0; stage < P::kStages - 1; ++stage) load();
  }

  // The next stage's columns, once they are there; the rows of `panel` are at rows(panel).
  __device__ const unsigned char* next() {
    cuda::cp_async_wait<P::kStages - 2>();
    __syncthreads();
    load();  // into the stage that all have left
    const unsigned char* stage = ring() + use_stage_ * stage_bytes();
    use_stage_ = after(use_stage_);
    return stage;
  }

  __device__ const unsigned char* rows(const unsigned char* stage, int panel) const {
    return resident_ ? shared_ + panel * (kBlockRows * kPanelBytes) : stage + kCols * kPanelBytes;
  }

 private:
  __device__ size_t stride() const { return size_t(panels_) * kPanelBytes; }
  __device__ int stage_bytes() const { return (resident_ ? kCols : kCols + kBlockRows) * kPanelBytes; }
  __device__ unsigned char* ring() const { return shared_ + (resident_ ? panels_ * (kBlockRows * kPanelBytes) : 0); }
  static __device__ int after(int stage) { return stage + 1 == P::kStages ? 0 : stage + 1; }

  __device__ void copy(unsigned char* to, const unsigned char* from, int count, int panel) const {
    const int chunk = threadIdx.x % 8;
    from += size_t(panel) * kPanelBytes + chunk * 16;
    for (int row = threadIdx.x / 8; row < count; row += kTileThreads / 8)
      cuda::cp_async_16(chunk_at(to, row, chunk), from + row * stride());
  }

  __device__ void load() {
    if (tile_ < end_) {
      unsigned char* stage = ring() + load_stage_ * stage_bytes();
      const bool again = step_ >= panels_;
      const int panel = again ? gradient_panel_ + step_ - panels_ : step_;
      copy(stage, cols_ + size_t(tile_) * kCols * stride(), kCols, panel);
      if (!resident_ && !again) copy(stage + kCols * kPanelBytes, rows_, kBlockRows, panel);
      if (++step_ == steps_) step_ = 0, ++tile_;
    }
    cuda::cp_async_commit();
    load_stage_ = after(load_stage_);
  }

  const int panels_;
  const bool resident_;
  unsigned char* const shared_;
  const unsigned char *rows_, *cols_;
  int tile_, end_, step_, steps_, gradient_panel_, load_stage_, use_stage_;
};

template <int kCols>
using TileSums = float[kRowFragments][kCols / 8][4];

// The row of this thread's element 2 h of fragment m, within the block; and the column of its element 0 of fragment n.
__device__ __forceinline__ int row_of(int m, int h) {
  return threadIdx.x / 32 * kWarpRows + 16 * m + 8 * h + (lane_id() >> 2);
}
__device__ __forceinline__ int col_of(int n) { return 8 * n + 2 * (lane_id() & 3); }

// Whether this warp has any row that is not padding; the others only help to copy.
__device__ __forceinline__ bool warp_is_live(const TileSide& rows, int row0) {
  return row0 + static_cast<int>(threadIdx.x) / 32 * kWarpRows < rows.count;
}

// s = the products of this warp's rows with the stream's next tile.
template <class P, int kCols>
__device__ __forceinline__ void multiply_tile(TileStream<P, kCols>& stream, int panels, bool live, TileSums<kCols>& s) {
#pragma unroll
  for (int m = 0; m < kRowFragments; ++m)
#pragma unroll
    for (int n = 0; n < kCols / 8; ++n)
#pragma unroll
      for (int e = 0; e < 4; ++e) s[m][n][e] = 0.f;
#pragma unroll 1
  for (int panel = 0; panel < panels; ++panel) {
    const unsigned char* stage = stream.next();
    if (!live) continue;
    P::template multiply<kRowFragments, kCols / 8>(s, stream.rows(stage, panel), threadIdx.x / 32 * kWarpRows, stage);
  }
}

// Whether a tile holds padding or a pair that is left out.
template <int kCols>
__device__ __forceinline__ bool tile_is_masked(const TilePass& p, const TileSide& rows, const TileSide& cols, int row0,
                                               int col0) {
  if (cols.group || row0 + kBlockRows > rows.count || col0 + kCols > cols.count) return true;
  if (!p.period) return false;
  // i - j runs from low to high; is there a multiple of the period?
  const int low = row0 - col0 - (kCols - 1), high = row0 - col0 + kBlockRows - 1;
  return low <= 0 ? high >= 0 || -low / p.period * p.period >= -high : high / p.period * p.period >= low;
}

__device__ __forceinline__ bool is_kept(const TilePass& p, const TileSide& rows, const TileSide& cols, int i, int j) {
  if (i >= rows.count || j >= cols.count) return false;
  if (p.period) {  // at most two periods are rows
    const int distance = i < j ? j - i : i - j;
    if (distance == 0 || distance == p.period) return false;
  }
  return !rows.group || rows.group[i] != cols.group[j];
}

// Sets x to minus infinity where a pair is left out.
template <int kCols>
__device__ __forceinline__ void mask_tile(const TilePass& p, const TileSide& rows, const TileSide& cols, int row0,
                                          int col0, TileSums<kCols>& x) {
#pragma unroll
  for (int n = 0; n < kCols / 8; ++n)
#pragma unroll
    for (int m = 0; m < kRowFragments; ++m)
#pragma unroll
      for (int e = 0; e < 4; ++e)
        if (!is_kept(p, rows, cols, row0 + row_of(m, e / 2), col0 + col_of(n) + e % 2)) x[m][n][e] = -INFINITY;
}

// A sum of powers of two as sum * 2^reference.
struct PowerSum {
  float reference, sum;
};

// Nothing yet has reference -inf; NaN stays.
FASTCL_HD inline float usable_reference(float reference) { return reference == -INFINITY ? 0.f : reference; }

__device__ __forceinline__ PowerSum merge(PowerSum a, PowerSum b) {
  const float reference = fmaxf(a.reference, b.reference), usable = usable_reference(reference);
  return {reference, a.sum * cuda::exp2_approx(a.reference - usable) + b.sum * cuda::exp2_approx(b.reference - usable)};
}

// Sums of 16 columns over the 8 row groups of a warp: afterwards lane l has columns 2 l and 2 l + 1 of the tile.
__device__ __forceinline__ float2 sum_columns(float (&sums)[kForwardCols / 4]) {
#pragma unroll
  for (int round = 0; round < 3; ++round) {
    const int half = kForwardCols / 8 >> round, step = 16 >> round;
    const bool upper = lane_id() & step;
#pragma unroll
    for (int i = 0; i < kForwardCols / 8; ++i) {
      if (i >= half) break;
      const float low = sums[i], high = sums[i + half];
      sums[i] = (upper ? high : low) + __shfl_xor_sync(~0u, upper ? low : high, step);
    }
  }
  return {sums[0], sums[1]};
}

template <class P, bool kBounded>
__device__ __forceinline__ void forward_segment(const TilePass& p, TileStream<P, kForwardCols>& stream,
                                                const TileSide& rows, const TileSide& cols, int block, int begin,
                                                int end, bool columns, int slot) {
  FASTCL_SHARED(float2, col_sums, [kTileThreads / 32][32]);
  const int row0 = block * kBlockRows;
  float factor[kRowFragments][2];
  PowerSum total[kRowFragments][2];
#pragma unroll
  for (int m = 0; m < kRowFragments; ++m)
#pragma unroll
    for (int h = 0; h < 2; ++h) {
      factor[m][h] = *p.scale * kLog2E * rows.factor[row0 + row_of(m, h)];
      total[m][h] = {kBounded ? 0.f : -INFINITY, 0.f};
    }
  const bool live = warp_is_live(rows, row0);
  stream.start(rows, cols, row0, begin, end, 0, 0);
#pragma unroll 1
  for (int tile = begin; tile < end; ++tile) {
    const int col0 = tile * kForwardCols;
    TileSums<kForwardCols> x;
    multiply_tile<P, kForwardCols>(stream, p.panels, live, x);
#pragma unroll
    for (int n = 0; n < kForwardCols / 8; ++n) {
      const float2 col = *reinterpret_cast<const float2*>(cols.factor + col0 + col_of(n));
#pragma unroll
      for (int m = 0; m < kRowFragments; ++m)
#pragma unroll
        for (int e = 0; e < 4; ++e) x[m][n][e] *= factor[m][e / 2] * (e % 2 ? col.y : col.x);
    }
    if (tile_is_masked<kForwardCols>(p, rows, cols, row0, col0)) mask_tile<kForwardCols>(p, rows, cols, row0, col0, x);
#pragma unroll
    for (int m = 0; m < kRowFragments; ++m)
#pragma unroll
      for (int h = 0; h < 2; ++h) {
        PowerSum& row = total[m][h];
        float reference = 0.f;
        if constexpr (!kBounded) {
          float largest = row.reference;
#pragma unroll
          for (int n = 0; n < kForwardCols / 8; ++n)
            largest = fmaxf(largest, fmaxf(x[m][n][2 * h], x[m][n][2 * h + 1]));
          reference = usable_reference(largest);
          row.sum *= cuda::exp2_approx(row.reference - reference);
          row.reference = largest;
        }
        float sum = 0.f;
#pragma unroll
        for (int n = 0; n < kForwardCols / 8; ++n)
#pragma unroll
          for (int e = 2 * h; e < 2 * h + 2; ++e) {
            x[m][n][e] = cuda::exp2_approx(kBounded ? x[m][n][e] : x[m][n][e] - reference);
            sum += x[m][n][e];
          }
        row.sum += sum;
      }
    // Tiles on the diagonal hold both pairs of two rows, so that their columns count as rows already.
    if (kBounded && columns && (!p.symmetric || tile / (kBlockRows / kForwardCols) != block)) {
      float sums[kForwardCols / 4];
#pragma unroll
      for (int n = 0; n < kForwardCols / 8; ++n)
#pragma unroll
        for (int e = 0; e < 2; ++e) {
          sums[2 * n + e] = 0.f;
#pragma unroll
          for (int m = 0; m < kRowFragments; ++m)
#pragma unroll
            for (int h = 0; h < 2; ++h) sums[2 * n + e] += x[m][n][2 * h + e];
        }
      col_sums[threadIdx.x / 32][lane_id()] = sum_columns(sums);
      __syncthreads();
      if (threadIdx.x < 32) {
        float2 sum = col_sums[0][threadIdx.x];
#pragma unroll
        for (int warp = 1; warp < kTileThreads / 32; ++warp) {
          sum.x += col_sums[warp][threadIdx.x].x;
          sum.y += col_sums[warp][threadIdx.x].y;
        }
        reinterpret_cast<float2*>(p.col_partial + block * p.col_stride + col0)[threadIdx.x] = sum;
      }
    }
  }
#pragma unroll
  for (int m = 0; m < kRowFragments; ++m)
#pragma unroll
    for (int h = 0; h < 2; ++h) {
      PowerSum row = total[m][h];
#pragma unroll
      for (int step = 1; step < 4; step *= 2)
        row = merge(row, {__shfl_xor_sync(~0u, row.reference, step), __shfl_xor_sync(~0u, row.sum, step)});
      if ((lane_id() & 3) == 0)
        p.row_partial[size_t(slot) * kBlockRows + row_of(m, h)] = make_float2(row.reference, row.sum);
    }
}

// Whether the architecture that is compiled for can run P; the host never launches what it cannot.
template <class P>
__device__ constexpr bool runs_here() {
  return !(P::kTensorCores && cuda::kBeforeSm80);
}

// Calls segment(block, begin, end, slot) for each run of tiles of one row block in this thread block's share.
template <class Segment>
__device__ __forceinline__ void for_each_segment(const TileOrder& order, int shares, Segment segment) {
  const int share = order.share(shares), total = order.total();
  int tile = share * blockIdx.x;
  if (tile >= total) return;
  const int stop = total - tile < share ? total : tile + share;
  for (int block = order.block_of(tile); tile < stop; ++block) {
    const int after = order.before(block + 1), last = after < stop ? after : stop;
    const int offset = order.first_tile(block) - order.before(block);
    segment(block, tile + offset, last + offset, blockIdx.x + block);
    tile = last;
  }
}

template <class P>
__global__ void __launch_bounds__(kTileThreads, kBlocksPerMultiprocessor) contrast_forward_tiles(TilePass p) {
  if constexpr (!runs_here<P>()) return;
  FASTCL_DYNAMIC_SHARED(shared);
  const bool bounded = logits_are_bounded<kTileThreads>(p);
  const TileOrder order = forward_order(p, bounded);
  const bool columns = bounded && p.column_room && (p.symmetric || p.columns);
  TileStream<P, kForwardCols> stream(p, shared);
  for_each_segment(order, p.shares, [&](int block, int begin, int end, int slot) {
    const bool back = block >= order.row_blocks;
    const TileSide &rows = back ? p.k : p.q, &cols = back ? p.q : p.k;
    const int own = back ? block - order.row_blocks : block;
    if (bounded)
      forward_segment<P, true>(p, stream, rows, cols, own, begin, end, columns, slot);
    else
      forward_segment<P, false>(p, stream, rows, cols, own, begin, end, false, slot);
  });
}

// Turns similarities into their gradients: G_ij = w_i 2^(x_ij - l_i) + w_j 2^(x_ij - l_j), times the factor of column j
// (the product that follows takes stored rows) and `magnitude`. Returns this thread's sum of G_ij x_ij.
template <bool kBounded, int kCols>
__device__ __forceinline__ float gradient_of_tile(const TilePass& p, const TileSide& rows, const TileSide& cols,
                                                  int row0, int col0, float magnitude, TileSums<kCols>& x) {
  const float scale = *p.scale * kLog2E;
  RowTerm row[kRowFragments][2];
#pragma unroll
  for (int m = 0; m < kRowFragments; ++m)
#pragma unroll
    for (int h = 0; h < 2; ++h) {
      row[m][h] = rows.term[row0 + row_of(m, h)];
      row[m][h].factor *= scale;
    }
  const bool masked = tile_is_masked<kCols>(p, rows, cols, row0, col0);
  float sum = 0.f;
#pragma unroll
  for (int n = 0; n < kCols / 8; ++n)
#pragma unroll
    for (int odd = 0; odd < 2; ++odd) {
      const int j = col0 + col_of(n) + odd;
      const RowTerm col = cols.term[j];
      const float out = col.factor * magnitude;
#pragma unroll
      for (int m = 0; m < kRowFragments; ++m)
#pragma unroll
        for (int h = 0; h < 2; ++h) {
          const RowTerm& r = row[m][h];
          float& value = x[m][n][2 * h + odd];
          const float logit = value * (r.factor * col.factor);
          float g;
          if constexpr (kBounded)
            g = cuda::exp2_approx(logit) * (r.plain + col.plain);
          else
            g = fmaf(r.weight, cuda::exp2_approx(logit - r.log2_sum),
                     col.weight * cuda::exp2_approx(logit - col.log2_sum));
          if (masked && !is_kept(p, rows, cols, row0 + row_of(m, h), j)) g = 0.f;
          // A row of padding has similarity 0: far above what a column of very negative ones sums to, so g may be
          // infinite.
          if (kBounded || row0 + row_of(m, h) < rows.count) sum = fmaf(g, logit, sum);
          value = g * out;
        }
    }
  return sum;
}

// The power of two that brings gradients into float16's normal range.
__device__ __forceinline__ float float16_magnitude(float largest_weight) {
  return largest_weight > 0.f ? exp2f(12.f - ceilf(log2f(largest_weight))) : 1.f;
}

// The gradient of q's rows, from every column: P::kGradientPanels panels of it, by blockIdx.y.
template <class P>
__global__ void __launch_bounds__(kTileThreads, kBlocksPerMultiprocessor)
    contrast_backward_tiles(TilePass p, const float* q_weights, int q_weight_count, const float* k_weights,
                            int k_weight_count) {
  if constexpr (!runs_here<P>()) return;
  FASTCL_DYNAMIC_SHARED(shared);
  constexpr int kPanels = P::kGradientPanels, kCols = P::kBackwardCols;
  const bool bounded = logits_are_bounded<kTileThreads>(p);
  float magnitude = 1.f;
  if constexpr (P::kNarrowRange)
    magnitude = float16_magnitude(
        fmaxf(block_max<kTileThreads>(q_weights, q_weight_count), block_max<kTileThreads>(k_weights, k_weight_count)));
  const TileOrder order = backward_order(p);
  const int first_panel = blockIdx.y * kPanels;
  const int live_panels = p.panels - first_panel < kPanels ? p.panels - first_panel : kPanels;
  TileStream<P, kCols> stream(p, shared);
  float along = 0.f;
  for_each_segment(order, p.shares, [&](int block, int begin, int end, int slot) {
    float sums[kPanels][kRowFragments][P::kPanel / 8][4];
#pragma unroll
    for (int panel = 0; panel < kPanels; ++panel)
#pragma unroll
      for (int m = 0; m < kRowFragments; ++m)
#pragma unroll
        for (int n = 0; n < P::kPanel / 8; ++n)
#pragma unroll
          for (int e = 0; e < 4; ++e) sums[panel][m][n][e] = 0.f;
    const int row0 = block * kBlockRows;
    const bool live = warp_is_live(p.q, row0);
    stream.start(p.q, p.k, row0, begin, end, first_panel, live_panels);
#pragma unroll 1
    for (int tile = begin; tile < end; ++tile) {
      TileSums<kCols> x;
      multiply_tile<P, kCols>(stream, p.panels, live, x);
      const int col0 = tile * kCols;
      along += bounded ? gradient_of_tile<true, kCols>(p, p.q, p.k, row0, col0, magnitude, x)
                       : gradient_of_tile<false, kCols>(p, p.q, p.k, row0, col0, magnitude, x);
      const typename P::template Gradient<kRowFragments, kCols / 8> g(x);
#pragma unroll
      for (int panel = 0; panel < kPanels; ++panel)
        if (panel < live_panels) {
          const unsigned char* stage = stream.next();
          if (live) P::template accumulate<kRowFragments, kCols / 8>(sums[panel], g, stage);
        }
    }
    const float restore = 1.f / magnitude;
#pragma unroll
    for (int panel = 0; panel < kPanels; ++panel)
      if (panel < live_panels)
#pragma unroll
        for (int m = 0; m < kRowFragments; ++m)
#pragma unroll
          for (int h = 0; h < 2; ++h) {
            float* out = p.gradient + (size_t(slot) * kBlockRows + row_of(m, h)) * p.gradient_stride +
                         (first_panel + panel) * P::kPanel;
#pragma unroll
            for (int n = 0; n < P::kPanel / 8; ++n)
              *reinterpret_cast<float2*>(out + col_of(n)) =
                  make_float2(sums[panel][m][n][2 * h] * restore, sums[panel][m][n][2 * h + 1] * restore);
          }
  });
  if (!p.scale_partial || blockIdx.y) return;
  const float sum = block_sum<kTileThreads>(along);
  if (threadIdx.x == 0) p.scale_partial[blockIdx.x] = sum;
}

}  // namespace fastcl

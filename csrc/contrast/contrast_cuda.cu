#include <algorithm>
#include <cstring>
#include <stdexcept>
#include <string>

#include "common/cuda/scratch.h"
#include "contrast/contrast_cuda.h"
#include "contrast/contrast_cuda_rows.h"
#include "contrast/contrast_cuda_small.h"
#include "contrast/contrast_cuda_tiles.h"
#include "ntxent/ntxent_math.h"

namespace fastcl {
namespace {

constexpr int kThreads = 256;  // of the kernels around the tiles: eight warps, each a row at a time
constexpr int kWarps = kThreads / 32;
constexpr int kPrepareRows = 4 * kWarps;          // rows of a block of `prepare`
constexpr size_t kColumnRoom = size_t(64) << 20;  // bytes of column sums; more, and columns are summed as rows

// ---- prepare ----

// Where the rows of one side go.
struct PreparedSide {
  unsigned char* rows;    // [padded, stride]
  float* factor;          // [padded]
  RowTerm* term;          // [padded], null in a forward pass
  float* largest;         // [blocks], lengths
  float* largest_weight;  // [blocks], null in a forward pass
  int count, padded;
  int blocks;  // of the launch that prepares this side
};

struct PreparedRows {
  FloatType element;  // the products' type
  int stride;         // bytes

  __device__ __forceinline__ int dims() const { return stride / (element == FloatType::kFloat32 ? 4 : 2); }
  __device__ __forceinline__ void store(unsigned char* rows, int i, int d, float4 v) const {
    store_four(rows + size_t(i) * stride + d * size_of(element), element, v);
  }
  __device__ __forceinline__ void clear(unsigned char* rows, int i) const {
    for (int d = 4 * lane_id(); d < dims(); d += 128) store(rows, i, d, make_float4(0.f, 0.f, 0.f, 0.f));
  }
};

// values[block] = the maximum of every warp's value.
__device__ __forceinline__ void store_block_max(float value, float* values, int block) {
  FASTCL_SHARED(float, maxima, [kWarps]);
  __syncthreads();
  if (lane_id() == 0) maxima[threadIdx.x / 32] = value;
  __syncthreads();
  if (threadIdx.x) return;
  for (int warp = 1; warp < kWarps; ++warp) value = fmaxf(value, maxima[warp]);
  values[block] = value;
}

struct PrepareSides {
  Matrix from[2];  // q, k
  const float* lse[2];
  const float* grad[2];
  PreparedSide to[2];  // the second of no rows where symmetric
  PreparedRows rows;
  const float* scale;
  float* grad_scale;  // set to 0, null in a forward pass
};

__global__ void __launch_bounds__(kThreads, 4) prepare_sides(PrepareSides p) {
  if (p.grad_scale && blockIdx.x == 0 && threadIdx.x == 0) *p.grad_scale = 0.f;
  const int first_blocks = p.to[0].blocks;
  const int side = blockIdx.x >= first_blocks;
  const int block = side ? blockIdx.x - first_blocks : blockIdx.x;
  const PreparedSide& to = p.to[side];
  if (block * kPrepareRows >= to.padded) return;
  float largest = 0.f, largest_weight = 0.f;
  for (int r = threadIdx.x / 32; r < kPrepareRows; r += kWarps) {
    const int i = block * kPrepareRows + r;
    if (i >= to.count) {
      p.rows.clear(to.rows, i);
      if (lane_id() == 0) {
        to.factor[i] = 0.f;
        if (to.term) to.term[i] = {0.f, 0.f, 0.f, 0.f};
      }
      continue;
    }
    float square = 0.f;
    for (int d = 4 * lane_id(); d < p.rows.dims(); d += 128) {
      const float4 v = p.from[side].load(i, d);
      p.rows.store(to.rows, i, d, v);
      square = dot(v, v, square);
    }
    largest = fmaxf(largest, sqrtf(warp_sum(square)));
    if (lane_id() == 0) to.factor[i] = 1.f;
    if (!to.term) continue;
    const float weight = p.grad[side] ? *p.scale * p.grad[side][i] : 0.f;
    const float log2_sum = p.lse[side] ? p.lse[side][i] * kLog2E : -INFINITY;
    largest_weight = fmaxf(largest_weight, fabsf(weight));
    if (lane_id() == 0) to.term[i] = row_term(1.f, weight, log2_sum);
  }
  store_block_max(largest, to.largest, block);
  if (to.term) store_block_max(largest_weight, to.largest_weight, block);
}

struct PrepareViews {
  Matrix from[2];       // [n, dim]
  const float* losses;  // [2n], null in a forward pass
  const float* grad;    // [2n], likewise
  PreparedSide to;
  PreparedRows rows;
  float* norm;      // [2n]
  float* positive;  // [n], log2(e) * scaled similarity of the two views
  float* pull;      // [n], of a row by its positive, null in a forward pass
  const float* scale;
};

__global__ void __launch_bounds__(kThreads, 4) prepare_views(PrepareViews p) {
  const int n = p.to.count / 2, padding = p.to.padded - p.to.count;
  float largest_weight = 0.f;
  for (int r = threadIdx.x / 32; r < kPrepareRows; r += kWarps) {
    const int i = blockIdx.x * kPrepareRows + r;
    if (i >= n + padding) break;
    if (i >= n) {
      const int row = p.to.count + i - n;
      p.rows.clear(p.to.rows, row);
      if (lane_id() == 0) {
        p.to.factor[row] = 0.f;
        if (p.to.term) p.to.term[row] = {0.f, 0.f, 0.f, 0.f};
      }
      continue;
    }
    const UnitPair pair =
        unit_pair<32>(p.from, i, true, p.rows.element, p.rows.dims(), *p.scale,
                      [&](int view, int d, float4 v) { p.rows.store(p.to.rows, view * n + i, d, v); });
    PairTerms terms{};
    if (p.to.term) terms = pair_terms(pair, *p.scale, p.losses, p.grad, n, i);
#pragma unroll
    for (int view = 0; view < 2; ++view) {
      const int row = view * n + i;
      largest_weight = fmaxf(largest_weight, fabsf(terms.row[view].weight));
      if (lane_id() == 0) {
        p.norm[row] = pair.norm[view];
        p.to.factor[row] = pair.factor[view];
        if (p.to.term) p.to.term[row] = terms.row[view];
      }
    }
    if (lane_id() == 0) {
      p.positive[i] = pair.positive;
      if (p.pull) p.pull[i] = terms.pull;
    }
  }
  if (threadIdx.x == 0) p.to.largest[blockIdx.x] = 1.f;
  if (p.to.term) store_block_max(largest_weight, p.to.largest_weight, blockIdx.x);
}

// ---- finish ----

// The thread blocks that have tiles of row block `block`: their slots are first + block to last + block.
struct Shares {
  int first, last;
};
__device__ __forceinline__ Shares shares_of(const TileOrder& order, int shares, int block) {
  const int begin = order.before(block), end = order.before(block + 1);
  if (begin == end) return {0, -1};
  const int share = order.share(shares);
  return {begin / share, (end - 1) / share};
}

__device__ __forceinline__ PowerSum row_sum(const TilePass& p, const TileOrder& order, int block, int row) {
  const Shares shares = shares_of(order, p.shares, block);
  PowerSum sum{-INFINITY, 0.f};
  for (int share = shares.first; share <= shares.last; ++share) {
    const float2 part = p.row_partial[(size_t(share) + block) * kBlockRows + row];
    sum = merge(sum, {part.x, part.y});
  }
  return sum;
}

__device__ __forceinline__ float column_sum(const TilePass& p, int blocks, int col) {
  float sum = 0.f;
#pragma unroll 8
  for (int block = 0; block < blocks; ++block) sum += p.col_partial[block * p.col_stride + col];
  return sum;
}

// log2 of the sums: a thread for each row, then for each column.
__global__ void __launch_bounds__(kThreads)
    finish_forward(TilePass p, const float* positive, float* row_lse, float* col_lse) {
  const bool bounded = logits_are_bounded<kThreads>(p);
  const TileOrder order = forward_order(p, bounded);
  const int rows = p.q.count;
  const int index = blockIdx.x * kThreads + threadIdx.x;
  if (index >= rows + (col_lse ? p.k.count : 0)) return;
  const int i = index < rows ? index : index - rows;
  PowerSum sum{0.f, 0.f};
  if (index < rows) {
    sum = row_sum(p, order, i / kBlockRows, i % kBlockRows);
    if (order.kind == TileOrder::kTriangle) sum = merge(sum, {0.f, column_sum(p, i / kBlockRows, i)});
  } else if (order.kind == TileOrder::kBoth) {
    sum = row_sum(p, order, order.row_blocks + i / kBlockRows, i % kBlockRows);
  } else {
    sum.sum = column_sum(p, order.row_blocks, i);
  }
  if (positive) {
    const float margin = sum.reference - positive[i % (rows / 2)] + log2f(sum.sum);
    row_lse[i] = ntxent_loss(margin * kLn2);
  } else {
    (index < rows ? row_lse : col_lse)[i] = sum.sum == 0.f ? -INFINITY : fmaf(sum.reference, kLn2, logf(sum.sum));
  }
}

struct FinishBackward {
  TilePass tiles;
  Matrix from[2];  // q; ntxent: both views, [n, dim] each
  Matrix grad;     // of q
  const float* norm;
  const float* positive;
  const float* pull;  // null but for ntxent
  float* grad_scale;  // null: not wanted
};

// s depends on scale q alone: scale d/dscale = sum of <q_i, d/dq_i> = sum of G_ij s_ij; where k is q, that counts each
// pair twice. ntxent's positives are not among the G_ij.
__device__ __forceinline__ void finish_scale(const FinishBackward& p) {
  float sum = 0.f;
  const int shares = p.tiles.k.count ? p.tiles.shares : 0;
  for (int share = threadIdx.x; share < shares; share += kThreads) sum += p.tiles.scale_partial[share];
  const int pairs = p.pull ? p.tiles.q.count / 2 : 0;
  for (int i = threadIdx.x; i < pairs; i += kThreads) sum = fmaf(2.f * p.pull[i], p.positive[i], sum);
  sum = block_sum<kThreads>(sum);
  const float scale = *p.tiles.scale;
  if (threadIdx.x == 0) *p.grad_scale = sum / ((p.tiles.symmetric ? 2.f : 1.f) * kLog2E * scale * scale);
}

// The gradient of each row from its partial sums, a warp for each; then a block for the scale's.
__global__ void __launch_bounds__(kThreads, 4) finish_backward(FinishBackward p) {
  const TilePass& tiles = p.tiles;
  const int rows = tiles.q.count;
  if (p.grad_scale && blockIdx.x == gridDim.x - 1) return finish_scale(p);
  const int i = blockIdx.x * kWarps + threadIdx.x / 32;
  if (i >= rows) return;
  const TileOrder order = backward_order(tiles);
  const int block = i / kBlockRows;
  const Shares shares = shares_of(order, tiles.shares, block);
  const size_t stride = tiles.gradient_stride;
  float* first = tiles.gradient + ((size_t(shares.first) + block) * kBlockRows + i % kBlockRows) * stride;
  const auto total = [&](int d) {
    float4 sum = make_float4(0.f, 0.f, 0.f, 0.f);
    for (int share = 0; share <= shares.last - shares.first; ++share)
      sum = plus(sum, *reinterpret_cast<const float4*>(first + share * (kBlockRows * stride) + d), 1.f);
    return sum;
  };
  if (p.pull) {
    const int n = rows / 2, view = i >= n, row = i - view * n;
    finish_view(p.from[view], p.from[!view], row, p.grad, i, p.norm[i], p.norm[view ? row : n + row], p.pull[row],
                first, total);
  } else {
    for (int d = 4 * lane_id(); d < p.grad.dim; d += 128) p.grad.store(i, d, total(d));
  }
}

// ---- host ----

int blocks_of(int64_t count, int size) { return static_cast<int>((count + size - 1) / size); }
int padded(int count) { return blocks_of(count, kBlockRows) * kBlockRows; }

FloatType element_of(CudaProducts products) {
  return products == CudaProducts::kBFloat16  ? FloatType::kBFloat16
         : products == CudaProducts::kFloat16 ? FloatType::kFloat16
                                              : FloatType::kFloat32;
}

template <class Visit>
void with_products(CudaProducts products, Visit visit) {
  switch (products) {
    case CudaProducts::kSimt:
      return visit(SimtProducts());
    case CudaProducts::kTf32x3:
      return visit(Tf32Products<2>());
    case CudaProducts::kTf32:
      return visit(Tf32Products<1>());
    case CudaProducts::kBFloat16:
      return visit(HalfProducts<BFloat16Values>());
    case CudaProducts::kFloat16:
      return visit(HalfProducts<Float16Values>());
  }
}

// Everything that the passes over one problem share.
struct Plan {
  const CudaContrast& problem;
  Cutter scratch;
  PreparedRows rows;
  int panels;
  PreparedSide side[2];
  float *norm = nullptr, *positive = nullptr, *pull = nullptr;
  TilePass pass{};
  int gradient_chunks = 1;  // thread blocks that share the dimensions of a gradient

  Plan(const CudaContrast& p, void* memory, bool backward) : problem(p), scratch(memory) {
    const FloatType element = element_of(p.products);
    panels = blocks_of(p.dim * size_of(element), kPanelBytes);
    rows = {element, panels * kPanelBytes};
    const int counts[2] = {p.rows, p.symmetric ? 0 : p.cols};
    for (int s = 0; s < 2; ++s) {
      const int all = padded(counts[s]);
      // A warp of prepare_views takes both rows of a pair.
      const int blocks = blocks_of(p.ntxent ? all - counts[s] / 2 : all, kPrepareRows);
      side[s] = {scratch.array<unsigned char>(size_t(all) * rows.stride),
                 scratch.array<float>(all),
                 backward ? scratch.array<RowTerm>(all) : nullptr,
                 scratch.array<float>(blocks),
                 backward ? scratch.array<float>(blocks) : nullptr,
                 counts[s],
                 all,
                 blocks};
    }
    if (p.ntxent) {
      norm = scratch.array<float>(p.rows);
      positive = scratch.array<float>(p.rows / 2);
      if (backward) pull = scratch.array<float>(p.rows / 2);
    }
    pass.q = tile_side(side[0], p.q_group);
    pass.k = p.symmetric ? pass.q : tile_side(side[1], p.k_group);
    pass.symmetric = p.symmetric;
    pass.period = p.ntxent ? p.rows / 2 : p.symmetric && !p.q_group ? p.rows : 0;
    pass.panels = panels;
    pass.scale = p.scale;
    with_products(p.products, [&](auto products) {
      gradient_chunks = blocks_of(panels, decltype(products)::kGradientPanels);
      pass.gradient_cols = decltype(products)::kBackwardCols;
    });
    pass.gradient_stride = size_t(rows.stride) / size_of(element);
  }

  TileSide tile_side(const PreparedSide& from, const int64_t* group) const {
    return {from.rows, from.factor, from.term, group, from.largest, from.blocks, from.count};
  }

  // Thread blocks for a list of tiles, `chunks` times.
  static int shares(int64_t tiles, int chunks) {
    const int64_t blocks = int64_t(kBlocksPerMultiprocessor) * cuda::multiprocessors() / chunks;
    return static_cast<int>(std::max<int64_t>(1, std::min(tiles, blocks)));
  }

  void forward(bool columns) {
    const int row_blocks = pass.q.blocks(), back_blocks = pass.k.blocks();
    pass.columns = columns;
    pass.col_stride = padded(pass.k.count);
    const size_t column_sums = row_blocks * pass.col_stride;
    pass.column_room = column_sums * sizeof(float) <= kColumnRoom;
    const int64_t tiles = int64_t(row_blocks) * pass.k.tiles(kForwardCols) +
                          (columns ? int64_t(back_blocks) * pass.q.tiles(kForwardCols) : 0);
    pass.shares = shares(tiles, 1);
    pass.row_partial =
        scratch.array<float2>((size_t(pass.shares) + row_blocks + (columns ? back_blocks : 0)) * kBlockRows);
    if (pass.column_room && (columns || pass.symmetric)) pass.col_partial = scratch.array<float>(column_sums);
  }

  int backward_shares(const TileSide& q, const TileSide& k) const {
    return shares(int64_t(q.blocks()) * k.tiles(pass.gradient_cols), gradient_chunks);
  }

  // Both sides' gradients take the same memory in turn.
  void backward() {
    const auto blocks = [&](const TileSide& q, const TileSide& k) {
      return size_t(backward_shares(q, k)) + q.blocks();
    };
    const size_t most = std::max(blocks(pass.q, pass.k), blocks(pass.k, pass.q));
    pass.gradient = scratch.array<float>(most * kBlockRows * pass.gradient_stride);
    pass.scale_partial = scratch.array<float>(backward_shares(pass.q, pass.k));
  }

  void prepare_sides_launch(const CudaContrastBackward* out, cuda::Stream stream) const {
    const CudaContrast& p = problem;
    const int blocks = std::max(1, side[0].blocks + side[1].blocks);
    PrepareSides s{{matrix(p.q, p.type, p.dim), matrix(p.k, p.type, p.dim)},
                   {nullptr, nullptr},
                   {nullptr, nullptr},
                   {side[0], side[1]},
                   rows,
                   p.scale,
                   nullptr};
    if (out) {
      s.lse[0] = out->row_lse, s.lse[1] = out->col_lse;
      s.grad[0] = out->grad_row, s.grad[1] = out->grad_col;
      s.grad_scale = out->grad_scale;
    }
    cuda::launch(prepare_sides, dim3(blocks), dim3(kThreads), 0, stream, s);
  }

  void prepare_views_launch(const CudaContrastBackward* out, cuda::Stream stream) const {
    const CudaContrast& p = problem;
    PrepareViews v{{matrix(p.q, p.type, p.dim), matrix(p.k, p.type, p.dim)},
                   out ? out->row_lse : nullptr,
                   out ? out->grad_row : nullptr,
                   side[0],
                   rows,
                   norm,
                   positive,
                   pull,
                   p.scale};
    cuda::launch(prepare_views, dim3(side[0].blocks), dim3(kThreads), 0, stream, v);
  }

  void prepare(const CudaContrastBackward* out, cuda::Stream stream) const {
    if (problem.ntxent)
      prepare_views_launch(out, stream);
    else
      prepare_sides_launch(out, stream);
  }
};

// ---- small batches of ntxent ----

SmallBatch small_batch(const CudaContrast& p) {
  const FloatType element = element_of(p.products);
  return {{matrix(p.q, p.type, p.dim), matrix(p.k, p.type, p.dim)},
          p.rows / 2,
          element,
          blocks_of(p.dim * size_of(element), kPanelBytes),
          p.scale};
}

// Which path a problem takes.
bool is_small(const CudaContrast& p) {
  if (!p.ntxent) return false;
  const SmallBatch batch = small_batch(p);
  return batch.panels <= kSmallPanels && int64_t(p.rows) * batch.dims() <= kSmallElements;
}

SmallGradient small_gradient(const CudaContrast& p, const CudaContrastBackward& out, Cutter& scratch) {
  float* partial = scratch.array<float>(small_batch(p).tiles());
  return {out.row_lse,   out.grad_row, matrix(out.grad_q, p.type, p.dim), partial, scratch.array<unsigned long long>(1),
          out.grad_scale};
}

}  // namespace

CudaProducts cuda_products(FloatType type, const char* precision, int capability) {
  if (capability < 80) return CudaProducts::kSimt;
  if (type == FloatType::kBFloat16) return CudaProducts::kBFloat16;
  if (type == FloatType::kFloat16) return CudaProducts::kFloat16;
  if (!std::strcmp(precision, "medium")) return CudaProducts::kBFloat16;
  return std::strcmp(precision, "high") ? CudaProducts::kTf32x3 : CudaProducts::kTf32;
}

size_t cuda_contrast_forward_bytes(const CudaContrast& problem, bool columns) {
  if (is_small(problem)) return 0;
  Plan plan(problem, nullptr, false);
  plan.forward(columns);
  return plan.scratch.used();
}

void cuda_contrast_forward(const CudaContrast& problem, const CudaContrastForward& out, void* memory,
                           cuda::Stream stream) {
  if (is_small(problem)) {
    with_products(problem.products, [&](auto products) {
      using P = decltype(products);
      const SmallBatch batch = small_batch(problem);
      cuda::launch(ntxent_small_forward<P>, dim3(batch.tiles()), dim3(kSmallThreads<P>),
                   small_shared_bytes<P>(batch.panels), stream, batch, out.row_lse);
    });
    return;
  }
  Plan plan(problem, memory, false);
  plan.forward(out.col_lse != nullptr);
  plan.prepare(nullptr, stream);
  const TilePass& pass = plan.pass;
  if (pass.q.count && pass.k.count)
    with_products(problem.products, [&](auto products) {
      using P = decltype(products);
      cuda::launch(contrast_forward_tiles<P>, dim3(pass.shares), dim3(kTileThreads),
                   TileStream<P, kForwardCols>::shared_bytes(pass.panels), stream, pass);
    });
  const int64_t values = int64_t(problem.rows) + (out.col_lse ? problem.cols : 0);
  if (values)
    cuda::launch(finish_forward, dim3(blocks_of(values, kThreads)), dim3(kThreads), 0, stream, pass, plan.positive,
                 out.row_lse, out.col_lse);
}

size_t cuda_contrast_backward_bytes(const CudaContrast& problem) {
  if (is_small(problem)) {
    Cutter scratch(nullptr);
    small_gradient(problem, {}, scratch);
    return scratch.used();
  }
  Plan plan(problem, nullptr, true);
  plan.backward();
  return plan.scratch.used();
}

void cuda_contrast_backward(const CudaContrast& problem, const CudaContrastBackward& out, void* memory,
                            cuda::Stream stream) {
  if (is_small(problem)) {
    Cutter scratch(memory);
    const SmallGradient gradient = small_gradient(problem, out, scratch);
    with_products(problem.products, [&](auto products) {
      using P = decltype(products);
      const SmallBatch batch = small_batch(problem);
      cuda::launch(ntxent_small_backward<P>, dim3(batch.tiles()), dim3(kSmallThreads<P>),
                   small_shared_bytes<P>(batch.panels), stream, batch, gradient);
    });
    return;
  }
  Plan plan(problem, memory, true);
  plan.backward();
  plan.prepare(&out, stream);

  const auto side = [&](TilePass pass, bool is_q, const void* from, void* grad) {
    if (!grad || !pass.q.count) return;
    if (!is_q) pass.scale_partial = nullptr;
    pass.shares = plan.backward_shares(pass.q, pass.k);
    if (pass.k.count)
      with_products(problem.products, [&](auto products) {
        using P = decltype(products);
        cuda::launch(contrast_backward_tiles<P>, dim3(pass.shares, plan.gradient_chunks), dim3(kTileThreads),
                     TileStream<P, P::kBackwardCols>::shared_bytes(pass.panels), stream, pass,
                     plan.side[0].largest_weight, plan.side[0].blocks, plan.side[1].largest_weight,
                     plan.side[1].blocks);
      });
    FinishBackward finish{pass,
                          {matrix(from, problem.type, problem.dim), matrix(problem.k, problem.type, problem.dim)},
                          matrix(grad, problem.type, problem.dim),
                          plan.norm,
                          plan.positive,
                          plan.pull,
                          is_q ? out.grad_scale : nullptr};
    cuda::launch(finish_backward, dim3(blocks_of(pass.q.count, kWarps) + is_q), dim3(kThreads), 0, stream, finish);
  };
  side(plan.pass, true, problem.q, out.grad_q);
  TilePass back = plan.pass;
  std::swap(back.q, back.k);
  if (!problem.symmetric) side(back, false, problem.k, out.grad_k);
}

}  // namespace fastcl

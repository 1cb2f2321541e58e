// NT-Xent of small batches, where launches decide: one kernel forward, one backward. A thread block takes 8 samples,
// that is 16 rows, and all columns. Each of its warps reads other tiles of 8 samples from the user's tensors,
// normalises them into its own part of shared memory, multiplies, and goes on alone; what the warps have is added at
// the end, in a fixed order.
//
// Rows of a tile: sample r % 8, view r / 8. So a tile has both views of a sample, and so has a thread: its rows are the
// two views of sample lane / 4, and a pair is left out where the samples are the same.
#pragma once

#include "contrast/contrast_cuda_rows.h"

namespace fastcl {

constexpr int kSmallPanels = 4;  // of a row, at most: a thread's sums of the gradient take up to 128 registers
// Elements that every thread block reads and normalises, at most: at about 10 instructions each, and 128 a cycle on a
// multiprocessor, 5,120 cycles, which is less than the two launches that are saved take (docs/cuda-kernels.md).
constexpr int64_t kSmallElements = 1 << 16;
constexpr int kTileSamples = 8, kTileRows = 2 * kTileSamples;
constexpr int kTilePanelBytes = kTileRows * kPanelBytes;

template <class P>
constexpr int kSmallWarps = P::kTensorCores ? 8 : 4;  // sm_75 has 64 KiB of shared memory
template <class P>
constexpr int kSmallThreads = 32 * kSmallWarps<P>;

// Tiles of the block's rows and of each warp's columns; later the sums of half of the warps.
template <class P>
size_t small_shared_bytes(int panels) {
  return size_t(1 + kSmallWarps<P>) * panels * kTilePanelBytes;
}

struct SmallBatch {
  Matrix from[2];     // the views, [n, dim]
  int n;              // samples
  FloatType element;  // the products' type
  int panels;         // of a row
  const float* scale;

  FASTCL_HD int tiles() const { return (n + kTileSamples - 1) / kTileSamples; }
  FASTCL_HD int dims() const { return panels * kPanelBytes / static_cast<int>(size_of(element)); }
};

// Where lane l is, as a row of tiles; and as one of the four lanes that load a sample.
__device__ __forceinline__ int lane_sample() { return lane_id() / 4; }
// The sample of column `odd` of a fragment; view n is fragment n.
__device__ __forceinline__ int col_sample(int odd) { return 2 * (lane_id() % 4) + odd; }

// Normalises tile `tile` into `panels`, by one warp; each lane gets its sample's numbers.
__device__ __forceinline__ UnitPair load_tile(const SmallBatch& p, int tile, unsigned char* panels) {
  const int i = tile * kTileSamples + lane_sample(), bytes = static_cast<int>(size_of(p.element));
  return unit_pair<4>(p.from, i, i < p.n, p.element, p.dims(), *p.scale, [&](int view, int d, float4 v) {
    const int at = d * bytes, row = view * kTileSamples + lane_sample();
    unsigned char* chunk = chunk_at(panels + at / kPanelBytes * kTilePanelBytes, row, at % kPanelBytes / 16);
    store_four(chunk + at % 16, p.element, v);
  });
}

template <class P>
__device__ __forceinline__ void multiply_rows(const SmallBatch& p, const unsigned char* rows, const unsigned char* cols,
                                              float (&s)[1][2][4]) {
#pragma unroll
  for (int n = 0; n < 2; ++n)
#pragma unroll
    for (int e = 0; e < 4; ++e) s[0][n][e] = 0.f;
#pragma unroll 1
  for (int panel = 0; panel < p.panels; ++panel)
    P::template multiply<1, 2>(s, rows + panel * kTilePanelBytes, 0, cols + panel * kTilePanelBytes);
}

template <class P>
__global__ void __launch_bounds__(kSmallThreads<P>, 2) ntxent_small_forward(SmallBatch p, float* losses) {
  if constexpr (!runs_here<P>()) return;
  constexpr int kWarps = kSmallWarps<P>;
  FASTCL_DYNAMIC_SHARED(shared);
  FASTCL_SHARED(float, row_factor, [kTileRows]);
  FASTCL_SHARED(float, positive, [kTileSamples]);
  FASTCL_SHARED(float, factors, [kWarps][kTileRows]);
  FASTCL_SHARED(float2, partial, [kWarps][kTileRows]);
  const int warp = threadIdx.x / 32, block = blockIdx.x;
  const bool writes = lane_id() % 4 == 0;  // the first of the lanes that share a sample
  if (warp == 0) {
    const UnitPair pair = load_tile(p, block, shared);
    if (writes) {
      row_factor[lane_sample()] = pair.factor[0];
      row_factor[kTileSamples + lane_sample()] = pair.factor[1];
      positive[lane_sample()] = pair.positive;
    }
  }
  __syncthreads();
  const float scale = *p.scale * kLog2E;
  const float factor[2] = {scale * row_factor[lane_sample()], scale * row_factor[kTileSamples + lane_sample()]};
  PowerSum total[2] = {{-INFINITY, 0.f}, {-INFINITY, 0.f}};
  unsigned char* const cols = shared + (1 + warp) * p.panels * kTilePanelBytes;
#pragma unroll 1
  for (int tile = warp; tile < p.tiles(); tile += kWarps) {
    const UnitPair pair = load_tile(p, tile, cols);
    if (writes) {
      factors[warp][lane_sample()] = pair.factor[0];
      factors[warp][kTileSamples + lane_sample()] = pair.factor[1];
    }
    __syncwarp();
    float x[1][2][4];
    multiply_rows<P>(p, shared, cols, x);
#pragma unroll
    for (int n = 0; n < 2; ++n)
#pragma unroll
      for (int e = 0; e < 4; ++e) {
        const int j = col_sample(e % 2);
        x[0][n][e] *= factor[e / 2] * factors[warp][n * kTileSamples + j];
        if (tile * kTileSamples + j >= p.n || (tile == block && j == lane_sample())) x[0][n][e] = -INFINITY;
      }
#pragma unroll
    for (int h = 0; h < 2; ++h) {
      PowerSum& row = total[h];
      const float x0 = x[0][0][2 * h], x1 = x[0][0][2 * h + 1], x2 = x[0][1][2 * h], x3 = x[0][1][2 * h + 1];
      const float largest = fmaxf(row.reference, fmaxf(fmaxf(x0, x1), fmaxf(x2, x3)));
      const float reference = usable_reference(largest);
      row.sum *= cuda::exp2_approx(row.reference - reference);
      row.sum += (cuda::exp2_approx(x0 - reference) + cuda::exp2_approx(x1 - reference)) +
                 (cuda::exp2_approx(x2 - reference) + cuda::exp2_approx(x3 - reference));
      row.reference = largest;
    }
    __syncwarp();  // the tile is refilled
  }
#pragma unroll
  for (int h = 0; h < 2; ++h) {
    PowerSum row = total[h];
#pragma unroll
    for (int step = 1; step < 4; step *= 2)
      row = merge(row, {__shfl_xor_sync(~0u, row.reference, step), __shfl_xor_sync(~0u, row.sum, step)});
    if (writes) partial[warp][h * kTileSamples + lane_sample()] = make_float2(row.reference, row.sum);
  }
  __syncthreads();
  const int row = threadIdx.x, i = block * kTileSamples + row % kTileSamples;
  if (row >= kTileRows || i >= p.n) return;
  PowerSum sum{-INFINITY, 0.f};
  for (int w = 0; w < kWarps; ++w) sum = merge(sum, {partial[w][row].x, partial[w][row].y});
  const float margin = sum.reference - positive[row % kTileSamples] + log2f(sum.sum);
  losses[row / kTileSamples * p.n + i] = ntxent_loss(margin * kLn2);
}

// Counts the thread blocks of a launch in memory that nobody sets to zero: from a tag on, which no array of floats
// holds (each half is a NaN, and none that arithmetic gives), other ones by chance alone. Anything else counts as none.
constexpr unsigned long long kTicketTag = 0xFFE5C0DAFFE5C000ull;

// Whether this is the last of `count` calls. The ticket is left without a tag, so that a launch may be replayed.
__device__ __forceinline__ bool is_last_ticket(unsigned long long* ticket, unsigned count) {
  unsigned long long seen = 0, before;
  bool last;
  do {
    before = seen;
    const unsigned long long calls = before - kTicketTag < count ? before - kTicketTag + 1 : 1;
    last = calls == count;
    seen = atomicCAS(ticket, before, last ? 0 : kTicketTag + calls);
  } while (seen != before);
  return last;
}

struct SmallGradient {
  const float* losses;         // [2 n]
  const float* grad;           // [2 n], of the losses
  Matrix to;                   // [2 n, dim]
  float* scale_partial;        // [blocks]
  unsigned long long* ticket;  // as it comes
  float* grad_scale;
};

template <class P>
using SmallSums = float[kSmallPanels][1][P::kPanel / 8][4];

// Calls visit(values, row, d) for each two neighbours of a thread's sums: row `row` of the tile, dimensions d and d
// + 1.
template <class P, class Visit>
__device__ __forceinline__ void for_each_sum(SmallSums<P>& sums, int panels, Visit visit) {
#pragma unroll
  for (int panel = 0; panel < kSmallPanels; ++panel)
    if (panel < panels)
#pragma unroll
      for (int n = 0; n < P::kPanel / 8; ++n)
#pragma unroll
        for (int h = 0; h < 2; ++h)
          visit(&sums[panel][0][n][2 * h], h * kTileSamples + lane_sample(), panel * P::kPanel + 8 * n + col_sample(0));
}

template <class P>
__global__ void __launch_bounds__(kSmallThreads<P>) ntxent_small_backward(SmallBatch p, SmallGradient out) {
  if constexpr (!runs_here<P>()) return;
  constexpr int kWarps = kSmallWarps<P>, kThreads = kSmallThreads<P>;
  FASTCL_DYNAMIC_SHARED(shared);
  FASTCL_SHARED(RowTerm, row_terms, [kTileRows]);
  FASTCL_SHARED(float, norm, [kTileRows]);
  FASTCL_SHARED(float, positive, [kTileSamples]);
  FASTCL_SHARED(float, pull, [kTileSamples]);
  FASTCL_SHARED(RowTerm, col_terms, [kWarps][kTileRows]);
  const int warp = threadIdx.x / 32, block = blockIdx.x;
  const bool writes = lane_id() % 4 == 0;
  const auto terms_of = [&](const UnitPair& pair, int tile) {
    const int i = tile * kTileSamples + lane_sample();
    return i < p.n ? pair_terms(pair, *p.scale, out.losses, out.grad, p.n, i) : PairTerms{};
  };
  float magnitude = 1.f;
  if constexpr (P::kNarrowRange)
    magnitude = float16_magnitude(fabsf(*p.scale) * block_max<kThreads>(out.grad, 2 * p.n));
  if (warp == 0) {
    const UnitPair pair = load_tile(p, block, shared);
    const PairTerms terms = terms_of(pair, block);
    if (writes) {
#pragma unroll
      for (int view = 0; view < 2; ++view) {
        row_terms[view * kTileSamples + lane_sample()] = terms.row[view];
        norm[view * kTileSamples + lane_sample()] = pair.norm[view];
      }
      positive[lane_sample()] = pair.positive;
      pull[lane_sample()] = terms.pull;
    }
  }
  __syncthreads();
  SmallSums<P> sums;
  for_each_sum<P>(sums, kSmallPanels, [](float* sum, int, int) { sum[0] = sum[1] = 0.f; });
  const float scale = *p.scale * kLog2E;
  const bool live = block * kTileSamples + lane_sample() < p.n;
  float along = 0.f;  // the sum of G_ij x_ij
  unsigned char* const cols = shared + (1 + warp) * p.panels * kTilePanelBytes;
#pragma unroll 1
  for (int tile = warp; tile < p.tiles(); tile += kWarps) {
    const UnitPair pair = load_tile(p, tile, cols);
    const PairTerms terms = terms_of(pair, tile);
    if (writes) {
      col_terms[warp][lane_sample()] = terms.row[0];
      col_terms[warp][kTileSamples + lane_sample()] = terms.row[1];
    }
    __syncwarp();
    float x[1][2][4];
    multiply_rows<P>(p, shared, cols, x);
#pragma unroll
    for (int n = 0; n < 2; ++n)
#pragma unroll
      for (int odd = 0; odd < 2; ++odd) {
        const int j = col_sample(odd);
        const RowTerm col = col_terms[warp][n * kTileSamples + j];
        const bool kept = live && tile * kTileSamples + j < p.n && !(tile == block && j == lane_sample());
#pragma unroll
        for (int h = 0; h < 2; ++h) {
          const RowTerm row = row_terms[h * kTileSamples + lane_sample()];
          float& value = x[0][n][2 * h + odd];
          const float logit = value * (scale * row.factor * col.factor);
          const float g = kept ? fmaf(row.weight, cuda::exp2_approx(logit - row.log2_sum),
                                      col.weight * cuda::exp2_approx(logit - col.log2_sum))
                               : 0.f;
          along = fmaf(g, logit, along);
          value = g * (col.factor * magnitude);
        }
      }
    const typename P::template Gradient<1, 2> g(x);
#pragma unroll
    for (int panel = 0; panel < kSmallPanels; ++panel)
      if (panel < p.panels) P::template accumulate<1, 2>(sums[panel], g, cols + panel * kTilePanelBytes);
    __syncwarp();  // the tile is refilled
  }

  // The second half of the warps hands its sums to the first, and so on.
  const int stride = p.dims() + 8;  // rows of a fragment in different banks
  float* const handed = reinterpret_cast<float*>(shared);
  const auto at = [&](int giver, int row, int d) {
    return reinterpret_cast<float2*>(handed + (giver * kTileRows + row) * stride + d);
  };
  __syncthreads();  // all have left the tiles
#pragma unroll 1
  for (int half = kWarps / 2; half; half /= 2) {
    if (warp >= half && warp < 2 * half)
      for_each_sum<P>(sums, p.panels,
                      [&](float* sum, int row, int d) { *at(warp - half, row, d) = make_float2(sum[0], sum[1]); });
    __syncthreads();
    if (warp < half)
      for_each_sum<P>(sums, p.panels, [&](float* sum, int row, int d) {
        const float2 other = *at(warp, row, d);
        sum[0] += other.x, sum[1] += other.y;
      });
    __syncthreads();
  }
  if (warp == 0)
    for_each_sum<P>(sums, p.panels, [&](float* sum, int row, int d) { *at(0, row, d) = make_float2(sum[0], sum[1]); });
  __syncthreads();
  const float restore = 1.f / magnitude;
  for (int row = warp; row < kTileRows; row += kWarps) {
    const int slot = row % kTileSamples, view = row / kTileSamples, i = block * kTileSamples + slot;
    float* sum = handed + row * stride;
    const Matrix first = p.from[0], second = p.from[1];  // an array would be copied to be indexed
    if (i < p.n)
      finish_view(view ? second : first, view ? first : second, i, out.to, view * p.n + i, norm[row],
                  norm[(row + kTileSamples) % kTileRows], pull[slot], sum,
                  [&](int d) { return times(*reinterpret_cast<const float4*>(sum + d), restore); });
  }

  // The scale's gradient: as finish_scale in contrast_cuda.cu.
  if (threadIdx.x < kTileSamples) along = fmaf(2.f * pull[threadIdx.x], positive[threadIdx.x], along);
  along = block_sum<kThreads>(along);
  if (warp) return;
  bool last = false;
  if (lane_id() == 0) {
    out.scale_partial[block] = along;
    __threadfence();
    last = is_last_ticket(out.ticket, gridDim.x);
    __threadfence();
  }
  if (!__any_sync(~0u, last)) return;
  __syncwarp();
  float sum = 0.f;
  for (int b = lane_id(); b < p.tiles(); b += 32) sum += out.scale_partial[b];
  sum = warp_sum(sum);
  if (lane_id() == 0) *out.grad_scale = sum / (2.f * kLog2E * *p.scale * *p.scale);
}

}  // namespace fastcl

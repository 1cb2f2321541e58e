// Integer products of quantised rows and the weight on a GPU, and what follows them: scale, zero point, bias, outlier
// columns, activation. Tiles for many rows, and a form for up to 16, which is bound by the weight's bytes.
#pragma once

#include <cstdint>

#include "common/cuda/matrix.h"
#include "common/cuda/ptx.h"
#include "common/cuda/warp.h"
#include "int8_linear/int8_linear_cuda_rows.h"
#include "int8_linear/int8_linear_math.h"

namespace fastcl {

struct Int8Product {
  const int8_t* a;  // [rows, stride], planes of rows as QuantizedRows has them
  const int8_t* b;  // [n, stride], the weight
  int rows, stride;
  int m, n;
  int row_tiles;  // of the output
  Int8Mode mode;
  const float* row_scale;     // [m]
  const int* offset;          // [m], null: 0
  const float* weight_scale;  // [n]
  const float* bias;          // [n], null: none
  int outliers;
  const float* outlier_x;       // [m, outliers]
  const float* outlier_weight;  // [outliers, n]
  Activation activation;
  Matrix y;
};

// ---- from sums to outputs ----

// What outputs n to n + 3 have in common.
struct FourColumns {
  float scale[4], bias[4];
  int sum[4];  // of the weight's row, where rows have offsets

  __device__ __forceinline__ FourColumns(const Int8Product& p, int n, int4 sums) : sum{sums.x, sums.y, sums.z, sums.w} {
#pragma unroll
    for (int e = 0; e < 4; ++e) {
      const bool inside = n + e < p.n;
      scale[e] = inside ? p.weight_scale[n + e] : 0.f;
      bias[e] = inside && p.bias ? p.bias[n + e] : 0.f;
    }
  }
};

// y[m, n .. n + 3] from the sums of the first plane and, in kInt16, of the second.
__device__ __forceinline__ void store_outputs(const Int8Product& p, const FourColumns& columns, int m, int n,
                                              const int4& first, const int4& second) {
  const int a[4] = {first.x, first.y, first.z, first.w}, b[4] = {second.x, second.y, second.z, second.w};
  const float row_scale = p.row_scale[m];
  const int offset = p.offset ? p.offset[m] : 0;
  float v[4];
#pragma unroll
  for (int e = 0; e < 4; ++e) {
    const float sum = p.mode == Int8Mode::kInt16 ? int16_sum(a[e], b[e] + 128 * columns.sum[e])
                                                 : static_cast<float>(a[e] + offset * columns.sum[e]);
    v[e] = dequantize(sum, row_scale, columns.scale[e], columns.bias[e]);
  }
  for (int j = 0; j < p.outliers; ++j) {
    const float x = p.outlier_x[int64_t(m) * p.outliers + j];
    const float* weight = p.outlier_weight + int64_t(j) * p.n + n;
#pragma unroll
    for (int e = 0; e < 4; ++e)
      if (n + e < p.n) v[e] = fmaf(x, weight[e], v[e]);
  }
  activate<true>(v, 4, p.activation);
  p.y.store(m, n, make_float4(v[0], v[1], v[2], v[3]));
}

// ---- tiles ----

constexpr int kInt8Threads = 128;  // four warps, two by two
constexpr int kInt8StepBytes = 64, kInt8Stages = 3;

// Eight rows of four 16-byte chunks that ldmatrix asks for at once lie in different banks.
__device__ __forceinline__ int int8_chunk_at(int row, int chunk) {
  return row * kInt8StepBytes + ((chunk ^ ((row >> 1) & 3)) << 4);
}

// A warp's share: kRowFragments * 16 rows of both planes, kColFragments * 8 outputs.
template <int kRowFragments, int kColFragments>
struct Int8Tile {
  static constexpr int kRows = 2 * 16 * kRowFragments, kCols = 2 * 8 * kColFragments;
  static constexpr int kStageBytes = (kRows + kCols) * kInt8StepBytes, kSharedBytes = kInt8Stages * kStageBytes;
  // For the outputs, of each warp: sums of the weight's rows, and 32 rows of sums, so apart that eight of them, 8 bytes
  // by four lanes each, take all banks.
  static constexpr int kWarpCols = 8 * kColFragments, kSumStride = kWarpCols + 8,
                       kWarpInts = kWarpCols + 32 * kSumStride;
  static_assert(4 * kWarpInts * 4 <= kSharedBytes && kRowFragments % 2 == 0);
};

// kOffsets: rows have offsets, or a second plane, so that the sums of the weight's rows are needed.
template <int kRowFragments, int kColFragments, bool kOffsets>
__global__ void __launch_bounds__(kInt8Threads, 2) int8_tiles(Int8Product p) {
  using Tile = Int8Tile<kRowFragments, kColFragments>;
  FASTCL_DYNAMIC_SHARED(shared);
  const int lane = lane_id(), warp = threadIdx.x / 32;
  const int warp_row = warp % 2 * (16 * kRowFragments), warp_col = warp / 2 * Tile::kWarpCols;
  const int row0 = blockIdx.x % p.row_tiles * Tile::kRows, col0 = blockIdx.x / p.row_tiles * Tile::kCols;

  const int own_row = threadIdx.x / 4, own_chunk = threadIdx.x % 4;
  constexpr int kApart = kInt8Threads / 4;  // rows between those that a thread copies
  const auto copy = [&](const int8_t* from, int first, int count, int rows, int step, unsigned char* to) {
    const int byte = step * kInt8StepBytes + own_chunk * 16;
    const int8_t* source = from + int64_t(first + own_row) * p.stride + byte;
#pragma unroll
    for (int i = 0; i < rows / kApart; ++i) {
      const bool inside = first + own_row + i * kApart < count && byte < p.stride;
      cuda::cp_async_16(to + int8_chunk_at(own_row + i * kApart, own_chunk),
                        inside ? source + int64_t(i) * kApart * p.stride : from, inside ? 16 : 0);
    }
  };
  const auto load = [&](int step) {
    unsigned char* stage = shared + step % kInt8Stages * Tile::kStageBytes;
    copy(p.a, row0, p.rows, Tile::kRows, step, stage);
    copy(p.b, col0, p.n, Tile::kCols, step, stage + Tile::kRows * kInt8StepBytes);
  };

  int sum[kRowFragments][kColFragments][4] = {};
  int weight_sum[kColFragments] = {};
  const int steps = (p.stride + kInt8StepBytes - 1) / kInt8StepBytes;
#pragma unroll
  for (int step = 0; step < kInt8Stages - 1; ++step) {
    if (step < steps) load(step);
    cuda::cp_async_commit();
  }
#pragma unroll 1
  for (int step = 0; step < steps; ++step) {
    cuda::cp_async_wait<kInt8Stages - 2>();
    __syncthreads();
    if (step + kInt8Stages - 1 < steps) load(step + kInt8Stages - 1);
    cuda::cp_async_commit();
    const unsigned char* rows = shared + step % kInt8Stages * Tile::kStageBytes;
    const unsigned char* cols = rows + Tile::kRows * kInt8StepBytes;
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      unsigned a[kRowFragments][4], b[kColFragments / 2][4];
#pragma unroll
      for (int i = 0; i < kRowFragments; ++i)
        cuda::ldmatrix_x4(a[i], rows + int8_chunk_at(warp_row + i * 16 + lane % 16, half * 2 + lane / 16));
#pragma unroll
      for (int j = 0; j < kColFragments / 2; ++j)
        cuda::ldmatrix_x4(b[j],
                          cols + int8_chunk_at(warp_col + j * 16 + lane % 8 + lane / 16 * 8, half * 2 + lane / 8 % 2));
#pragma unroll
      for (int j = 0; j < kColFragments; ++j) {
        const unsigned b0 = b[j / 2][j % 2 * 2], b1 = b[j / 2][j % 2 * 2 + 1];
#pragma unroll
        for (int i = 0; i < kRowFragments; ++i) cuda::mma_m16n8k32_s8(sum[i][j], a[i], b0, b1);
        if constexpr (kOffsets)
          weight_sum[j] =
              __dp4a(static_cast<int>(b0), 0x01010101, __dp4a(static_cast<int>(b1), 0x01010101, weight_sum[j]));
      }
    }
  }
  __syncthreads();  // what follows writes where the others may still read

  int* const sums_of_cols = reinterpret_cast<int*>(shared) + warp * Tile::kWarpInts;
  int* const staged = sums_of_cols + Tile::kWarpCols;
  if constexpr (kOffsets) {
#pragma unroll
    for (int j = 0; j < kColFragments; ++j) {
      const int all = warp_sum<4>(weight_sum[j]);
      if (lane % 4 == 0) sums_of_cols[j * 8 + lane / 4] = all;
    }
    __syncwarp();
  }
  constexpr int kLanesOfRow = Tile::kWarpCols / 4, kRowsAtOnce = 32 / kLanesOfRow;
  const int own_col = lane % kLanesOfRow * 4, n = col0 + warp_col + own_col;
  const int4 no_sums = make_int4(0, 0, 0, 0);
  const FourColumns columns(p, n, kOffsets ? *reinterpret_cast<const int4*>(sums_of_cols + own_col) : no_sums);
  const bool two_planes = kOffsets && p.mode == Int8Mode::kInt16;
  const int rows_of_pass = two_planes ? 16 : 32;
#pragma unroll
  for (int pass = 0; pass < kRowFragments / 2; ++pass) {
#pragma unroll
    for (int i = 0; i < 2; ++i)
#pragma unroll
      for (int j = 0; j < kColFragments; ++j)
#pragma unroll
        for (int h = 0; h < 2; ++h)
          *reinterpret_cast<int2*>(staged + (i * 16 + lane / 4 + 8 * h) * Tile::kSumStride + j * 8 + lane % 4 * 2) =
              make_int2(sum[pass * 2 + i][j][2 * h], sum[pass * 2 + i][j][2 * h + 1]);
    __syncwarp();
    const int first = row0 + warp_row + pass * 32, m0 = two_planes ? first / 2 : first;
    const int end = n < p.n ? min(rows_of_pass, p.m - m0) : 0;
#pragma unroll 1
    for (int row = lane / kLanesOfRow; row < end; row += kRowsAtOnce) {
      const int* sums = staged + int8_plane_row(p.mode, row) * Tile::kSumStride + own_col;
      store_outputs(p, columns, m0 + row, n, *reinterpret_cast<const int4*>(sums),
                    *reinterpret_cast<const int4*>(two_planes ? sums + 8 * Tile::kSumStride : sums));
    }
    __syncwarp();
  }
}

// ---- up to 16 rows ----

constexpr int kFewRows = 16, kFewCols = 16, kFewThreads = 256;  // of planes, of outputs of a block

// Eight warps share out the depth; operands go straight from memory to mma. Within 64 values of k any order will do
// that is the same for both: lane 4 i + j takes values 16 j to 16 j + 15 of rows i and i + 8, four of them for each
// register.
template <bool kOffsets>
__global__ void __launch_bounds__(kFewThreads, 4) int8_few_rows(Int8Product p) {
  constexpr int kWarps = kFewThreads / 32, kBatch = 2, kStride = kFewCols + 8;
  FASTCL_SHARED(int, partial, [kWarps][kFewRows][kStride]);
  FASTCL_SHARED(int, partial_weight_sum, [kWarps][kFewCols]);
  const int lane = lane_id(), warp = threadIdx.x / 32, group = lane / 4, quad = lane % 4;
  const int col0 = blockIdx.x * kFewCols;

  // Rows beyond the last one give outputs that nobody stores: they may be any.
  const auto row_of = [&](const int8_t* from, int row, int count) {
    return from + int64_t(min(row, count - 1)) * p.stride;
  };
  const int8_t* const a_rows[2] = {row_of(p.a, group, p.rows), row_of(p.a, group + 8, p.rows)};
  const int8_t* const b_rows[2] = {row_of(p.b, col0 + group, p.n), row_of(p.b, col0 + group + 8, p.n)};
  int sum[2][4] = {}, weight_sum[2] = {};
#pragma unroll 1
  for (int first = warp * 64 + quad * 16; first - quad * 16 < p.stride; first += kBatch * kWarps * 64) {
    uint4 a[kBatch][2], b[kBatch][2];  // all loads first, unconditional: they are what takes the time
#pragma unroll
    for (int i = 0; i < kBatch; ++i) {
      const int k = first + i * kWarps * 64, at = k < p.stride ? k : 0;
#pragma unroll
      for (int h = 0; h < 2; ++h) {
        b[i][h] = *reinterpret_cast<const uint4*>(b_rows[h] + at);
        a[i][h] = *reinterpret_cast<const uint4*>(a_rows[h] + at);
      }
    }
    __syncwarp();  // ptxas would put off half of the loads until the first have come
#pragma unroll
    for (int i = 0; i < kBatch; ++i) {
      const bool inside = first + i * kWarps * 64 < p.stride;
      if (!inside) a[i][0] = a[i][1] = make_uint4(0, 0, 0, 0);
      const int ones = inside ? 0x01010101 : 0;
      const unsigned low[4] = {a[i][0].x, a[i][1].x, a[i][0].y, a[i][1].y};
      const unsigned high[4] = {a[i][0].z, a[i][1].z, a[i][0].w, a[i][1].w};
#pragma unroll
      for (int h = 0; h < 2; ++h) {
        const uint4 w = b[i][h];
        cuda::mma_m16n8k32_s8(sum[h], low, w.x, w.y);
        cuda::mma_m16n8k32_s8(sum[h], high, w.z, w.w);
        if constexpr (kOffsets)
          for (const unsigned four : {w.x, w.y, w.z, w.w})
            weight_sum[h] = __dp4a(static_cast<int>(four), ones, weight_sum[h]);
      }
    }
  }
#pragma unroll
  for (int h = 0; h < 2; ++h) {
    for (int e = 0; e < 4; e += 2)
      *reinterpret_cast<int2*>(&partial[warp][group + 4 * e][8 * h + 2 * quad]) = make_int2(sum[h][e], sum[h][e + 1]);
    if constexpr (kOffsets) {
      const int all = warp_sum<4>(weight_sum[h]);
      if (quad == 0) partial_weight_sum[warp][8 * h + group] = all;
    }
  }
  __syncthreads();

  constexpr int kFours = kFewCols / 4;
  const int m = threadIdx.x / kFours, own_col = threadIdx.x % kFours * 4, n = col0 + own_col;
  if (m >= p.m || n >= p.n) return;
  const int row = int8_plane_row(p.mode, m), second_row = p.mode == Int8Mode::kInt16 ? row + 8 : row;
  int4 first = make_int4(0, 0, 0, 0), second = first, weight_sums = first;
  const auto add = [](int4& sum, const int* four) {
    const int4 v = *reinterpret_cast<const int4*>(four);
    sum = make_int4(sum.x + v.x, sum.y + v.y, sum.z + v.z, sum.w + v.w);
  };
#pragma unroll 2
  for (int w = 0; w < kWarps; ++w) {
    add(first, &partial[w][row][own_col]);
    if constexpr (kOffsets) {
      add(second, &partial[w][second_row][own_col]);
      add(weight_sums, &partial_weight_sum[w][own_col]);
    }
  }
  store_outputs(p, FourColumns(p, n, weight_sums), m, n, first, second);
}

}  // namespace fastcl

// Rows of activations on a GPU, quantised; and the weight where its rows have to be laid out anew.
#pragma once

#include <cstdint>
#include <limits>

#include "common/cuda/matrix.h"
#include "common/cuda/warp.h"
#include "int8_linear/int8_linear_math.h"

namespace fastcl {

constexpr int kRowsThreads = 256;

// What a row is stored as: int8 values `stored`, a few planes of them, with
//   kDynamic               q = stored
//   kAsymmetric, kStatic   q = stored + offset, offset = 128 - zero
//   kInt16                 q = 256 high + low + 128: planes of q >> 8 and of (q & 255) - 128
// Both planes of kInt16 meet in one thread of mma.m16n8: rows 8 g to 8 g + 7 of the first stand at 16 g, of the second
// at 16 g + 8.
struct QuantizedRows {
  int8_t* values;    // [planes * m, to a multiple of 16 in kInt16][stride]
  int stride;        // k, to a multiple of 16; what is added is multiplied by zeros
  float* scale;      // [m]
  int* offset;       // [m] in kAsymmetric and kStatic, else null
  float* outlier_x;  // [m, outliers]
};

FASTCL_HD inline int int8_plane_row(Int8Mode mode, int m) { return mode == Int8Mode::kInt16 ? m + (m & ~7) : m; }

// ---- where a row comes from ----

struct RowsAsTheyStand {
  static constexpr int kUnroll = 2;  // of the loops over a row
  Matrix x;

  struct Row {
    const Matrix& x;
    int m;
    __device__ __forceinline__ float4 four(int k) const { return x.load(m, k); }
    __device__ __forceinline__ float one(int k) const { return x.element(m, k); }
  };
  __device__ __forceinline__ Row row(int m) const { return {x, m}; }
};

// int8_conv2d.h's patches.
struct RowsOfPatches {
  static constexpr int kUnroll = 1;
  Matrix pixels;  // [batch * height * width, channels]
  int k;
  int height, width, channels, out_height, out_width, kernel_width, stride_y, stride_x, dilation_y, dilation_x, pad_top,
      pad_left;

  struct Row {
    const RowsOfPatches& p;
    int64_t image;  // its first pixel
    int top, left;

    // The pixel under a point of the kernel, -1 in the padding.
    __device__ __forceinline__ int64_t pixel(int point) const {
      const int y = top + point / p.kernel_width * p.dilation_y, x = left + point % p.kernel_width * p.dilation_x;
      return y < 0 || y >= p.height || x < 0 || x >= p.width ? -1 : image + int64_t(y) * p.width + x;
    }
    __device__ __forceinline__ float one(int k) const {
      const int64_t at = pixel(k / p.channels);
      return at < 0 ? 0.f : p.pixels.element(at, k % p.channels);
    }
    __device__ __forceinline__ float4 four(int k) const {
      if (p.pixels.by_four) {
        const int64_t at = k < p.k ? pixel(k / p.channels) : -1;
        return at < 0 ? make_float4(0.f, 0.f, 0.f, 0.f) : p.pixels.load(at, k % p.channels);
      }
      float v[4];
#pragma unroll
      for (int e = 0; e < 4; ++e) v[e] = k + e < p.k ? one(k + e) : 0.f;
      return make_float4(v[0], v[1], v[2], v[3]);
    }
  };
  __device__ __forceinline__ Row row(int m) const {
    const int x = m % out_width, y = m / out_width % out_height, image = m / out_width / out_height;
    return {*this, int64_t(image) * height * width, y * stride_y - pad_top, x * stride_x - pad_left};
  }
};

template <class Rows>
struct QuantizeRows {
  Rows from;
  int m, k;
  Int8Mode mode;
  const float* x_range;
  Matrix x_multiplier;  // one row; of no data: ones
  int outliers;
  const int64_t* outlier_columns;
  QuantizedRows to;
  bool block_for_row;  // else a warp
  int row_blocks;      // thread blocks; those after them copy the weight
  const int8_t* weight;
  int8_t* padded_weight;  // [n, to.stride]
  int n;
};

// ---- quantising ----

// What decides the scale of a row; the patterns of row_scale and row_scale_of_range.
struct RowBits {
  unsigned absmax, greatest_unsigned;
  int greatest_signed;

  __device__ __forceinline__ void add(float v) {
    const unsigned bits = float_to_bits(v);
    absmax = max(absmax, bits & 0x7fffffffu);
    greatest_unsigned = max(greatest_unsigned, bits);
    greatest_signed = max(greatest_signed, static_cast<int>(bits));
  }
  __device__ __forceinline__ void add(const RowBits& other) {
    absmax = max(absmax, other.absmax);
    greatest_unsigned = max(greatest_unsigned, other.greatest_unsigned);
    greatest_signed = max(greatest_signed, other.greatest_signed);
  }
};

__device__ __forceinline__ RowScale row_scale_of(const RowBits& bits, Int8Mode mode, const float* x_range) {
  if (mode == Int8Mode::kDynamic) return row_scale(bits.absmax, 127.f);
  if (mode == Int8Mode::kInt16) return row_scale(bits.absmax, 32767.f);
  if (mode == Int8Mode::kAsymmetric) return row_scale_of_range(bits.greatest_signed, bits.greatest_unsigned);
  const float scale = x_range[0], zero = x_range[1];
  const bool possible = scale >= 0x1p-100f && scale <= 0x1p100f && zero >= 0.f && zero <= 255.f && zero == floorf(zero);
  return possible ? row_scale_static(bits.absmax, scale, static_cast<int>(zero))
                  : RowScale{std::numeric_limits<float>::quiet_NaN(), 0.f, 0};
}

__device__ __forceinline__ unsigned pack_bytes(const int (&v)[4]) {
  return (v[0] & 255u) | (v[1] & 255u) << 8 | (v[2] & 255u) << 16 | (v[3] & 255u) << 24;
}

// Rows of the weight, to multiples of 16 bytes.
template <class Rows>
__device__ __forceinline__ void pad_weight(const QuantizeRows<Rows>& p) {
  const int block = blockIdx.x - p.row_blocks, blocks = gridDim.x - p.row_blocks;
  for (int n = block * (kRowsThreads / 32) + threadIdx.x / 32; n < p.n; n += blocks * (kRowsThreads / 32)) {
    const int8_t* from = p.weight + int64_t(n) * p.k;
    int8_t* to = p.padded_weight + int64_t(n) * p.to.stride;
    for (int k = 4 * lane_id(); k < p.to.stride; k += 128) {
      int v[4];
#pragma unroll
      for (int e = 0; e < 4; ++e) v[e] = k + e < p.k ? from[k + e] : 0;
      *reinterpret_cast<unsigned*>(to + k) = pack_bytes(v);
    }
  }
}

template <class Rows>
__global__ void __launch_bounds__(kRowsThreads, 4) quantize_rows(QuantizeRows<Rows> p) {
  constexpr int kWarps = kRowsThreads / 32;
  FASTCL_SHARED(RowBits, of_warp, [kWarps]);
  if (static_cast<int>(blockIdx.x) >= p.row_blocks) return pad_weight(p);
  const int warp = threadIdx.x / 32;
  const int lanes = p.block_for_row ? kRowsThreads : 32, lane = p.block_for_row ? threadIdx.x : lane_id();
  const int m = p.block_for_row ? blockIdx.x : blockIdx.x * kWarps + warp;
  if (m >= p.m) return;  // a whole warp; of a block of one row never
  const typename Rows::Row row = p.from.row(m);
  const auto four = [&](int k, float (&v)[4]) {
    const float4 x = row.four(k);
    v[0] = x.x, v[1] = x.y, v[2] = x.z, v[3] = x.w;
    if (!p.x_multiplier.data) return;
    const float4 f = p.x_multiplier.load(0, k);
    v[0] *= f.x, v[1] *= f.y, v[2] *= f.z, v[3] *= f.w;
  };

  RowBits bits{0, 0, std::numeric_limits<int>::min()};
#pragma unroll Rows::kUnroll
  for (int k = 4 * lane; k < p.k; k += 4 * lanes) {
    float v[4];
    four(k, v);
#pragma unroll
    for (int e = 0; e < 4; ++e) bits.add(v[e]);  // those beyond the row are zeros, which change no scale
  }
  bits = {warp_max(bits.absmax), warp_max(bits.greatest_unsigned), warp_max(bits.greatest_signed)};
  if (p.block_for_row) {
    if (lane_id() == 0) of_warp[warp] = bits;
    __syncthreads();
#pragma unroll
    for (int other = 0; other < kWarps; ++other) bits.add(of_warp[other]);
  }
  const RowScale scale = row_scale_of(bits, p.mode, p.x_range);
  const ValueRange range = value_range(scale, p.mode);
  if (lane == 0) {
    p.to.scale[m] = scale.scale;
    if (p.to.offset) p.to.offset[m] = 128 - scale.zero;
  }

  int8_t* out = p.to.values + int64_t(int8_plane_row(p.mode, m)) * p.to.stride;
  const bool shifted = p.mode == Int8Mode::kAsymmetric || p.mode == Int8Mode::kStatic;
#pragma unroll Rows::kUnroll
  for (int k = 4 * lane; k < p.to.stride; k += 4 * lanes) {
    float v[4];
    int q[4];
    four(k, v);
#pragma unroll
    for (int e = 0; e < 4; ++e) {
      q[e] = scale.inverse == 0.f ? 0 : quantize_fused(fminf(fmaxf(v[e], range.low), range.high), scale.inverse);
      if (shifted) q[e] = min(max(q[e] + scale.zero, 0), 255) - 128;
    }
    if (p.mode == Int8Mode::kInt16) {
      const int high[4] = {q[0] >> 8, q[1] >> 8, q[2] >> 8, q[3] >> 8};
#pragma unroll
      for (int e = 0; e < 4; ++e) q[e] = (q[e] & 255) - 128;
      *reinterpret_cast<unsigned*>(out + k) = pack_bytes(high);
      *reinterpret_cast<unsigned*>(out + int64_t(8) * p.to.stride + k) = pack_bytes(q);
    } else {
      *reinterpret_cast<unsigned*>(out + k) = pack_bytes(q);
    }
  }
  for (int j = lane; j < p.outliers; j += lanes) {
    const int64_t k = p.outlier_columns[j];
    p.to.outlier_x[int64_t(m) * p.outliers + j] =
        k >= 0 && k < p.k ? row.one(static_cast<int>(k)) : std::numeric_limits<float>::quiet_NaN();
  }
}

}  // namespace fastcl

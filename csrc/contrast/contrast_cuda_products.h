// Products of tiles on a GPU: how each type is multiplied by one warp, behind one interface.
//
// Operands lie in shared memory as panels: rows of 128 bytes, whose eight 16-byte chunks are permuted by the row
// number, so that eight rows' chunks of one number lie in different banks. Accumulators have the layout of mma.m16n8
// whatever multiplies: with group = lane / 4 and pair = lane % 4, element e of a 16 x 8 fragment is row group + 8 (e /
// 2), column 2 pair + e % 2.
//
//   multiply<kRowFragments, kColFragments>   s += A B^T over the depth of a panel; A and B are panels of rows
//   accumulate<...>                          out += G B over the rows of a panel; G is fragments of s
#pragma once

#include "common/cuda/ptx.h"
#include "common/cuda/warp.h"

namespace fastcl {

constexpr int kPanelBytes = 128;  // of one row

__device__ __forceinline__ const unsigned char* chunk_at(const unsigned char* panel, int row, int chunk) {
  return panel + row * kPanelBytes + ((chunk ^ (row & 7)) << 4);
}
__device__ __forceinline__ unsigned char* chunk_at(unsigned char* panel, int row, int chunk) {
  return panel + row * kPanelBytes + ((chunk ^ (row & 7)) << 4);
}

// The four 8-row, 16-byte matrices of 16 rows and 2 chunks, in the order of mma's A: (0, 0), (8, 0), (0, 1), (8, 1).
__device__ __forceinline__ void load_a(unsigned (&a)[4], const unsigned char* panel, int row, int chunk) {
  cuda::ldmatrix_x4(a, chunk_at(panel, row + (lane_id() & 15), chunk + (lane_id() >> 4)));
}

// The same of 16 columns, that is rows of B, in the order of two mmas' B: (0, 0), (0, 1), (8, 0), (8, 1).
__device__ __forceinline__ void load_b(unsigned (&b)[2][2], const unsigned char* panel, int row, int chunk) {
  const int lane = lane_id();
  unsigned r[4];
  cuda::ldmatrix_x4(r, chunk_at(panel, row + (lane & 7) + ((lane >> 4) << 3), chunk + ((lane >> 3) & 1)));
  b[0][0] = r[0], b[0][1] = r[1], b[1][0] = r[2], b[1][1] = r[3];
}

struct BFloat16Values {
  static __device__ __forceinline__ void mma(float (&d)[4], const unsigned (&a)[4], const unsigned (&b)[2]) {
    cuda::mma_m16n8k16_bf16(d, a, b[0], b[1]);
  }
  static __device__ __forceinline__ unsigned pack(float low, float high) {
    const __nv_bfloat162 pair = __floats2bfloat162_rn(low, high);
    return *reinterpret_cast<const unsigned*>(&pair);
  }
  static constexpr bool kNarrowRange = false;
};

struct Float16Values {
  static __device__ __forceinline__ void mma(float (&d)[4], const unsigned (&a)[4], const unsigned (&b)[2]) {
    cuda::mma_m16n8k16_f16(d, a, b[0], b[1]);
  }
  static __device__ __forceinline__ unsigned pack(float low, float high) {
    const __half2 pair = __floats2half2_rn(low, high);
    return *reinterpret_cast<const unsigned*>(&pair);
  }
  static constexpr bool kNarrowRange = true;
};

template <class Values>
struct HalfProducts {
  static constexpr int kElementBytes = 2;
  static constexpr int kPanel = kPanelBytes / kElementBytes;  // elements
  static constexpr bool kNarrowRange = Values::kNarrowRange;  // the gradient's fragments need a scale of their own
  static constexpr bool kTensorCores = true;
  static constexpr int kStages = 3;
  static constexpr int kResidentPanels = 4;  // rows up to this long stay in shared memory, longer ones stream
  static constexpr int kGradientPanels =
      2;                                    // of the gradient that one thread block forms: its sums take most registers
  static constexpr int kBackwardCols = 32;  // of a tile of the gradient's pass

  template <int kRowFragments, int kColFragments>
  static __device__ __forceinline__ void multiply(float (&s)[kRowFragments][kColFragments][4], const unsigned char* a,
                                                  int a_row, const unsigned char* b) {
#pragma unroll
    for (int chunk = 0; chunk < 8; chunk += 2) {
      unsigned rows[kRowFragments][4];
#pragma unroll
      for (int m = 0; m < kRowFragments; ++m) load_a(rows[m], a, a_row + 16 * m, chunk);
#pragma unroll
      for (int n = 0; n < kColFragments; n += 2) {
        unsigned cols[2][2];
        load_b(cols, b, 8 * n, chunk);
#pragma unroll
        for (int m = 0; m < kRowFragments; ++m) {
          Values::mma(s[m][n], rows[m], cols[0]);
          Values::mma(s[m][n + 1], rows[m], cols[1]);
        }
      }
    }
  }

  // Fragments of s, rounded, as the A of a product over the columns.
  template <int kRowFragments, int kColFragments>
  struct Gradient {
    unsigned a[kRowFragments][kColFragments / 2][4];
    __device__ __forceinline__ explicit Gradient(const float (&g)[kRowFragments][kColFragments][4]) {
#pragma unroll
      for (int m = 0; m < kRowFragments; ++m)
#pragma unroll
        for (int k = 0; k < kColFragments / 2; ++k)
#pragma unroll
          for (int r = 0; r < 4; ++r) {
            const float (&from)[4] = g[m][2 * k + (r >> 1)];
            a[m][k][r] = Values::pack(from[2 * (r & 1)], from[2 * (r & 1) + 1]);
          }
    }
  };

  template <int kRowFragments, int kColFragments>
  static __device__ __forceinline__ void accumulate(float (&out)[kRowFragments][kPanel / 8][4],
                                                    const Gradient<kRowFragments, kColFragments>& g,
                                                    const unsigned char* b) {
    const int lane = lane_id();
#pragma unroll
    for (int k = 0; k < kColFragments / 2; ++k)
#pragma unroll
      for (int n = 0; n < kPanel / 8; n += 2) {
        unsigned r[4];
        cuda::ldmatrix_x4_trans(r, chunk_at(b, 16 * k + (lane & 15), n + (lane >> 4)));
        const unsigned low[2] = {r[0], r[1]}, high[2] = {r[2], r[3]};
#pragma unroll
        for (int m = 0; m < kRowFragments; ++m) {
          Values::mma(out[m][n], g.a[m][k], low);
          Values::mma(out[m][n + 1], g.a[m][k], high);
        }
      }
  }
};

// A float as the sum of kTerms TF32.
template <int kTerms>
struct Tf32 {
  unsigned term[kTerms];
  __device__ __forceinline__ explicit Tf32(float x) {
    term[0] = cuda::to_tf32(x);
    if constexpr (kTerms == 2) term[1] = cuda::to_tf32(x - __uint_as_float(term[0]));
  }
};

// kTerms = 1: one product of TF32. kTerms = 2: the three products that matter of (a0 + a1)(b0 + b1).
template <int kTerms>
struct Tf32Products {
  static constexpr int kElementBytes = 4;
  static constexpr int kPanel = kPanelBytes / kElementBytes;
  static constexpr bool kNarrowRange = false;
  static constexpr bool kTensorCores = true;
  static constexpr int kStages = 3;
  static constexpr int kResidentPanels = 4;
  static constexpr int kGradientPanels = 4;
  static constexpr int kBackwardCols = kTerms == 1 ? 32 : 16;

  template <int kFragments>
  struct Split {
    unsigned term[kTerms][kFragments];
    __device__ __forceinline__ explicit Split(const float (&values)[kFragments]) {
#pragma unroll
      for (int i = 0; i < kFragments; ++i) {
        const Tf32<kTerms> x(values[i]);
#pragma unroll
        for (int t = 0; t < kTerms; ++t) term[t][i] = x.term[t];
      }
    }
  };

  static __device__ __forceinline__ void mma(float (&d)[4], const Split<4>& a, const Split<2>& b) {
    if constexpr (kTerms == 2) {  // the small ones first
      cuda::mma_m16n8k8_tf32(d, a.term[1], b.term[0][0], b.term[0][1]);
      cuda::mma_m16n8k8_tf32(d, a.term[0], b.term[1][0], b.term[1][1]);
    }
    cuda::mma_m16n8k8_tf32(d, a.term[0], b.term[0][0], b.term[0][1]);
  }

  template <int kCount>
  static __device__ __forceinline__ Split<kCount> split_bits(const unsigned (&bits)[kCount]) {
    float values[kCount];
#pragma unroll
    for (int i = 0; i < kCount; ++i) values[i] = __uint_as_float(bits[i]);
    return Split<kCount>(values);
  }

  template <int kRowFragments, int kColFragments>
  static __device__ __forceinline__ void multiply(float (&s)[kRowFragments][kColFragments][4], const unsigned char* a,
                                                  int a_row, const unsigned char* b) {
#pragma unroll(kTerms == 1 ? 4 : 1)  // more at once takes more registers than there are
    for (int chunk = 0; chunk < 8; chunk += 2) {
      unsigned bits[kRowFragments][4];
#pragma unroll
      for (int m = 0; m < kRowFragments; ++m) load_a(bits[m], a, a_row + 16 * m, chunk);
#pragma unroll
      for (int n = 0; n < kColFragments; n += 2) {
        unsigned cols[2][2];
        load_b(cols, b, 8 * n, chunk);
        const Split<2> low = split_bits(cols[0]), high = split_bits(cols[1]);
#pragma unroll
        for (int m = 0; m < kRowFragments; ++m) {
          const Split<4> rows = split_bits(bits[m]);
          mma(s[m][n], rows, low);
          mma(s[m][n + 1], rows, high);
        }
      }
    }
  }

  template <int kRowFragments, int kColFragments>
  struct Gradient {
    const float (&g)[kRowFragments][kColFragments][4];
    __device__ __forceinline__ explicit Gradient(const float (&g)[kRowFragments][kColFragments][4]) : g(g) {}
  };

  // A sum over columns may take them in any order: k = pair and k = pair + 4 of the mma are the fragment's columns
  // 2 pair and 2 pair + 1, which this lane holds, and whose rows of B lie in different banks.
  template <int kRowFragments, int kColFragments>
  static __device__ __forceinline__ void accumulate(float (&out)[kRowFragments][kPanel / 8][4],
                                                    const Gradient<kRowFragments, kColFragments>& g,
                                                    const unsigned char* b) {
    const int group = lane_id() >> 2, pair = lane_id() & 3;
#pragma unroll
    for (int k = 0; k < kColFragments; ++k) {
#pragma unroll
      for (int n = 0; n < kPanel / 8; ++n) {
        float values[2];
#pragma unroll
        for (int i = 0; i < 2; ++i)
          values[i] =
              reinterpret_cast<const float*>(chunk_at(b, 8 * k + 2 * pair + i, 2 * n + (group >> 2)))[group & 3];
        const Split<2> cols(values);
#pragma unroll
        for (int m = 0; m < kRowFragments; ++m) {
          const float (&from)[4] = g.g[m][k];
          const float rows[4] = {from[0], from[2], from[1], from[3]};
          mma(out[m][n], Split<4>(rows), cols);
        }
      }
    }
  }
};

// float32 multiply-adds, for every architecture.
struct SimtProducts {
  static constexpr int kElementBytes = 4;
  static constexpr int kPanel = kPanelBytes / kElementBytes;
  static constexpr bool kNarrowRange = false;
  static constexpr bool kTensorCores = false;
  static constexpr int kStages = 2;
  static constexpr int kResidentPanels = 2;  // sm_75 has 64 KiB of shared memory
  static constexpr int kGradientPanels = 2;
  static constexpr int kBackwardCols = 32;

  static __device__ __forceinline__ float dot(float4 a, float4 b, float sum) {
    return fmaf(a.w, b.w, fmaf(a.z, b.z, fmaf(a.y, b.y, fmaf(a.x, b.x, sum))));
  }

  template <int kRowFragments, int kColFragments>
  static __device__ __forceinline__ void multiply(float (&s)[kRowFragments][kColFragments][4], const unsigned char* a,
                                                  int a_row, const unsigned char* b) {
    const int group = lane_id() >> 2, pair = lane_id() & 3;
#pragma unroll 1
    for (int chunk = 0; chunk < 8; ++chunk) {
      float4 rows[kRowFragments][2];
#pragma unroll
      for (int m = 0; m < kRowFragments; ++m)
#pragma unroll
        for (int h = 0; h < 2; ++h)
          rows[m][h] = *reinterpret_cast<const float4*>(chunk_at(a, a_row + 16 * m + 8 * h + group, chunk));
#pragma unroll
      for (int n = 0; n < kColFragments; ++n) {
        const float4 even = *reinterpret_cast<const float4*>(chunk_at(b, 8 * n + 2 * pair, chunk));
        const float4 odd = *reinterpret_cast<const float4*>(chunk_at(b, 8 * n + 2 * pair + 1, chunk));
#pragma unroll
        for (int m = 0; m < kRowFragments; ++m)
#pragma unroll
          for (int h = 0; h < 2; ++h) {
            s[m][n][2 * h] = dot(rows[m][h], even, s[m][n][2 * h]);
            s[m][n][2 * h + 1] = dot(rows[m][h], odd, s[m][n][2 * h + 1]);
          }
      }
    }
  }

  template <int kRowFragments, int kColFragments>
  struct Gradient {
    const float (&g)[kRowFragments][kColFragments][4];
    __device__ __forceinline__ explicit Gradient(const float (&g)[kRowFragments][kColFragments][4]) : g(g) {}
  };

  // Each value of G comes from the lane of the same rows that holds it.
  template <int kRowFragments, int kColFragments>
  static __device__ __forceinline__ void accumulate(float (&out)[kRowFragments][kPanel / 8][4],
                                                    const Gradient<kRowFragments, kColFragments>& g,
                                                    const unsigned char* b) {
    const int pair = lane_id() & 3;
#pragma unroll
    for (int k = 0; k < kColFragments; ++k)
#pragma unroll
      for (int col = 0; col < 8; ++col) {
        float2 cols[kPanel / 8];
#pragma unroll
        for (int n = 0; n < kPanel / 8; ++n)
          cols[n] = reinterpret_cast<const float2*>(chunk_at(b, 8 * k + col, 2 * n + (pair >> 1)))[pair & 1];
#pragma unroll
        for (int m = 0; m < kRowFragments; ++m)
#pragma unroll
          for (int h = 0; h < 2; ++h) {
            const float value = __shfl_sync(~0u, g.g[m][k][2 * h + (col & 1)], col >> 1, 4);
#pragma unroll
            for (int n = 0; n < kPanel / 8; ++n) {
              out[m][n][2 * h] = fmaf(value, cols[n].x, out[m][n][2 * h]);
              out[m][n][2 * h + 1] = fmaf(value, cols[n].y, out[m][n][2 * h + 1]);
            }
          }
      }
  }
};

}  // namespace fastcl

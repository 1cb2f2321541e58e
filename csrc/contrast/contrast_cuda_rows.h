// NT-Xent's arithmetic on the two views of a sample, four values at a time, which the launches around the tiles share
// with the path for small batches.
#pragma once

#include <cstddef>
#include <cstdint>

#include "common/cuda/matrix.h"
#include "contrast/contrast_cuda_tiles.h"
#include "ntxent/ntxent_math.h"

namespace fastcl {

constexpr float kEps = 1e-12f;  // torch.nn.functional.normalize's
// Sums of squares outside are formed again in double: those of float32 may have overflowed, or lost what is small.
constexpr float kLeastSquare = 1e-24f, kLargestSquare = 1e30f;

// ---- four values ----

__device__ __forceinline__ float4 times(float4 v, float factor) {
  return make_float4(v.x * factor, v.y * factor, v.z * factor, v.w * factor);
}
__device__ __forceinline__ float dot(float4 a, float4 b, float sum) {
  return fmaf(a.w, b.w, fmaf(a.z, b.z, fmaf(a.y, b.y, fmaf(a.x, b.x, sum))));
}
// a + b * factor
__device__ __forceinline__ float4 plus(float4 a, float4 b, float factor) {
  return make_float4(fmaf(b.x, factor, a.x), fmaf(b.y, factor, a.y), fmaf(b.z, factor, a.z), fmaf(b.w, factor, a.w));
}

// A row without a pair has nothing to weigh.
__device__ __forceinline__ RowTerm row_term(float factor, float weight, float log2_sum) {
  if (log2_sum == -INFINITY) return {factor, 0.f, 0.f, 0.f};
  return {factor, weight, log2_sum, weight * exp2f(-log2_sum)};
}

// ---- NT-Xent: both views of a sample ----

template <class Values>
__device__ __forceinline__ uint2 pack_four(float4 v) {
  return make_uint2(Values::pack(v.x, v.y), Values::pack(v.z, v.w));
}

__device__ __forceinline__ void store_four(unsigned char* to, FloatType element, float4 v) {
  if (element == FloatType::kFloat32)
    *reinterpret_cast<float4*>(to) = v;
  else
    *reinterpret_cast<uint2*>(to) =
        element == FloatType::kBFloat16 ? pack_four<BFloat16Values>(v) : pack_four<Float16Values>(v);
}

// The length of a row whose elements d to d + 3 are row(d). The whole warp calls; kLanes lanes share a row.
template <int kLanes, class Row>
__device__ __forceinline__ float row_norm(int dim, Row row) {
  const int begin = 4 * (lane_id() % kLanes), step = 4 * kLanes;
  float square = 0.f;
  for (int d = begin; d < dim; d += step) {
    const float4 v = row(d);
    square = dot(v, v, square);
  }
  square = warp_sum<kLanes>(square);
  const bool usual = square >= kLeastSquare && square <= kLargestSquare;
  if (__all_sync(~0u, usual)) return sqrtf(square);
  double sum = 0;
  for (int d = begin; d < dim; d += step) {
    const float4 v = row(d);
    sum += double(v.x) * v.x + double(v.y) * v.y + double(v.z) * v.z + double(v.w) * v.w;
  }
  sum = warp_sum<kLanes>(sum);
  return usual ? sqrtf(square) : static_cast<float>(sqrt(sum));
}

__device__ __forceinline__ float unit_factor(float norm) { return 1.f / (norm < kEps ? kEps : norm); }

struct UnitPair {
  float norm[2];
  float factor[2];  // a unit row is factor * stored row
  float positive;   // log2(e) * scaled similarity of the two views
};

// Calls store(view, d, values) with what is stored of both views of sample i, `dims` elements of each; of a sample that
// is not `live`, zeros. The whole warp calls; kLanes lanes share a sample.
template <int kLanes, class Store>
__device__ __forceinline__ UnitPair unit_pair(const Matrix (&from)[2], int i, bool live, FloatType element, int dims,
                                              float scale, Store store) {
  // 16-bit rows stay as they are, but for a power of two that keeps their products in range; the rest is the factor.
  const bool exact = element == from[0].type && element != FloatType::kFloat32;
  const auto row = [&](int view, int d) { return live ? from[view].load(i, d) : make_float4(0.f, 0.f, 0.f, 0.f); };
  UnitPair pair;
  float unit[2], stored[2];
#pragma unroll
  for (int view = 0; view < 2; ++view) {
    pair.norm[view] = row_norm<kLanes>(from[view].dim, [&](int d) { return row(view, d); });
    unit[view] = unit_factor(pair.norm[view]);
    stored[view] = unit[view];
    if (exact) stored[view] = exp2f(floorf(log2f(unit[view])));
    pair.factor[view] = exact && stored[view] > 0.f ? unit[view] / stored[view] : 1.f;
  }
  float cosine = 0.f;
  for (int d = 4 * (lane_id() % kLanes); d < dims; d += 4 * kLanes) {
    const float4 a = row(0, d), b = row(1, d);
    cosine = dot(times(a, unit[0]), times(b, unit[1]), cosine);
    store(0, d, times(a, stored[0]));
    store(1, d, times(b, stored[1]));
  }
  pair.positive = scale * kLog2E * warp_sum<kLanes>(cosine);
  return pair;
}

struct PairTerms {
  RowTerm row[2];
  float pull;  // of either view by the other
};

// From the losses and their gradients, [2 n] each, of sample i.
__device__ __forceinline__ PairTerms pair_terms(const UnitPair& pair, float scale, const float* losses,
                                                const float* grad, int n, int i) {
  PairTerms terms;
  terms.pull = 0.f;
#pragma unroll
  for (int view = 0; view < 2; ++view) {
    const float loss = losses[view * n + i], weight = scale * grad[view * n + i];
    terms.row[view] = row_term(pair.factor[view], weight, fmaf(loss, kLog2E, pair.positive));
    terms.pull = fmaf(weight, ntxent_positive_gradient(loss), terms.pull);
  }
  return terms;
}

// Row `row` of a view by one warp, row i of `grad`: its gradient from that of its unit row, whose part by the negatives
// is total(d); `keep` has room for `dim` sums, padded to a multiple of four.
template <class Total>
__device__ __forceinline__ void finish_view(Matrix own, Matrix other, int row, const Matrix& grad, int i, float norm,
                                            float other_norm, float pull, float* keep, Total total) {
  const float unit = unit_factor(norm), positive = unit_factor(other_norm) * pull;
  float along = 0.f;
  for (int d = 4 * lane_id(); d < grad.dim; d += 128) {
    const float4 sum = plus(total(d), other.load(row, d), positive);
    along = dot(times(own.load(row, d), unit), sum, along);
    *reinterpret_cast<float4*>(keep + d) = sum;  // this thread reads it again below
  }
  along = warp_sum(along);
  // Only the part across the row changes its direction; a row of zeros has none.
  const float inverse = norm == 0.f ? 0.f : unit, tangent = norm < kEps ? 0.f : along;
  for (int d = 4 * lane_id(); d < grad.dim; d += 128) {
    const float4 sum = *reinterpret_cast<const float4*>(keep + d);
    grad.store(i, d, times(plus(sum, times(own.load(row, d), unit), -tangent), inverse));
  }
}

}  // namespace fastcl

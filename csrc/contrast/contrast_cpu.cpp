#include <algorithm>
#include <cmath>
#include <limits>
#include <vector>

#include "common/parallel.h"
#include "contrast/contrast.h"

namespace fastcl {
namespace {

constexpr int kLanes = 16;  // independent partial sums, so that the compiler may vectorise a dot product

float dot(const float* a, const float* b, int64_t dim) {
  float lanes[kLanes] = {};
  int64_t d = 0;
  for (; d + kLanes <= dim; d += kLanes)
    for (int l = 0; l < kLanes; ++l) lanes[l] += a[d + l] * b[d + l];
  float sum = 0;
  for (; d < dim; ++d) sum += a[d] * b[d];
  for (float lane : lanes) sum += lane;
  return sum;
}

// One side of the problem, seen from the rows: the columns' side is the same with q and k exchanged.
struct Side {
  const float* own;
  const float* other;
  int64_t own_count, other_count, dim;
  float scale;
  const int64_t* own_group;
  const int64_t* other_group;
  bool symmetric;

  bool left_out(int64_t i, int64_t j) const {
    if (own_group) return own_group[i] == other_group[j];
    return symmetric && i == j;
  }
  float similarity(int64_t i, int64_t j) const { return scale * dot(own + i * dim, other + j * dim, dim); }
};

Side row_side(const Contrast& p) {
  const bool symmetric = p.k == nullptr;
  return {p.q,     symmetric ? p.q : p.k, p.rows,   p.cols, p.dim,
          p.scale, p.q_group,             symmetric ? p.q_group : p.k_group, symmetric};
}

Side col_side(const Contrast& p) {
  return {p.k, p.q, p.cols, p.rows, p.dim, p.scale, p.k_group, p.q_group, false};
}

void forward_side(const Side& side, float* lse) {
  parallel_for(side.own_count, 1, [&](int64_t begin, int64_t end) {
    std::vector<float> s(side.other_count);
    for (int64_t i = begin; i < end; ++i) {
      float top = -std::numeric_limits<float>::infinity();
      int64_t left = 0;
      for (int64_t j = 0; j < side.other_count; ++j)
        if (!side.left_out(i, j)) top = std::max(top, s[left++] = side.similarity(i, j));
      double sum = 0;
      for (int64_t n = 0; n < left; ++n) sum += std::exp(s[n] - top);
      lse[i] = left ? static_cast<float>(top + std::log(sum)) : top;
    }
  });
}

void backward_side(const Side& side, const float* own_lse, const float* own_grad, const float* other_lse,
                   const float* other_grad, float* grad) {
  parallel_for(side.own_count, 1, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) {
      float* out = grad + i * side.dim;
      std::fill_n(out, side.dim, 0.f);
      for (int64_t j = 0; j < side.other_count; ++j) {
        if (side.left_out(i, j)) continue;
        const float s = side.similarity(i, j);
        float g = own_grad ? own_grad[i] * std::exp(s - own_lse[i]) : 0.f;
        if (other_grad) g += other_grad[j] * std::exp(s - other_lse[j]);
        g *= side.scale;
        for (int64_t d = 0; d < side.dim; ++d) out[d] += g * side.other[j * side.dim + d];
      }
    }
  });
}

}  // namespace

void contrast_forward(const Contrast& p, const ContrastForward& out) {
  forward_side(row_side(p), out.row_lse);
  if (out.col_lse) forward_side(col_side(p), out.col_lse);
}

void contrast_backward(const Contrast& p, const ContrastBackward& out) {
  if (p.k == nullptr) {
    backward_side(row_side(p), out.row_lse, out.grad_row, out.row_lse, out.grad_row, out.grad_q);
    return;
  }
  if (out.grad_q) backward_side(row_side(p), out.row_lse, out.grad_row, out.col_lse, out.grad_col, out.grad_q);
  if (out.grad_k) backward_side(col_side(p), out.col_lse, out.grad_col, out.row_lse, out.grad_row, out.grad_k);
}

}  // namespace fastcl

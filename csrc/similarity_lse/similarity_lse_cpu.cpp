#include <algorithm>
#include <cmath>
#include <limits>
#include <optional>
#include <unordered_map>
#include <vector>

#include "common/parallel.h"
#include "contrast/contrast.h"
#include "similarity_lse/similarity_lse.h"

namespace fastcl {
namespace {

constexpr float kNan = std::numeric_limits<float>::quiet_NaN();

// Numbers groups so that they fit 32 bits; equal groups, and only those, get equal numbers.
class GroupNumbers {
 public:
  GroupNumbers(const int64_t* q_group, int64_t rows, const int64_t* k_group, int64_t cols) {
    int64_t low = std::numeric_limits<int64_t>::max(), high = std::numeric_limits<int64_t>::min();
    const auto widen = [&](const int64_t* groups, int64_t count) {
      for (int64_t i = 0; i < count; ++i) low = std::min(low, groups[i]), high = std::max(high, groups[i]);
    };
    widen(q_group, rows);
    widen(k_group, cols);
    first_ = low;
    fits_ = low > high || uint64_t(high) - uint64_t(low) <= uint64_t(std::numeric_limits<int32_t>::max());
  }

  std::vector<int32_t> operator()(const int64_t* groups, int64_t count) {
    std::vector<int32_t> out(count + kGroupPadding, -1);
    for (int64_t i = 0; i < count; ++i)
      out[i] = fits_ ? static_cast<int32_t>(groups[i] - first_)
                     : numbers_.try_emplace(groups[i], static_cast<int32_t>(numbers_.size())).first->second;
    return out;
  }

 private:
  int64_t first_;
  bool fits_;  // less the first, as they are
  std::unordered_map<int64_t, int32_t> numbers_;
};

PaddedRows padded_rows(const void* data, FloatType type, int64_t rows, int64_t dim) {
  PaddedRows out(rows, dim);
  parallel_for(rows, grain_of(dim), [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) load_floats(data, type, i * dim, dim, out.row(i));
  });
  return out;
}

// The length of the longest row; NaN or infinite if any element is.
double largest_norm(const PaddedRows& rows) {
  double largest = 0;
  for (int64_t i = 0; i < rows.count(); ++i) {
    double square = dot_rows(rows.row(i), rows.row(i), rows.stride());
    if (!std::isfinite(square)) {  // or too large for float32
      square = 0;
      for (int64_t d = 0; d < rows.dim(); ++d) square += double(rows.row(i)[d]) * rows.row(i)[d];
      if (!std::isfinite(square)) return square;
    }
    largest = std::max(largest, square);
  }
  return std::sqrt(largest);
}

// The problem as the tile passes take it.
struct Prepared {
  PaddedRows q;
  std::optional<PaddedRows> k;
  std::vector<int32_t> q_group, k_group;
  Contrast contrast;

  explicit Prepared(const SimilarityLse& p) : q(padded_rows(p.q, p.type, p.rows, p.dim)) {
    if (!p.symmetric) k.emplace(padded_rows(p.k, p.type, p.cols, p.dim));
    if (p.grouped) {
      GroupNumbers numbers(p.q_group, p.rows, p.k_group, p.symmetric ? 0 : p.cols);
      q_group = numbers(p.q_group, p.rows);
      if (!p.symmetric) k_group = numbers(p.k_group, p.cols);
    }
    const double bound = std::fabs(double(p.scale)) * largest_norm(q) * (k ? largest_norm(*k) : largest_norm(q));
    contrast = {&q,
                k ? &*k : nullptr,
                p.scale,
                static_cast<float>(bound),
                p.bf16_products,
                p.symmetric && !p.grouped ? p.rows : 0,
                p.grouped ? &q_group : nullptr,
                p.symmetric ? &q_group : &k_group};
  }

  bool finite() const { return std::isfinite(contrast.largest_logit); }

  // `kept`, where the exponentials fit.
  template <class T>
  T* exponentials(T* kept, int64_t kept_floats) const {
    const int64_t cols = (contrast.k ? *contrast.k : q).count();
    return kept_floats >= contrast_kept_floats(q.count(), cols, contrast.bf16_products) ? kept : nullptr;
  }
};

void store_rows(const PaddedRows& rows, FloatType type, void* out) {
  parallel_for(rows.count(), grain_of(rows.dim()), [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) store_floats(rows.row(i), rows.dim(), type, i * rows.dim(), out);
  });
}

void fill_nan(FloatType type, int64_t count, void* out) {
  for (int64_t i = 0; i < count; ++i) store_floats(&kNan, 1, type, i, out);
}

}  // namespace

void similarity_lse_forward(const SimilarityLse& p, const SimilarityLseForward& out) {
  const Prepared prepared(p);
  if (!prepared.finite()) {
    std::fill_n(out.row_lse, p.rows, kNan);
    if (out.col_lse) std::fill_n(out.col_lse, p.cols, kNan);
    return;
  }
  std::vector<double> row_lse(p.rows), col_lse(out.col_lse ? p.cols : 0);
  contrast_forward(prepared.contrast, {row_lse.data(), out.col_lse ? col_lse.data() : nullptr,
                                       prepared.exponentials(out.kept, out.kept_floats)});
  std::copy(row_lse.begin(), row_lse.end(), out.row_lse);
  std::copy(col_lse.begin(), col_lse.end(), out.col_lse);
}

void similarity_lse_backward(const SimilarityLse& p, const SimilarityLseBackward& out) {
  const Prepared prepared(p);
  const auto finite = [](const float* values, int64_t count) {
    return !values || std::all_of(values, values + count, [](float value) { return std::isfinite(value); });
  };
  if (!prepared.finite() || !finite(out.grad_row, p.rows) || !finite(out.grad_col, p.cols)) {
    if (out.grad_q) fill_nan(p.type, p.rows * p.dim, out.grad_q);
    if (out.grad_k) fill_nan(p.type, p.cols * p.dim, out.grad_k);
    *out.grad_scale = kNan;
    return;
  }
  std::optional<PaddedRows> grad_q, grad_k;
  if (out.grad_q) grad_q.emplace(p.rows, p.dim);
  if (out.grad_k) grad_k.emplace(p.cols, p.dim);
  contrast_backward(prepared.contrast,
                    {out.row_lse, out.grad_row, out.col_lse, out.grad_col, grad_q ? grad_q->row(0) : nullptr,
                     grad_k ? grad_k->row(0) : nullptr, prepared.exponentials(out.kept, out.kept_floats)});
  double sum = 0;
  if (grad_q) {
    // s depends on scale q alone: scale d/dscale = sum of <q_i, d/dq_i>; where k is q, that counts each pair twice.
    for (int64_t i = 0; i < p.rows; ++i) sum += dot_rows(prepared.q.row(i), grad_q->row(i), prepared.q.stride());
    store_rows(*grad_q, p.type, out.grad_q);
  }
  if (grad_k) store_rows(*grad_k, p.type, out.grad_k);
  *out.grad_scale = static_cast<float>(sum / ((p.symmetric ? 2.0 : 1.0) * p.scale));
}

}  // namespace fastcl

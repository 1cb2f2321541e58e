#include <algorithm>
#include <cmath>
#include <limits>
#include <optional>
#include <vector>

#include "common/parallel.h"
#include "contrast/contrast.h"
#include "ntxent/ntxent.h"
#include "ntxent/ntxent_math.h"

namespace fastcl {
namespace {

constexpr int64_t kAlignedFloats = kBufferAlignment / sizeof(float);
constexpr double kEps = 1e-12;  // torch.nn.functional.normalize's
// Sums of squares outside are formed again in double: those of float32 may have overflowed, or lost what is small.
constexpr float kLeastSquare = 1e-24f, kLargestSquare = 1e30f;

double length(const float* row, int64_t dim, int64_t stride) {
  const float square = dot_rows(row, row, stride);
  if (square >= kLeastSquare && square <= kLargestSquare) return std::sqrt(double(square));
  double sum = 0;
  for (int64_t d = 0; d < dim; ++d) sum += double(row[d]) * row[d];
  return std::sqrt(sum);
}

// Unit rows of both views, [2n, dim], and the length of each; with the exponentials of their similarities, all of it in
// the memory that a forward pass keeps for the backward pass, where that suffices.
class UnitRows {
 public:
  UnitRows(int64_t n, int64_t dim, bool bf16_products, const float* kept, int64_t kept_floats)
      : n_(n),
        lengths_((4 * n + kAlignedFloats - 1) / kAlignedFloats * kAlignedFloats),
        unkept_(lengths_ + PaddedRows::floats(2 * n, dim)),
        are_kept_(kept && kept_floats >= unkept_ + contrast_kept_floats(2 * n, 2 * n, bf16_products)),
        own_(are_kept_ ? Buffer<float>() : Buffer<float>(unkept_)),
        data_(are_kept_ ? const_cast<float*>(kept) : own_.get()),  // form() alone writes there
        z(2 * n, dim, data_ + lengths_),
        norm(reinterpret_cast<double*>(data_)) {}

  void form(const void* z0, const void* z1, FloatType type) {
    z.clear_padding();
    parallel_for(2 * n_, grain_of(z.dim()), [&](int64_t begin, int64_t end) {
      for (int64_t i = begin; i < end; ++i) {
        float* row = z.row(i);
        load_floats(i < n_ ? z0 : z1, type, (i < n_ ? i : i - n_) * z.dim(), z.dim(), row);
        norm[i] = length(row, z.dim(), z.stride());
        scale_row(row, static_cast<float>(1 / std::max(norm[i], kEps)), z.stride());
      }
    });
  }

  bool are_kept() const { return are_kept_; }
  float* exponentials() const { return are_kept_ ? data_ + unkept_ : nullptr; }
  bool finite() const {
    return std::all_of(norm, norm + 2 * n_, [](double length) { return std::isfinite(length); });
  }

  int64_t positive(int64_t i) const { return i < n_ ? i + n_ : i - n_; }
  float positive_cosine(int64_t i) const { return dot_rows(z.row(i), z.row(positive(i)), z.stride()); }

  // Row i's pairs with itself and with its positive are of one group: i mod n.
  Contrast problem(float scale, bool bf16_products) const {
    return {&z, nullptr, scale, std::fabs(scale), bf16_products, n_, nullptr, nullptr};
  }

 private:
  const int64_t n_, lengths_, unkept_;  // floats of the lengths, and of them and the rows
  const bool are_kept_;
  const Buffer<float> own_;
  float* const data_;

 public:
  PaddedRows z;
  double* const norm;
};

void fill_nan(float* values, int64_t count) { std::fill_n(values, count, std::numeric_limits<float>::quiet_NaN()); }

}  // namespace

void ntxent_forward(const NtxentForward& p) {
  UnitRows rows(p.n, p.dim, p.bf16_products, p.kept, p.kept_floats);
  rows.form(p.z0, p.z1, p.type);
  if (!rows.finite() || !std::isfinite(p.scale)) return fill_nan(p.losses, 2 * p.n);
  std::vector<double> negatives(2 * p.n);
  contrast_forward(rows.problem(p.scale, p.bf16_products), {negatives.data(), nullptr, rows.exponentials()});
  parallel_for(p.n, grain_of(2 * p.dim), [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) {
      const double positive = double(p.scale) * rows.positive_cosine(i);
      for (int64_t row : {i, i + p.n}) {
        const double margin = negatives[row] - positive;
        p.losses[row] = static_cast<float>(ntxent_loss(margin));
      }
    }
  });
}

void ntxent_backward(const NtxentBackward& p) {
  const int64_t count = 2 * p.n;
  UnitRows rows(p.n, p.dim, p.bf16_products, p.kept, p.kept_floats);
  if (!rows.are_kept()) rows.form(p.z0, p.z1, p.type);
  std::vector<float> lse(count), pull(count);
  bool finite = rows.finite() && std::isfinite(p.scale);
  for (int64_t i = 0; i < p.n; ++i) {
    const double positive = double(p.scale) * rows.positive_cosine(i);
    double sum = 0;  // of grad (p_positive - 1) over the pair's two rows
    for (int64_t row : {i, i + p.n}) {
      lse[row] = static_cast<float>(positive + p.losses[row]);
      sum += p.grad_losses[row] * ntxent_positive_gradient(double(p.losses[row]));
      finite = finite && std::isfinite(p.grad_losses[row]);
    }
    pull[i] = pull[i + p.n] = static_cast<float>(p.scale * sum);
  }
  if (!finite) {
    std::vector<float> row(p.dim);
    fill_nan(row.data(), p.dim);
    for (int64_t i = 0; i < count; ++i) store_floats(row.data(), p.dim, p.type, i * p.dim, p.grad_z);
    return fill_nan(p.grad_scale, 1);
  }

  // The kernels can write where the result belongs if neither its type nor its shape is in the way.
  const bool in_place = p.type == FloatType::kFloat32 && !rows.z.is_padded();
  std::optional<PaddedRows> buffer;
  if (!in_place) buffer.emplace(count, p.dim);
  float* grad = in_place ? static_cast<float*>(p.grad_z) : buffer->row(0);
  contrast_backward(rows.problem(p.scale, p.bf16_products),
                    {lse.data(), p.grad_losses, nullptr, nullptr, grad, nullptr, rows.exponentials()});

  std::vector<float> along(count);  // of each row's gradient, its part along the row
  parallel_for(count, grain_of(2 * p.dim), [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) {
      const float* z = rows.z.row(i);
      const float* positive = rows.z.row(rows.positive(i));
      float* g = grad + i * rows.z.stride();
      add_scaled_row(g, positive, pull[i], rows.z.stride());
      along[i] = dot_rows(z, g, rows.z.stride());
      // Only the part across the row changes its direction; a row of zeros has none.
      const double norm = rows.norm[i];
      const float inverse = static_cast<float>(norm == 0 ? 0 : 1 / std::max(norm, kEps));
      if (norm > kEps) add_scaled_row(g, z, -along[i], rows.z.stride());
      scale_row(g, inverse, rows.z.stride());
      if (!in_place) store_floats(g, p.dim, p.type, i * p.dim, p.grad_z);
    }
  });
  double sum = 0;
  for (float part : along) sum += part;
  // The loss depends on scale <z_i, z_j> alone: d/dscale is half of the sum of d/dlog|z_i|, over scale.
  *p.grad_scale = static_cast<float>(sum / (2.0 * p.scale));
}

}  // namespace fastcl

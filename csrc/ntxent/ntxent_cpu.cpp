#include <algorithm>
#include <cmath>
#include <vector>

#include "common/parallel.h"
#include "contrast/contrast.h"
#include "ntxent/ntxent.h"

namespace fastcl {
namespace {

constexpr double kEps = 1e-12;  // torch.nn.functional.normalize's
constexpr int64_t kGrain = 16;  // rows a thread takes at least

// Unit rows of both views, [2n, dim], and what each row was divided by.
struct UnitRows {
  std::vector<float> z;
  std::vector<double> norm;
  int64_t n, dim;

  UnitRows(const void* z0, const void* z1, FloatType type, int64_t n, int64_t dim)
      : z(2 * n * dim), norm(2 * n), n(n), dim(dim) {
    parallel_for(2 * n, kGrain, [&](int64_t begin, int64_t end) {
      for (int64_t i = begin; i < end; ++i) {
        float* row = z.data() + i * dim;
        load_floats(i < n ? z0 : z1, type, (i < n ? i : i - n) * dim, dim, row);
        double square = 0;
        for (int64_t d = 0; d < dim; ++d) square += double(row[d]) * row[d];
        norm[i] = std::sqrt(square);
        const float inverse = static_cast<float>(1 / std::max(norm[i], kEps));
        for (int64_t d = 0; d < dim; ++d) row[d] *= inverse;
      }
    });
  }

  int64_t positive(int64_t i) const { return i < n ? i + n : i - n; }
  const float* row(int64_t i) const { return z.data() + i * dim; }

  Contrast problem(float scale, bool bf16_products) const {
    return {z.data(), nullptr, 2 * n, 2 * n, dim, scale, nullptr, nullptr, bf16_products};
  }
};

double dot(const float* a, const float* b, int64_t dim) {
  double sum = 0;
  for (int64_t d = 0; d < dim; ++d) sum += double(a[d]) * b[d];
  return sum;
}

}  // namespace

void ntxent_forward(const NtxentForward& p) {
  const UnitRows rows(p.z0, p.z1, p.type, p.n, p.dim);
  contrast_forward(rows.problem(p.scale, p.bf16_products), {p.lse, nullptr});
  parallel_for(2 * p.n, kGrain, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i)
      p.losses[i] = static_cast<float>(p.lse[i] - p.scale * dot(rows.row(i), rows.row(rows.positive(i)), p.dim));
  });
}

void ntxent_backward(const NtxentBackward& p) {
  const UnitRows rows(p.z0, p.z1, p.type, p.n, p.dim);
  std::vector<float> grad(2 * p.n * p.dim);
  contrast_backward(rows.problem(p.scale, p.bf16_products),
                    {p.lse, p.grad_losses, nullptr, nullptr, grad.data(), nullptr});
  std::vector<double> along(2 * p.n);  // of each row's gradient, its part along the row
  parallel_for(2 * p.n, kGrain, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) {
      const int64_t other = rows.positive(i);
      const float pull = p.scale * (p.grad_losses[i] + p.grad_losses[other]);
      const float* z = rows.row(i);
      float* g = grad.data() + i * p.dim;
      for (int64_t d = 0; d < p.dim; ++d) g[d] -= pull * rows.row(other)[d];
      along[i] = dot(z, g, p.dim);
      const double norm = rows.norm[i];
      const double tangent = norm > kEps ? along[i] : 0, inverse = norm == 0 ? 0 : 1 / std::max(norm, kEps);
      for (int64_t d = 0; d < p.dim; ++d) g[d] = static_cast<float>((g[d] - tangent * z[d]) * inverse);
      store_floats(g, p.dim, p.type, (i < p.n ? i : i - p.n) * p.dim, i < p.n ? p.grad_z0 : p.grad_z1);
    }
  });
  double sum = 0;
  for (double part : along) sum += part;
  // The loss depends on scale <z_i, z_j> alone, so d/dscale is half of d/dlog|z| summed over the rows, over scale.
  *p.grad_scale = static_cast<float>(sum / (2.0 * p.scale));
}

}  // namespace fastcl

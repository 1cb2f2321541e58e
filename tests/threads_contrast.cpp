// NT-Xent and the log-sum-exp under it on 1 to 8 threads, run under the thread sanitizer by test_threads_contrast.py:
// no data race, and the same bits whatever the number of threads.
#include <algorithm>
#include <cstdio>
#include <cstring>
#include <random>
#include <vector>

#include "common/buffer.h"
#include "ntxent/ntxent.h"
#include "std_threads.h"

namespace {

struct Result {
  std::vector<float> losses, grad;
  float grad_scale = 0;
};

Result compute(const std::vector<float>& z0, const std::vector<float>& z1, int64_t n, int64_t dim, bool keep) {
  Result r{std::vector<float>(2 * n), std::vector<float>(2 * n * dim)};
  const int64_t kept_floats = keep ? (2 * n + 64) * (2 * n + dim + 128) : 0;
  fastcl::Buffer<float> kept(kept_floats);
  const std::vector<float> grads(2 * n, 0.5f / n);
  const auto type = fastcl::FloatType::kFloat32;
  fastcl::ntxent_forward({z0.data(), z1.data(), type, n, dim, 10.f, false, r.losses.data(), kept.get(), kept_floats});
  fastcl::ntxent_backward({z0.data(), z1.data(), type, n, dim, 10.f, false, r.losses.data(), grads.data(),
                           r.grad.data(), &r.grad_scale, kept.get(), kept_floats});
  return r;
}

bool same(const std::vector<float>& a, const std::vector<float>& b) {
  return std::memcmp(a.data(), b.data(), a.size() * sizeof(float)) == 0;
}

}  // namespace

int main() {
  std::mt19937 random(0);
  std::normal_distribution<float> normal;
  for (int64_t n : {70, 300})
    for (int64_t dim : {5, 128}) {
      std::vector<float> z0(n * dim), z1(n * dim);
      for (float& x : z0) x = normal(random);
      for (float& x : z1) x = normal(random);
      fastcl::threads = 1;
      const Result alone = compute(z0, z1, n, dim, false);
      for (bool keep : {false, true})
        for (int threads : {2, 3, 8}) {
          fastcl::threads = threads;
          const Result together = compute(z0, z1, n, dim, keep);
          if (!same(alone.losses, together.losses) || !same(alone.grad, together.grad) ||
              alone.grad_scale != together.grad_scale)
            return std::printf("n = %d, dim = %d: %d threads differ from one\n", int(n), int(dim), threads), 1;
        }
    }
  std::puts("same bits");
  return 0;
}

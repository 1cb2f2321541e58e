#include <torch/csrc/stable/ops.h>

#include "common/parallel.h"

namespace fastcl {

int thread_count() { return static_cast<int>(torch::stable::get_num_threads()); }

void parallel_range(int64_t n, int64_t grain, void (*body)(void*, int64_t, int64_t), void* context) {
  torch::stable::parallel_for(0, n, grain, [&](int64_t begin, int64_t end) { body(context, begin, end); });
}

}  // namespace fastcl

// max_pool2d between torch and the kernel: check and fill the Params.
#pragma once

#include <vector>

#include "common/tensor_ops.h"
#include "max_pool2d/max_pool2d.h"

namespace fastcl {

inline void check_pool_ranges(const char* op, const char* name, const std::vector<int64_t>& ranges, int64_t size) {
  FASTCL_CHECK(!ranges.empty() && ranges.size() % 2 == 0, op, ": ", name, " must be pairs of begin and end, got ",
               ranges.size(), " numbers");
  for (size_t i = 0; i < ranges.size(); i += 2)
    FASTCL_CHECK(0 <= ranges[i] && ranges[i] < ranges[i + 1] && ranges[i + 1] <= size, op, ": ", name,
                 " must be ranges within 0 and ", size, ", not empty, got ", ranges[i], " to ", ranges[i + 1]);
}

// All but x and y themselves.
inline MaxPool2d max_pool2d_params(const char* op, const Tensor& x, const std::vector<int64_t>& rows,
                                   const std::vector<int64_t>& columns) {
  FASTCL_CHECK(x.dim() == 4, op, ": x must be [B, H, W, C], got ", shape(x));
  check_pool_ranges(op, "rows", rows, x.size(1));
  check_pool_ranges(op, "columns", columns, x.size(2));
  MaxPool2d p = {};
  p.batch = x.size(0), p.height = x.size(1), p.width = x.size(2), p.channels = x.size(3);
  p.rows = rows.data(), p.out_height = int64_t(rows.size() / 2);
  p.columns = columns.data(), p.out_width = int64_t(columns.size() / 2);
  return p;
}

}  // namespace fastcl

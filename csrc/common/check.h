// Argument checks whose messages name the op, the argument, what was wanted and what came:
//   FASTCL_CHECK(z.dim() == 2, "ntxent: z0 must be [N, D], got ", shape(z));
#pragma once

#include <torch/csrc/stable/tensor.h>

#include <sstream>
#include <stdexcept>
#include <string>

#define FASTCL_CHECK(condition, ...)                                          \
  do {                                                                        \
    if (!(condition)) throw std::runtime_error(fastcl::message(__VA_ARGS__)); \
  } while (false)

namespace fastcl {

template <class... Parts>
std::string message(const Parts&... parts) {
  std::ostringstream out;
  (out << ... << parts);
  return out.str();
}

// "[2, 3]"
inline std::string shape(const torch::stable::Tensor& tensor) {
  std::ostringstream out;
  out << '[';
  for (int64_t d = 0; d < tensor.dim(); ++d) out << (d ? ", " : "") << tensor.size(d);
  out << ']';
  return out.str();
}

}  // namespace fastcl

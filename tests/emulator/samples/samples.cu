// The samples' host side, called from Python: nullptr, or what went wrong.
#include <exception>

#include "samples.h"

namespace fastcl::samples {
namespace {

template <class Run>
const char* errors_as_text(Run run) {
  static thread_local std::string message;
  try {
    run();
    return nullptr;
  } catch (const std::exception& error) {
    message = error.what();
    return message.c_str();
  }
}

template <class Product, Bug bug = kNone>
void run_gemm(const void* a, const void* b, float* c, int m, int n, int row_bytes) {
  using Element = typename Product::Element;
  launch(gemm<Product, bug>, dim3((n + kTile - 1) / kTile, (m + kTile - 1) / kTile), dim3(kGemmThreads),
         kGemmSharedBytes, nullptr, static_cast<const Element*>(a), static_cast<const Element*>(b), c, m, n, row_bytes);
}

}  // namespace

extern "C" {

// kind: 0 bf16, 1 f16, 2 f16 by sm_75's instruction, 3 TF32, 4 int8; bugs for bf16 alone
__attribute__((visibility("default"))) const char* samples_gemm(int kind, int bug, const void* a, const void* b,
                                                                float* c, int m, int n, int row_bytes) {
  return errors_as_text([&] {
    const auto run = [&](auto kernel) { kernel(a, b, c, m, n, row_bytes); };
    if (kind == 1) return run(run_gemm<F16Product>);
    if (kind == 2) return run(run_gemm<F16ProductSm75>);
    if (kind == 3) return run(run_gemm<Tf32Product>);
    if (kind == 4) return run(run_gemm<S8Product>);
    switch (bug) {
      case kNone:
        return run(run_gemm<Bf16Product>);
      case kMissingBarrier:
        return run(run_gemm<Bf16Product, kMissingBarrier>);
      case kMissingCopyWait:
        return run(run_gemm<Bf16Product, kMissingCopyWait>);
      case kRefilledStage:
        return run(run_gemm<Bf16Product, kRefilledStage>);
      case kOnePastTheEdge:
        return run(run_gemm<Bf16Product, kOnePastTheEdge>);
      case kSwappedOperands:
        return run(run_gemm<SwappedBf16Product>);
      case kWrongCopySize:
        return run(run_gemm<Bf16Product, kWrongCopySize>);
      default:
        throw std::runtime_error("gemm: no such bug");
    }
  });
}

__attribute__((visibility("default"))) const char* samples_row_sums(int bug, const float* x, float* out, int rows,
                                                                    int columns) {
  return errors_as_text([&] {
    const auto run = [&](auto kernel) {
      launch(kernel, dim3(2), dim3(kSumThreads), 0, nullptr, x, out, rows, columns);
    };
    switch (bug) {
      case kNone:
        return run(row_sums<kNone>);
      case kMissingBarrier:
        return run(row_sums<kMissingBarrier>);
      case kDivergentBarrier:
        return run(row_sums<kDivergentBarrier>);
      case kWrongMask:
        return run(row_sums<kWrongMask>);
      case kLostTail:
        return run(row_sums<kLostTail>);
      case kPastShared:
        return run(row_sums<kPastShared>);
      default:
        throw std::runtime_error("row_sums: no such bug");
    }
  });
}

__attribute__((visibility("default"))) const char* samples_total_sum(int bug, const float* x, float* partial,
                                                                     unsigned* counter, float* total, int blocks,
                                                                     int count) {
  return errors_as_text([&] {
    launch(bug == kMissingFence ? total_sum<kMissingFence> : total_sum<kNone>, dim3(blocks), dim3(kSumThreads), 0,
           nullptr, x, partial, counter, total, count);
  });
}

}  // extern "C"
}  // namespace fastcl::samples

// Compares matrix.h's fragment layouts with CuTe's MMA_Traits and Copy_Traits; prints and returns the mismatches. CuTe
// numbers the elements of a fragment: v = register * elements per register + element, and a matrix's column-major.
#include <cuda_runtime.h>

#include <cstdio>
#include <cute/atom/copy_traits_sm75.hpp>
#include <cute/atom/mma_traits_sm75.hpp>
#include <cute/atom/mma_traits_sm80.hpp>
#include <cute/tensor.hpp>

#include "positions.h"

using namespace cute;
using namespace fastcl::emulator;

template <class Layout, class Expected>
int compare(Layout layout, int rows, Expected expected) {
  int mismatches = 0;
  for (int lane = 0; lane < 32; ++lane)
    for (int v = 0; v < int(size<1>(layout)); ++v) {
      const int at = layout(lane, v);
      const Position position = expected(lane, v);
      mismatches += at % rows != position.row || at / rows != position.column;
    }
  return mismatches;
}

template <class Traits, int kElements>
int compare_mma(const char* name, int rows) {
  const int a = compare(typename Traits::ALayout(), rows, [=](int lane, int v) {
    return a_position<kElements>(lane, rows == 8 ? 2 * (v / kElements) : v / kElements, v % kElements);
  });
  const int b = compare(typename Traits::BLayout(), 8, [](int lane, int v) {
    const Position position = b_position<kElements>(lane, v / kElements, v % kElements);
    return Position{position.column, position.row};  // CuTe's B is [n, k]
  });
  const int c = compare(typename Traits::CLayout(), rows, [](int lane, int v) { return c_position(lane, v); });
  std::printf("%s: %d mismatches in A, %d in B, %d in C\n", name, a, b, c);
  return a + b + c;
}

// Copies a [8, 8] matrix of 16-bit elements, `RefLayout` saying which bit of it each lane's bits are.
template <class Traits>
int compare_ldmatrix(const char* name, bool transposed) {
  typename Traits::DstLayout destination;
  typename Traits::SrcLayout source;
  int mismatches = 0;
  // Source bits: lane l < 8 holds row l of 128 bits.
  for (int lane = 0; lane < 32; ++lane)
    for (int half = 0; half < 2; ++half) {
      const Position position = ldmatrix_position(lane, half, transposed);
      mismatches += int(destination(lane, 16 * half)) != int(source(position.row, 16 * position.column));
    }
  std::printf("%s: %d mismatches\n", name, mismatches);
  return mismatches;
}

int main() {
  // A comparison that could not fail would be none.
  if (!compare_ldmatrix<Copy_Traits<SM75_U16x2_LDSM_T>>("(ldmatrix.trans against the other layout)", false)) return 1;
  return compare_mma<MMA_Traits<SM80_16x8x16_F32BF16BF16F32_TN>, 2>("m16n8k16 bf16", 16) +
         compare_mma<MMA_Traits<SM80_16x8x16_F32F16F16F32_TN>, 2>("m16n8k16 f16", 16) +
         compare_mma<MMA_Traits<SM75_16x8x8_F32F16F16F32_TN>, 2>("m16n8k8 f16", 16) +
         compare_mma<MMA_Traits<SM80_16x8x8_F32TF32TF32F32_TN>, 1>("m16n8k8 tf32", 16) +
         compare_mma<MMA_Traits<SM80_16x8x32_S32S8S8S32_TN>, 4>("m16n8k32 s8", 16) +
         compare_mma<MMA_Traits<SM75_8x8x16_S32S8S8S32_TN>, 4>("m8n8k16 s8", 8) +
         compare_ldmatrix<Copy_Traits<SM75_U32x1_LDSM_N>>("ldmatrix", false) +
         compare_ldmatrix<Copy_Traits<SM75_U16x2_LDSM_T>>("ldmatrix.trans", true);
}

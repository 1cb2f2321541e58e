#include <algorithm>
#include <limits>
#include <numeric>

#include "contrast/contrast_tiles.h"

#if FASTCL_X86_DISPATCH

FASTCL_AVX2_BEGIN
#include "common/simd_avx2.h"
#include "contrast/contrast_tiles_impl.h"

namespace fastcl {

static const ContrastKernels& table = ContrastTiles<Avx2, Float32Products<Avx2>, 6, 2, 6, 2>::kTable;

}  // namespace fastcl
FASTCL_TARGET_END

#endif

namespace fastcl {

const ContrastKernels* contrast_kernels_avx2() {
#if FASTCL_X86_DISPATCH
  if (cpu_has_avx2()) return &table;
#endif
  return nullptr;
}

}  // namespace fastcl

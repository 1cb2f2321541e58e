#include <algorithm>
#include <limits>
#include <numeric>

#include "contrast/contrast_tiles.h"

#if FASTCL_X86_DISPATCH

FASTCL_AVX512_BEGIN
#include "common/simd_avx512.h"
#include "contrast/contrast_tiles_impl.h"

namespace fastcl {

static const ContrastKernels& table = ContrastTiles<Avx512, Float32Products<Avx512>, 8, 3, 6, 4>::kTable;

}  // namespace fastcl
FASTCL_TARGET_END

#endif

namespace fastcl {

const ContrastKernels* contrast_kernels_avx512() {
#if FASTCL_X86_DISPATCH
  if (cpu_has_avx512()) return &table;
#endif
  return nullptr;
}

}  // namespace fastcl

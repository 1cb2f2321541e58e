#include "augment/augment_rows.h"

#if FASTCL_X86_DISPATCH

FASTCL_AVX2_BEGIN
#include "augment/augment_rows_impl.h"
#include "common/simd_avx2.h"

namespace fastcl {

static const AugmentRows& table = AugmentLoops<Avx2>::kTable;

}  // namespace fastcl
FASTCL_TARGET_END

#endif

namespace fastcl {

const AugmentRows* augment_rows_avx2() {
#if FASTCL_X86_DISPATCH
  if (cpu_has_avx2()) return &table;
#endif
  return nullptr;
}

}  // namespace fastcl

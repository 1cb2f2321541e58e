#include "augment/augment_rows.h"

#if FASTCL_X86_DISPATCH

FASTCL_AVX512_BEGIN
#include "augment/augment_rows_impl.h"
#include "common/simd_avx512.h"

namespace fastcl {

static const AugmentRows& table = AugmentLoops<Avx512>::kTable;

}  // namespace fastcl
FASTCL_TARGET_END

#endif

namespace fastcl {

const AugmentRows* augment_rows_avx512() {
#if FASTCL_X86_DISPATCH
  if (cpu_has_avx512()) return &table;
#endif
  return nullptr;
}

}  // namespace fastcl

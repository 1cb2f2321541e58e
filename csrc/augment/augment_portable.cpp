#include "augment/augment_rows_impl.h"
#include "common/simd_portable.h"

namespace fastcl {

const AugmentRows* augment_rows_portable() { return &AugmentLoops<Portable>::kTable; }

}  // namespace fastcl

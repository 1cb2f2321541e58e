#include "common/simd_portable.h"
#include "contrast/contrast_tiles_impl.h"

namespace fastcl {

const ContrastKernels* contrast_kernels_portable() {
  return &ContrastTiles<Portable, Float32Products<Portable>, 4, 2, 4, 2>::kTable;
}

}  // namespace fastcl

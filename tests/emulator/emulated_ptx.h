// csrc/common/cuda/ptx.h as the emulator runs it: the same functions, and a failure where a device would trap.
#pragma once

#include <cmath>

#include "cuda_emulator.h"
#include "matrix.h"

namespace fastcl::cuda {

namespace emulator = fastcl::emulator;

inline void require_sm_80(const char* name, emulator::Location location) {
  if (emulator::settings().compute_capability < 80) emulator::fail(std::string(name) + " needs sm_80", location);
}

inline void cp_async_16(void* shared, const void* source, int bytes = 16, FASTCL_EMULATOR_HERE) {
  emulator::async_copy(shared, source, 16, bytes, location);
}
inline void cp_async_4(void* shared, const void* source, int bytes = 4, FASTCL_EMULATOR_HERE) {
  emulator::async_copy(shared, source, 4, bytes, location);
}
inline void cp_async_commit() { emulator::async_commit(); }
template <int N>
void cp_async_wait() {
  emulator::async_wait(N);
}

inline void ldmatrix_x4(unsigned (&r)[4], const void* row, FASTCL_EMULATOR_HERE) {
  emulator::ldmatrix<4, false>(r, row, location);
}
inline void ldmatrix_x4_trans(unsigned (&r)[4], const void* row, FASTCL_EMULATOR_HERE) {
  emulator::ldmatrix<4, true>(r, row, location);
}
inline void ldmatrix_x2(unsigned (&r)[2], const void* row, FASTCL_EMULATOR_HERE) {
  emulator::ldmatrix<2, false>(r, row, location);
}
inline void ldmatrix_x2_trans(unsigned (&r)[2], const void* row, FASTCL_EMULATOR_HERE) {
  emulator::ldmatrix<2, true>(r, row, location);
}

inline void mma_m16n8k16_bf16(float (&d)[4], const unsigned (&a)[4], unsigned b0, unsigned b1, FASTCL_EMULATOR_HERE) {
  require_sm_80("mma.m16n8k16.bf16", location);
  const unsigned b[] = {b0, b1};
  emulator::Mma<emulator::Bf16, 16, 16>::run(d, a, b, "mma.m16n8k16.bf16", location);
}
inline void mma_m16n8k16_f16(float (&d)[4], const unsigned (&a)[4], unsigned b0, unsigned b1, FASTCL_EMULATOR_HERE) {
  require_sm_80("mma.m16n8k16.f16", location);
  const unsigned b[] = {b0, b1};
  emulator::Mma<emulator::F16, 16, 16>::run(d, a, b, "mma.m16n8k16.f16", location);
}
inline void mma_m16n8k8_f16(float (&d)[4], const unsigned (&a)[2], unsigned b, FASTCL_EMULATOR_HERE) {
  emulator::Mma<emulator::F16, 16, 8>::run(d, a, &b, "mma.m16n8k8.f16", location);
}
inline void mma_m16n8k8_tf32(float (&d)[4], const unsigned (&a)[4], unsigned b0, unsigned b1, FASTCL_EMULATOR_HERE) {
  require_sm_80("mma.m16n8k8.tf32", location);
  const unsigned b[] = {b0, b1};
  emulator::Mma<emulator::Tf32, 16, 8>::run(d, a, b, "mma.m16n8k8.tf32", location);
}
inline unsigned to_tf32(float x) {
  require_sm_80("cvt.rna.tf32", {"", 0});
  return emulator::round_to_tf32(x);
}
inline void mma_m16n8k32_s8(int (&d)[4], const unsigned (&a)[4], unsigned b0, unsigned b1, FASTCL_EMULATOR_HERE) {
  const unsigned b[] = {b0, b1};
  if (emulator::settings().compute_capability >= 80) {
    emulator::Mma<emulator::S8, 16, 32>::run(d, a, b, "mma.m16n8k32.s8", location);
    return;
  }
  for (int i = 0; i < 4; ++i)
    emulator::Mma<emulator::S8, 8, 16>::run(&d[i % 2 * 2], &a[i], &b[i / 2], "mma.m8n8k16.s8", location);
}

inline float exp2_approx(float x) { return emulator::flush(std::exp2(emulator::flush(x))); }
inline float log2_approx(float x) { return std::log2(emulator::flush(x)); }

}  // namespace fastcl::cuda

// What cuda_emulator.h declares and does not need to inline.
#include "cuda_emulator.h"

namespace fastcl::emulator {

cudaError_t device_attribute(int* value, cudaDeviceAttr attribute) {
  const int capability = settings().compute_capability;
  switch (attribute) {
    case cudaDevAttrComputeCapabilityMajor:
      *value = capability / 10;
      return cudaSuccess;
    case cudaDevAttrComputeCapabilityMinor:
      *value = capability % 10;
      return cudaSuccess;
    case cudaDevAttrMultiProcessorCount:
      *value = 4;  // few, so that grids which are sized by it wrap around in tests
      return cudaSuccess;
    case cudaDevAttrMaxSharedMemoryPerBlockOptin:
      *value = shared_memory_limit(capability);
      return cudaSuccess;
    default:
      return cudaErrorInvalidValue;
  }
}

FASTCL_EMULATOR_UNSEEN void exchange_shuffle(Exchange& exchange, unsigned mask) {
  Shuffle in[32];
  for (int i = 0; i < 32; ++i) std::memcpy(&in[i], exchange.in[i], sizeof in[i]);
  for (int i = 0; i < 32; ++i) {
    if (!(mask >> i & 1)) continue;
    const int source = in[i].source;
    const uint64_t value = source >= 0 && source < 32 && (mask >> source & 1) ? in[source].value : ~0ull;
    std::memcpy(exchange.out[i], &value, sizeof value);
  }
}

FASTCL_EMULATOR_UNSEEN void exchange_ballot(Exchange& exchange, unsigned mask) {
  unsigned votes = 0;
  for (int i = 0; i < 32; ++i)
    if ((mask >> i & 1) && exchange.in[i][0]) votes |= 1u << i;
  for (int i = 0; i < 32; ++i)
    if (mask >> i & 1) std::memcpy(exchange.out[i], &votes, sizeof votes);
}

FASTCL_EMULATOR_UNSEEN void exchange_match(Exchange& exchange, unsigned mask) {
  for (int i = 0; i < 32; ++i) {
    if (!(mask >> i & 1)) continue;
    unsigned equal = 0;
    for (int j = 0; j < 32; ++j)
      if ((mask >> j & 1) && !std::memcmp(exchange.in[i], exchange.in[j], 8)) equal |= 1u << j;
    std::memcpy(exchange.out[i], &equal, sizeof equal);
  }
}

}  // namespace fastcl::emulator

// Philox4x32-10 (Salmon et al. 2011, "Parallel random numbers: as easy as 1, 2, 3"): 128 random bits from a counter and
// a key.
#pragma once

#include <cstdint>

#include "common/portable.h"

namespace fastcl {

struct PhiloxBlock {
  uint32_t word[4];
};

FASTCL_HD inline PhiloxBlock philox(PhiloxBlock counter, uint64_t key) {
  uint32_t key0 = uint32_t(key), key1 = uint32_t(key >> 32);
  for (int round = 0; round < 10; ++round) {
    const uint64_t product0 = uint64_t(counter.word[0]) * 0xD2511F53u,
                   product1 = uint64_t(counter.word[2]) * 0xCD9E8D57u;
    counter = {{uint32_t(product1 >> 32) ^ counter.word[1] ^ key0, uint32_t(product1),
                uint32_t(product0 >> 32) ^ counter.word[3] ^ key1, uint32_t(product0)}};
    key0 += 0x9E3779B9u;
    key1 += 0xBB67AE85u;
  }
  return counter;
}

}  // namespace fastcl

// Philox4x32-10 (Salmon et al. 2011, "Parallel random numbers: as easy as 1, 2, 3"): 128 random bits from a counter and
// a key.
#pragma once

#include <cstdint>

#include "common/portable.h"

namespace fastcl {

template <class Word>
struct PhiloxBlockOf {
  Word word[4];
};

// N::multiply(a, b) gives the two words of a product, N::word(v) a word of v, ^ is bitwise.
template <class N>
FASTCL_HD inline PhiloxBlockOf<typename N::Word> philox_words(PhiloxBlockOf<typename N::Word> counter, uint64_t key) {
  uint32_t key0 = uint32_t(key), key1 = uint32_t(key >> 32);
  for (int round = 0; round < 10; ++round) {
    const auto product0 = N::multiply(counter.word[0], 0xD2511F53u),
               product1 = N::multiply(counter.word[2], 0xCD9E8D57u);
    counter = {{product1.high ^ counter.word[1] ^ N::word(key0), product1.low,
                product0.high ^ counter.word[3] ^ N::word(key1), product0.low}};
    key0 += 0x9E3779B9u;
    key1 += 0xBB67AE85u;
  }
  return counter;
}

// One block at a time.
struct PhiloxWords {
  using Word = uint32_t;
  struct Product {
    uint32_t high, low;
  };
  static FASTCL_HD uint32_t word(uint32_t v) { return v; }
  static FASTCL_HD Product multiply(uint32_t a, uint32_t b) {
    const uint64_t product = uint64_t(a) * b;
    return {uint32_t(product >> 32), uint32_t(product)};
  }
};
using PhiloxBlock = PhiloxBlockOf<uint32_t>;

FASTCL_HD inline PhiloxBlock philox(PhiloxBlock counter, uint64_t key) {
  return philox_words<PhiloxWords>(counter, key);
}

}  // namespace fastcl

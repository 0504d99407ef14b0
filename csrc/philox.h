// Philox 4x32-10 (Salmon et al., 2011) and numbers made from its words. The assignment of counters is documented in
// ammnet_sparse/ops/perturbation.py, whose reference gives the same bits.
#pragma once

#include "common.h"

namespace ammnet_sparse {

// Last word of the counter. The streams 3 and 4 (draws of a batch) exist in Python only.
enum class Stream : uint32_t { kEraseVoxels = 1, kShuffleCategories = 2 };

struct PhiloxKey {
  uint32_t low;
  uint32_t high;
};

inline PhiloxKey key_of_seed(int64_t seed) {
  const auto bits = static_cast<uint64_t>(seed);
  return {static_cast<uint32_t>(bits), static_cast<uint32_t>(bits >> 32)};
}

struct PhiloxWords {
  uint32_t word[4];
};

AMMNET_HOST_DEVICE PhiloxWords
philox(uint32_t counter0, uint32_t counter1, uint32_t counter2, uint32_t counter3, PhiloxKey key) {
  AMMNET_UNROLL
  for (int round = 0; round < 10; ++round) {
    const uint64_t product0 = static_cast<uint64_t>(counter0) * 0xD2511F53u;
    const uint64_t product1 = static_cast<uint64_t>(counter2) * 0xCD9E8D57u;
    counter0 = static_cast<uint32_t>(product1 >> 32) ^ counter1 ^ key.low;
    counter1 = static_cast<uint32_t>(product1);
    counter2 = static_cast<uint32_t>(product0 >> 32) ^ counter3 ^ key.high;
    counter3 = static_cast<uint32_t>(product0);
    key.low += 0x9E3779B9u;
    key.high += 0xBB67AE85u;
  }
  return {{counter0, counter1, counter2, counter3}};
}

// Random words of the voxels 4 * group .. 4 * group + 3 of a sample.
AMMNET_HOST_DEVICE PhiloxWords words_of_voxels(int64_t group, int64_t sample, Stream stream, PhiloxKey key) {
  return philox(static_cast<uint32_t>(group), static_cast<uint32_t>(sample), 0u, static_cast<uint32_t>(stream), key);
}

// Uniform in [0, 1) from the upper 24 bits, without rounding.
AMMNET_HOST_DEVICE float uniform(uint32_t word) {
  // Through int32: unlike uint32, it has a vector conversion to float.
  return static_cast<float>(static_cast<int32_t>(word >> 8)) * (1.0f / 16777216.0f);
}

}  // namespace ammnet_sparse

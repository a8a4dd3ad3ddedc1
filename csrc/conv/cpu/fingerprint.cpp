#include "conv/cpu/fingerprint.h"

#include <algorithm>
#include <cstring>
#include <vector>

#include "support/divide_up.h"
#include "support/parallel.h"

namespace deeplab_crf::conv {
namespace {

constexpr int64_t kChunk = int64_t{1} << 18;
constexpr int kChains = 16;

uint64_t mix(uint64_t hash, uint64_t value) {
  hash = (hash ^ value) * 0x9e3779b97f4a7c15u;
  return hash ^ (hash >> 29);
}

// Fletcher's checksum in parallel chains: the second sum weighs each word by its place.
uint64_t fingerprint_of_chunk(const float* values, int64_t count) {
  uint32_t first[kChains] = {}, second[kChains] = {};
  int64_t i = 0;
  for (; i + kChains <= count; i += kChains) {
    uint32_t words[kChains];
    std::memcpy(words, values + i, sizeof(words));
    for (int c = 0; c < kChains; ++c) {
      first[c] += words[c];
      second[c] += first[c];
    }
  }
  uint64_t hash = static_cast<uint64_t>(count);
  for (; i < count; ++i) {
    uint32_t word;
    std::memcpy(&word, values + i, sizeof(word));
    hash = mix(hash, word);
  }
  for (int c = 0; c < kChains; ++c) hash = mix(hash, static_cast<uint64_t>(first[c]) << 32 | second[c]);
  return hash;
}

}  // namespace

uint64_t fingerprint(const float* values, int64_t count, int threads) {
  std::vector<uint64_t> hashes(divide_up(count, kChunk));
  parallel_for(threads, static_cast<int64_t>(hashes.size()), [&](int64_t chunk) {
    hashes[chunk] = fingerprint_of_chunk(values + chunk * kChunk, std::min(kChunk, count - chunk * kChunk));
  });
  uint64_t hash = 0;
  for (const uint64_t value : hashes) hash = mix(hash, value);
  return hash;
}

}  // namespace deeplab_crf::conv

// A hash that tells whether an array has changed: transformed weights stay cached while it is the
// same. Writes through .data, NumPy or shared memory change no version counter, but they change the
// hash.
#pragma once

#include <cstdint>

namespace deeplab_crf::conv {

// Hashes `count` floats. Depends on every bit and its place; reads each value once (4 bytes, 2
// additions).
uint64_t fingerprint(const float* values, int64_t count, int threads);

}  // namespace deeplab_crf::conv

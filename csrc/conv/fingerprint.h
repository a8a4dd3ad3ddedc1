// A number that tells whether an array has changed: transformed weights are kept for as long as it stays the same. Writes through
// .data, NumPy or a shared memory reach no version counter; this sees them all.
#pragma once

#include <cstdint>

namespace deeplab_crf::conv {

// Of `count` floats. Depends on every bit and its place; reads each value once (4 bytes, 2 additions).
uint64_t fingerprint(const float* values, int64_t count, int threads);

}  // namespace deeplab_crf::conv

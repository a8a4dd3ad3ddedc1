// What comes after a library's convolution, which has the bias in it, in one pass and in place.
#pragma once

#include <cstdint>

namespace deeplab_crf::conv {

// values <- relu(values + residual), `count` of each in any layout, the same for both. Bytes an element: 8 read, 4 written, where
// an addition and a ReLU one after the other move 20. The same bits as theirs.
void add_relu(float* values, const float* residual, int64_t count, int threads);

}  // namespace deeplab_crf::conv

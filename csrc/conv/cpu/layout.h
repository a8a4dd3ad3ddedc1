// Copies between NCHW and channels-last layouts.
#pragma once

#include <cstdint>

namespace deeplab_crf::conv {

// out (planes, columns, rows) <- in (planes, rows, columns), both contiguous.
void transpose_planes(const float* in, int64_t planes, int64_t rows, int64_t columns, float* out, int threads);

}  // namespace deeplab_crf::conv

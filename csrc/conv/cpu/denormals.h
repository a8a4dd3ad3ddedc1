// Weights below the smallest normal number, 1.2e-38, are packed as 0: processors take up to
// hundreds of times as long for products with them (docs/convolution.md).
#pragma once

#include <cmath>
#include <limits>

namespace deeplab_crf::conv {

constexpr float kSmallestNormal = std::numeric_limits<float>::min();

inline float flush_denormal(float value) { return std::fabs(value) < kSmallestNormal ? 0.0f : value; }

}  // namespace deeplab_crf::conv

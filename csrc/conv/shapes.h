// Plain descriptions of a convolution. Arrays are contiguous and channels-last: x (B, H, W, C),
// result and residual (B, OH, OW, K).
#pragma once

#include <cstdint>

namespace deeplab_crf::conv {

// Output o along an axis reads inputs o * stride - padding + tap * dilation.
struct Axis {
  int64_t in, out, kernel, stride, padding, dilation;
};

struct Shape {
  int64_t batch, channels, filters;
  Axis rows, columns;
};

// y <- relu(y + bias + residual); null pointers are left out.
struct Epilogue {
  const float* bias;      // (K)
  const float* residual;  // shaped like the result
  bool relu;
};

}  // namespace deeplab_crf::conv

// Plain descriptions of a convolution. Arrays lie channels-last: x (B, H, W, C), result and residual (B, OH, OW, K), contiguous.
#pragma once

#include <cstdint>

namespace deeplab_crf::conv {

// Along one axis: output o reads inputs o * stride - padding + tap * dilation.
struct Axis {
  int64_t in, out, kernel, stride, padding, dilation;
};

struct Shape {
  int64_t batch, channels, filters;
  Axis rows, columns;
};

// y <- relu(y + bias + residual); what is null is left out.
struct Epilogue {
  const float* bias;      // (K)
  const float* residual;  // as the result
  bool relu;
};

}  // namespace deeplab_crf::conv

// Direct convolution of any kernel, stride, padding and dilation. For a run of outputs along a row,
// each tap is one product of pixels with a panel of weights, over the outputs whose tap falls
// inside the map; then follows the epilogue. A 1 x 1 convolution of stride 1 is one product over
// all pixels. The input is not copied and no workspace is needed. The bits do not depend on the
// number of threads or on the batch.
#pragma once

#include <cstdint>

#include "conv/shapes.h"

namespace deeplab_crf::conv {

// Elements of the packed weights: panels of (taps, C, panel_width).
int64_t direct_weights_size(const Shape& shape);
// weight (K, C, kh, kw), strides in elements.
void pack_direct_weights(const Shape& shape, const float* weight, const int64_t* strides, float* packed, int threads);

// Multiplications per input channel and filter, of the taps that fall inside the map.
int64_t direct_products(const Shape& shape);

void direct(const Shape& shape, const float* x, const float* packed, const Epilogue& epilogue, float* out, int threads);

}  // namespace deeplab_crf::conv

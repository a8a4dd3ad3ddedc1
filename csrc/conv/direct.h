// Direct convolution of any kernel, stride, padding and dilation: for a run of outputs along a row, one product of pixels with a
// panel of weights for each tap, over the outputs whose tap falls inside the map and no others; then the epilogue. A 1 x 1
// convolution of stride 1 is one product over all pixels. No copies of the input, no workspace. The same bits for any number of
// threads and any batch.
#pragma once

#include <cstdint>

#include "conv/shapes.h"

namespace deeplab_crf::conv {

// Elements of the packed weights, and the packing: panels of (taps, C, panel_width). weight (K, C, kh, kw), strides in elements.
int64_t direct_weights_size(const Shape& shape);
void pack_direct_weights(const Shape& shape, const float* weight, const int64_t* strides, float* packed, int threads);

// Products an input channel and filter: of taps that fall inside.
int64_t direct_products(const Shape& shape);

void direct(const Shape& shape, const float* x, const float* packed, const Epilogue& epilogue, float* out, int threads);

}  // namespace deeplab_crf::conv

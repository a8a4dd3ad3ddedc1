// Winograd convolution F(m x m, 3 x 3) over the phases of a dilated convolution: outputs whose coordinates agree modulo the
// dilation depend on inputs of one phase only, so a 3 x 3 convolution of any dilation is dilation^2 ordinary ones, and each is cut
// into tiles of up to 4 x 4 outputs (toom_cook.h): 2.25 products an output and channel instead of 9, and fewer sums of zeros in the
// small phases of large dilations, whose tiles are as small as they are. Stride 1, any padding.
//
// For a chunk of tiles: (1) the 36 matrices of transformed inputs; (2) each times its matrix of weights; (3) outputs, with the
// epilogue. float32 error about 1e-5 of the largest output (docs/convolution.md). The same bits for any number of threads and any
// batch.
#pragma once

#include <cstdint>

#include "conv/shapes.h"

namespace deeplab_crf::conv {

// Elements of the transformed weights: 36 (K', C), K' the filters rounded up to whole panels.
int64_t winograd_weights_size(const Shape& shape);
// Elements of the workspace: 36 (C + K + padding) for each tile of a chunk, which has kMostTiles tiles or one row of them.
int64_t winograd_workspace_size(const Shape& shape);
constexpr int64_t kFewestTiles = 32, kMostTiles = 160;
// Products an input channel and filter, for the cost of the whole.
int64_t winograd_products(const Shape& shape);

// weight (K, C, 3, 3), strides in elements.
void transform_winograd_weights(const Shape& shape, const float* weight, const int64_t* strides, float* transformed, int threads);

// False if a sum was not finite: then inputs were not, or overflowed on the way, and values near them may be NaN where a direct
// convolution has none.
bool winograd(const Shape& shape, const float* x, const float* transformed, const Epilogue& epilogue, float* out, float* workspace,
              int threads);

}  // namespace deeplab_crf::conv

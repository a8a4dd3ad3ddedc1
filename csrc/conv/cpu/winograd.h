// Winograd convolution F(m x m, 3 x 3) over the phases of a dilated convolution. Outputs whose
// coordinates agree modulo the dilation depend on inputs of one phase only, so a 3 x 3 convolution
// of any dilation is dilation^2 ordinary ones. Each of those is cut into tiles of up to 4 x 4
// outputs (toom_cook.h): 2.25 multiplications per output and channel instead of 9. Tiles at the end
// of the small phases of large dilations are smaller, so fewer zeros are multiplied. Stride 1, any
// padding.
//
// For a chunk of tiles: (1) transform the inputs to 36 matrices; (2) multiply each with its matrix
// of weights; (3) transform to outputs, with the epilogue. The float32 error is about 1e-5 of the
// largest output (docs/convolution.md). The bits do not depend on the number of threads or on the
// batch.
#pragma once

#include <cstdint>

#include "conv/shapes.h"

namespace deeplab_crf::conv {

// Elements of the transformed weights: 36 (K', C), K' the filters rounded up to whole panels.
int64_t winograd_weights_size(const Shape& shape);
// Elements of the workspace: 36 (C + K + padding) for each tile of a chunk, which has at most
// kMostTiles tiles, or one row of them.
int64_t winograd_workspace_size(const Shape& shape);
constexpr int64_t kFewestTiles = 32, kMostTiles = 160;
// Multiplications per input channel and filter, for the cost model.
int64_t winograd_products(const Shape& shape);

// weight (K, C, 3, 3), strides in elements.
void pack_winograd_weights(const Shape& shape, const float* weight, const int64_t* strides, float* transformed, int threads);

// Returns false if a sum was not finite: an input was not, or a sum overflowed. Values near it may
// then be NaN where a direct convolution has none, so `out` must not be used.
bool winograd(const Shape& shape, const float* x, const float* transformed, const Epilogue& epilogue, float* out, float* workspace,
              int threads);

}  // namespace deeplab_crf::conv

// Winograd convolution F(m x m, 3 x 3) over the phases of a dilated convolution
// (conv/cpu/winograd.h) with a library's matrix products: (1) inputs are transformed to one matrix
// for each pair of points; (2) the caller multiplies each with its matrix of weights; (3) products
// are transformed to outputs, with the epilogue. Stride 1, any padding and dilation, float32. Plain
// C++ without CUDA headers.
//
// All tiles of a call have the same size, up to 4 x 4, chosen for each axis, so all matrices have
// the same number of rows, and their products are one batch. Outputs of a phase's last tile that
// lie beyond the map are computed but not written.
#pragma once

#include <cstdint>

#include "conv/shapes.h"
#include "support/cuda/device.h"

namespace deeplab_crf::cuda {

// The tiles of an axis, phase by phase. The first `longer` phases have outputs / phases + 1
// outputs.
struct AxisTiles {
  int size;  // m
  int64_t longer;
  int64_t in_longer, in_shorter;  // tiles of a longer and of a shorter phase
  int64_t count;
};

// Chooses the tile size with the fewest products; of equal ones the largest.
AxisTiles tiles_of(const conv::Axis& axis);

struct WinogradTiles {
  conv::Shape shape;
  AxisTiles rows, columns;

  explicit WinogradTiles(const conv::Shape& shape) : shape(shape), rows(tiles_of(shape.rows)), columns(tiles_of(shape.columns)) {}
  int64_t count() const { return shape.batch * rows.count * columns.count; }
  // Points, and so matrices: (m + 2) of the rows times (m + 2) of the columns.
  int64_t matrices() const { return static_cast<int64_t>(rows.size + 2) * (columns.size + 2); }
};

// Tiles [first, first + count) in the order of images, rows, columns.
struct TileRange {
  int64_t first, count;
};

// weight (K, C, 3, 3), strides in elements -> transformed (matrices, C, K): G g G^T.
void winograd_weights(const WinogradTiles& tiles, const float* weight, const int64_t* strides, float* transformed,
                      const Queue& queue);

// x (B, H, W, C) -> transformed (matrices, range.count, C): D d D^T.
void winograd_inputs(const WinogradTiles& tiles, const TileRange& range, const float* x, float* transformed, const Queue& queue);

// products (matrices, range.count, K) -> the outputs of those tiles in out (B, OH, OW, K):
// relu(A^T m A + bias + residual).
void winograd_outputs(const WinogradTiles& tiles, const TileRange& range, const float* products, const conv::Epilogue& epilogue,
                      float* out, const Queue& queue);

}  // namespace deeplab_crf::cuda

// The CPU kernels of convolution as tables of functions, one of each per instruction set. Each works in one thread; direct.cpp,
// shifted.cpp and winograd.cpp hand out the work.
//
// A panel is a matrix (depth, panel_width) of weights, row by row: `panel_width` neighbouring output columns, the widest that the
// product of a few rows keeps in registers. Matrices of more columns are panels one after the other, the last padded with zeros.
#pragma once

#include <cstdint>

#include "conv/shapes.h"
#include "conv/toom_cook.h"

namespace deeplab_crf::conv {

// One tile of outputs along one axis: outputs start, start + dilation, ..., `size` of them.
struct AxisTile {
  int64_t start;
  int size;
};

// The matrices of one chunk of tiles. Matrix (i, j), of point i along the rows and j along the columns, has a row for each pair of
// a row tile that has point i and a column tile that has point j; tiles come in descending size, so that these are the first
// row_counts[i] and column_counts[j].
struct TileMatrices {
  float* data;
  int64_t begin[kMaxPoints][kMaxPoints];
  int64_t column_counts[kMaxPoints];
  int64_t stride;  // elements between rows
};

struct TileRow {
  const AxisTile* columns;  // every column tile
  int64_t num_columns;
  AxisTile row;
  int64_t index;  // of the row tile in its chunk
};

struct ProductKernels {
  int64_t lanes;
  int64_t panel_width;

  // c (+)= a b. a (rows, depth), c (rows, vectors * lanes), rows that far apart; b a panel, from one of its vectors on.
  void (*multiply)(const float* a, int64_t a_stride, int64_t rows, const float* b, int64_t depth, float* c, int64_t c_stride,
                   int vectors, bool accumulate);

  // out[r] = epilogue(c[r]) for `rows` rows of `filters` values; the epilogue's pointers are those of the first value.
  void (*finish)(const float* c, int64_t c_stride, int64_t rows, int64_t filters, const Epilogue& epilogue, float* out,
                 int64_t out_stride);
  // sum += values.
  void (*add)(const float* values, int64_t count, float* sum);
  // out (columns, rows) = in (rows, columns); strides between rows of either.
  void (*transpose)(const float* in, int64_t rows, int64_t columns, int64_t in_stride, float* out, int64_t out_stride);
};

struct WinogradKernels {
  // Rows of the matrices of D d D^T for the tiles of one row tile. x: one image. zeros: (C) zeros, read outside the map.
  void (*transform_input)(const Shape& shape, const float* x, const float* zeros, const TileRow& tiles,
                          const TileMatrices& matrices);
  // Outputs A^T m A of the tiles of one row tile, with the epilogue, whose residual is, like out, that of the image. False if
  // anything before the epilogue was not finite.
  bool (*transform_output)(const Shape& shape, const TileMatrices& matrices, const TileRow& tiles, const Epilogue& epilogue,
                           float* out);
  // G g G^T of panel number `panel` into the 36 matrices (panels, C, panel_width) at u, `matrix_stride` elements apart.
  // weight: (K, C, 3, 3) with strides in elements.
  void (*transform_weights)(const Shape& shape, const float* weight, const int64_t* strides, int64_t panel, int64_t panel_width,
                            float* u, int64_t matrix_stride);
};

// The tables of the active instruction set.
const ProductKernels& product_kernels();
const WinogradKernels& winograd_kernels();

}  // namespace deeplab_crf::conv

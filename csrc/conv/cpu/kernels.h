// The CPU kernels of convolution as tables of functions, one table per instruction set. Each kernel
// runs in one thread; direct.cpp, shifted.cpp and winograd.cpp distribute the work.
//
// A panel is a matrix (depth, panel_width) of weights, row by row: as many neighbouring output
// columns as the product of a few rows keeps in registers. A matrix with more columns is a sequence
// of panels, the last one padded with zeros.
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

// The matrices of one chunk of tiles. Matrix (i, j), for point i along the rows and j along the
// columns, has a row for each pair of a row tile with point i and a column tile with point j. Tiles
// come in descending size, so these are the first row_counts[i] and column_counts[j] tiles.
struct TileMatrices {
  float* data;
  int64_t begin[kMaxPoints][kMaxPoints];
  int64_t column_counts[kMaxPoints];
  int64_t stride;  // elements between rows
};

struct TileRow {
  const AxisTile* columns;  // all column tiles
  int64_t num_columns;
  AxisTile row;
  int64_t index;  // number of the row tile in its chunk
};

struct ProductKernels {
  int64_t lanes;
  int64_t panel_width;

  // c = a b, or c += a b if accumulate. a (rows, depth) and c (rows, vectors * lanes) have strides
  // between rows; b is a panel, from one of its vectors on.
  void (*multiply)(const float* a, int64_t a_stride, int64_t rows, const float* b, int64_t depth, float* c, int64_t c_stride,
                   int vectors, bool accumulate);

  // out[r] = epilogue(c[r]) for `rows` rows of `filters` values. The epilogue's pointers belong to
  // the first value.
  void (*finish)(const float* c, int64_t c_stride, int64_t rows, int64_t filters, const Epilogue& epilogue, float* out,
                 int64_t out_stride);
  // sum += values, `count` elements.
  void (*add)(const float* values, int64_t count, float* sum);
  // out (columns, rows) = in (rows, columns); strides between rows of either.
  void (*transpose)(const float* in, int64_t rows, int64_t columns, int64_t in_stride, float* out, int64_t out_stride);
};

struct WinogradKernels {
  // Writes the matrix rows D d D^T for the tiles of one row tile. x: one image. zeros: (C) zeros,
  // read outside the map.
  void (*transform_input)(const Shape& shape, const float* x, const float* zeros, const TileRow& tiles,
                          const TileMatrices& matrices);
  // Writes the outputs A^T m A of the tiles of one row tile, with the epilogue. out and the
  // residual belong to the tile's image. Returns false if a value before the epilogue was not
  // finite.
  bool (*transform_output)(const Shape& shape, const TileMatrices& matrices, const TileRow& tiles, const Epilogue& epilogue,
                           float* out);
  // Writes G g G^T of panel number `panel` to the 36 matrices (panels, C, panel_width) at u,
  // `matrix_stride` elements apart. weight: (K, C, 3, 3) with strides in elements.
  void (*transform_weights)(const Shape& shape, const float* weight, const int64_t* strides, int64_t panel, int64_t panel_width,
                            float* u, int64_t matrix_stride);
};

// Return the tables of the active instruction set.
const ProductKernels& product_kernels();
const WinogradKernels& winograd_kernels();

}  // namespace deeplab_crf::conv

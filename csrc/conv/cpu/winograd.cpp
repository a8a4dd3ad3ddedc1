#include "conv/cpu/winograd.h"

#include <algorithm>
#include <atomic>
#include <vector>

#include "conv/cpu/kernels.h"
#include "support/divide_up.h"
#include "support/parallel.h"

namespace deeplab_crf::conv {
namespace {

// One cache line. Rows and matrices at distances of a power of two would share cache sets.
constexpr int64_t kPadding = 16;

int64_t panels_of(int64_t columns) { return divide_up(columns, product_kernels().panel_width); }

int64_t weight_matrix_stride(const Shape& shape) {
  return panels_of(shape.filters) * shape.channels * product_kernels().panel_width + kPadding;
}

int64_t input_stride(const Shape& shape) { return divide_up(shape.channels, kPadding) * kPadding + kPadding; }
int64_t output_stride(const Shape& shape) { return panels_of(shape.filters) * product_kernels().panel_width + kPadding; }

// The tiles of an axis, the largest first.
std::vector<AxisTile> make_tiles(const Axis& axis) {
  std::vector<AxisTile> tiles;
  for (int64_t phase = 0; phase < std::min(axis.dilation, axis.out); ++phase) {
    const int64_t outputs = divide_up(axis.out - phase, axis.dilation);
    for (int64_t first = 0; first < outputs; first += kLargestTile) {
      tiles.push_back({phase + first * axis.dilation, static_cast<int>(std::min<int64_t>(kLargestTile, outputs - first))});
    }
  }
  std::stable_sort(tiles.begin(), tiles.end(), [](const AxisTile& a, const AxisTile& b) { return a.size > b.size; });
  return tiles;
}

int64_t tiles_with_point(const AxisTile* tiles, int64_t count, int point) {
  return std::count_if(tiles, tiles + count, [=](const AxisTile& tile) { return points_of(tile.size) > point; });
}

int64_t products_along(const Axis& axis) {
  int64_t products = 0;
  for (const AxisTile& tile : make_tiles(axis)) products += points_of(tile.size);
  return products;
}

// Most elements of both sets of matrices for one row of tiles.
int64_t row_size(const Shape& shape, int64_t column_tiles) {
  return kMaxPoints * kMaxPoints * column_tiles * (input_stride(shape) + output_stride(shape));
}

// Rows of tiles in a chunk. The transformed inputs and outputs, C + K per tile, should stay in a
// near cache; the weights that each chunk reads, C K, should be little beside them.
int64_t chunk_rows(const Shape& shape, int64_t rows, int64_t column_tiles) {
  const int64_t balance = shape.channels * shape.filters / (shape.channels + shape.filters);
  const int64_t tiles = std::clamp(balance, kFewestTiles, kMostTiles);
  const int64_t most = std::max<int64_t>(1, tiles / std::max<int64_t>(1, column_tiles));
  const int64_t chunks = std::max<int64_t>(1, divide_up(rows, most));
  return divide_up(rows, chunks);
}

struct RowTile {
  int64_t image;
  AxisTile tile;
};

class Convolution {
 public:
  Convolution(const Shape& shape, const float* x, const float* transformed, const Epilogue& epilogue, float* out, float* workspace,
              int threads)
      : shape_(shape), x_(x), transformed_(transformed), epilogue_(epilogue), out_(out), zeros_(workspace), threads_(threads) {
    matrices_ = workspace + input_stride(shape);
    std::fill(workspace, matrices_, 0.0f);
    columns_ = make_tiles(shape.columns);
    const std::vector<AxisTile> rows = make_tiles(shape.rows);
    for (const AxisTile& tile : rows) {
      for (int64_t image = 0; image < shape.batch; ++image) rows_.push_back({image, tile});
    }
  }

  bool run() {
    const int64_t rows = static_cast<int64_t>(rows_.size());
    const int64_t most = chunk_rows(shape_, rows, static_cast<int64_t>(columns_.size()));
    for (int64_t begin = 0; begin < rows; begin += most) run_chunk(begin, std::min(rows, begin + most));
    return finite_;
  }

 private:
  void run_chunk(int64_t begin, int64_t end) {
    TileMatrices inputs{matrices_, {}, {}, input_stride(shape_)}, outputs{nullptr, {}, {}, output_stride(shape_)};
    int64_t row_counts[kMaxPoints], size = 0, out_size = 0;
    for (int i = 0; i < kMaxPoints; ++i) {
      inputs.column_counts[i] = outputs.column_counts[i] = tiles_with_point(columns_.data(), columns_.size(), i);
      row_counts[i] = std::count_if(rows_.begin() + begin, rows_.begin() + end,
                                    [=](const RowTile& row) { return points_of(row.tile.size) > i; });
    }
    for (int i = 0; i < kMaxPoints; ++i) {
      for (int j = 0; j < kMaxPoints; ++j) {
        const int64_t rows = row_counts[i] * inputs.column_counts[j];
        inputs.begin[i][j] = size;
        outputs.begin[i][j] = out_size;
        size += rows * inputs.stride;
        out_size += rows * outputs.stride;
      }
    }
    outputs.data = matrices_ + size;

    parallel_for(threads_, end - begin, [&](int64_t row) {
      const RowTile& tile = rows_[begin + row];
      const float* image = x_ + tile.image * shape_.rows.in * shape_.columns.in * shape_.channels;
      winograd_kernels().transform_input(shape_, image, zeros_, row_of_tiles(tile, row), inputs);
    });
    const int64_t panels = panels_of(shape_.filters);
    parallel_for(threads_, kMaxPoints * kMaxPoints * panels, [&](int64_t task) {
      const int i = static_cast<int>(task / panels / kMaxPoints), j = static_cast<int>(task / panels % kMaxPoints);
      multiply(inputs, outputs, row_counts[i] * inputs.column_counts[j], i, j, task % panels);
    });
    parallel_for(threads_, end - begin, [&](int64_t row) {
      const RowTile& tile = rows_[begin + row];
      const int64_t first = tile.image * shape_.rows.out * shape_.columns.out * shape_.filters;
      Epilogue epilogue = epilogue_;
      if (epilogue.residual != nullptr) epilogue.residual += first;
      if (!winograd_kernels().transform_output(shape_, outputs, row_of_tiles(tile, row), epilogue, out_ + first)) finite_ = false;
    });
  }

  TileRow row_of_tiles(const RowTile& row, int64_t index) const {
    return {columns_.data(), static_cast<int64_t>(columns_.size()), row.tile, index};
  }

  void multiply(const TileMatrices& inputs, const TileMatrices& outputs, int64_t rows, int i, int j, int64_t panel) const {
    const ProductKernels& kernels = product_kernels();
    const int64_t width = kernels.panel_width;
    const int64_t used = std::min(width, shape_.filters - panel * width);
    const float* weights = transformed_ + (i * kMaxPoints + j) * weight_matrix_stride(shape_) + panel * shape_.channels * width;
    kernels.multiply(inputs.data + inputs.begin[i][j], inputs.stride, rows, weights, shape_.channels,
                     outputs.data + outputs.begin[i][j] + panel * width, outputs.stride,
                     static_cast<int>(divide_up(used, kernels.lanes)), false);
  }

  const Shape& shape_;
  const float* x_;
  const float* transformed_;
  Epilogue epilogue_;
  float* out_;
  float* zeros_;
  float* matrices_;
  int threads_;
  std::vector<AxisTile> columns_;
  std::vector<RowTile> rows_;
  std::atomic<bool> finite_{true};
};

}  // namespace

int64_t winograd_weights_size(const Shape& shape) { return kMaxPoints * kMaxPoints * weight_matrix_stride(shape); }

int64_t winograd_workspace_size(const Shape& shape) {
  const int64_t columns = static_cast<int64_t>(make_tiles(shape.columns).size());
  const int64_t rows = shape.batch * static_cast<int64_t>(make_tiles(shape.rows).size());
  return input_stride(shape) + chunk_rows(shape, rows, columns) * row_size(shape, columns);
}

int64_t winograd_products(const Shape& shape) { return shape.batch * products_along(shape.rows) * products_along(shape.columns); }

void pack_winograd_weights(const Shape& shape, const float* weight, const int64_t* strides, float* transformed, int threads) {
  parallel_for(threads, panels_of(shape.filters), [&](int64_t panel) {
    winograd_kernels().transform_weights(shape, weight, strides, panel, product_kernels().panel_width, transformed,
                                         weight_matrix_stride(shape));
  });
}

bool winograd(const Shape& shape, const float* x, const float* transformed, const Epilogue& epilogue, float* out, float* workspace,
              int threads) {
  return Convolution(shape, x, transformed, epilogue, out, workspace, threads).run();
}

}  // namespace deeplab_crf::conv

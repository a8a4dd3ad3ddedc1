// The transforms of Winograd convolution, one thread per tile and channel. Neighbouring threads
// have neighbouring channels, so each load and store of a warp is one line of 128 bytes. All values
// of a tile stay in registers.
#pragma once

#include <utility>

#include "conv/cuda/winograd.h"
#include "conv/toom_cook.h"
#include "support/cuda/launch.h"

namespace deeplab_crf::cuda {

template <int Tile>
struct Data {
  static constexpr conv::DataMatrix<Tile> matrix = conv::make_data_matrix<Tile>();
  static constexpr int kRows = Tile + 2, kColumns = Tile + 2;
};
template <int Tile>
struct Output {
  static constexpr conv::OutputMatrix<Tile> matrix = conv::make_output_matrix<Tile>();
  static constexpr int kRows = Tile, kColumns = Tile + 2;
};
struct Weights {
  static constexpr conv::WeightMatrix matrix = conv::make_weight_matrix();
  static constexpr int kColumns = conv::kTaps;
};

// Adds M[Row][k] in[k] to `sum` for k from K on, leaving out zero factors.
template <class M, int Row, int K>
__device__ float dot(const float* in, float sum) {
  if constexpr (K == M::kColumns) {
    return sum;
  } else {
    constexpr float factor = M::matrix.at[Row][K];
    if constexpr (factor == 0) {
      return dot<M, Row, K + 1>(in, sum);
    } else {
      return dot<M, Row, K + 1>(in, sum + factor * in[K]);
    }
  }
}

// out[i * Step] = sum over k of M[i][k] in[k]: one side of a two-dimensional transform.
template <class M, int Step, int... Row>
__device__ void apply(const float* in, float* out, std::integer_sequence<int, Row...>) {
  ((out[Row * Step] = dot<M, Row, 0>(in, 0.0f)), ...);
}

template <int Size>
using Sequence = std::make_integer_sequence<int, Size>;

// The first output of tile number `tile` of an axis.
__device__ inline int64_t start_of(const AxisTiles& tiles, const conv::Axis& axis, int64_t tile) {
  const int64_t in_longer = tiles.longer * tiles.in_longer;
  const bool longer = tile < in_longer;
  const int64_t number = longer ? tile : tile - in_longer, in_phase = longer ? tiles.in_longer : tiles.in_shorter;
  const int64_t phase = number / in_phase + (longer ? 0 : tiles.longer);
  return phase + number % in_phase * tiles.size * axis.dilation;
}

// The image of a tile and its first output.
struct TilePlace {
  int64_t image, row, column;
};
__device__ inline TilePlace place_of(const WinogradTiles& tiles, int64_t tile) {
  const int64_t column = tile % tiles.columns.count, row = tile / tiles.columns.count % tiles.rows.count;
  return {tile / tiles.columns.count / tiles.rows.count, start_of(tiles.rows, tiles.shape.rows, row),
          start_of(tiles.columns, tiles.shape.columns, column)};
}

__device__ inline bool is_within(int64_t at, int64_t end) { return at >= 0 && at < end; }

// U_ij = (G g G^T)_ij for the first Rows + 2 and Columns + 2 points. One thread per filter and
// channel; neighbours have neighbouring filters. Reads 9 floats by stride, writes (Rows +
// 2)(Columns + 2). Repeats bit for bit.
template <int Rows, int Columns>
__global__ void __launch_bounds__(kThreads)
    transform_weights(conv::Shape shape, const float* weight, int64_t by_filter, int64_t by_channel, int64_t by_row,
                      int64_t by_column, float* transformed) {
  const int64_t item = thread_number(), size = shape.filters * shape.channels;
  if (item >= size) return;
  const float* taps = weight + item % shape.filters * by_filter + item / shape.filters * by_channel;
  constexpr int kHeight = Rows + 2, kWidth = Columns + 2;
  float half[kHeight][conv::kTaps];
#pragma unroll
  for (int x = 0; x < conv::kTaps; ++x) {
    float in[conv::kTaps];
#pragma unroll
    for (int y = 0; y < conv::kTaps; ++y) in[y] = taps[y * by_row + x * by_column];
    apply<Weights, conv::kTaps>(in, &half[0][x], Sequence<kHeight>{});
  }
#pragma unroll
  for (int i = 0; i < kHeight; ++i) {
    float out[kWidth];
    apply<Weights, 1>(half[i], out, Sequence<kWidth>{});
#pragma unroll
    for (int j = 0; j < kWidth; ++j) transformed[(i * kWidth + j) * size + item] = out[j];
  }
}

// V_ij = (D d D^T)_ij of the inputs d that a tile of Rows x Columns outputs reads, zeros outside
// the map. One thread per tile and channel: (Rows + 2)(Columns + 2) floats in and out, for 4 x 4
// 288 bytes and about 240 flops. Tiles of a phase share 2 of their 6 rows and columns, which come
// from the cache. Repeats bit for bit.
template <int Rows, int Columns>
__global__ void __launch_bounds__(kThreads)
    transform_inputs(WinogradTiles tiles, TileRange range, const float* x, float* transformed) {
  const conv::Shape& shape = tiles.shape;
  const int64_t item = thread_number(), size = range.count * shape.channels;
  if (item >= size) return;
  const TilePlace place = place_of(tiles, range.first + item / shape.channels);
  const float* image = x + place.image * shape.rows.in * shape.columns.in * shape.channels + item % shape.channels;
  const int64_t top = place.row - shape.rows.padding, left = place.column - shape.columns.padding;
  constexpr int kHeight = Rows + 2, kWidth = Columns + 2;
  float half[kHeight][kWidth];
#pragma unroll
  for (int j = 0; j < kWidth; ++j) {
    const int64_t column = left + j * shape.columns.dilation;
    float in[kHeight];
#pragma unroll
    for (int i = 0; i < kHeight; ++i) {
      const int64_t row = top + i * shape.rows.dilation;
      const bool inside = is_within(row, shape.rows.in) && is_within(column, shape.columns.in);
      in[i] = inside ? image[(row * shape.columns.in + column) * shape.channels] : 0.0f;
    }
    apply<Data<Rows>, kWidth>(in, &half[0][j], Sequence<kHeight>{});
  }
#pragma unroll
  for (int i = 0; i < kHeight; ++i) {
    float out[kWidth];
    apply<Data<Columns>, 1>(half[i], out, Sequence<kWidth>{});
#pragma unroll
    for (int j = 0; j < kWidth; ++j) transformed[(i * kWidth + j) * size + item] = out[j];
  }
}

// y = relu((A^T m A) + bias + residual) for a tile of Rows x Columns outputs; those beyond the map
// are not written. One thread per tile and filter: (Rows + 2)(Columns + 2) floats in, Rows Columns
// out and as many of a residual; for 4 x 4 208 bytes (272 with a residual) and about 200 flops.
// Repeats bit for bit.
template <int Rows, int Columns>
__global__ void __launch_bounds__(kThreads)
    transform_outputs(WinogradTiles tiles, TileRange range, const float* products, conv::Epilogue epilogue, float* out) {
  const conv::Shape& shape = tiles.shape;
  const int64_t item = thread_number(), size = range.count * shape.filters;
  if (item >= size) return;
  const TilePlace place = place_of(tiles, range.first + item / shape.filters);
  const int64_t filter = item % shape.filters;
  constexpr int kHeight = Rows + 2, kWidth = Columns + 2;
  float half[Rows][kWidth];
#pragma unroll
  for (int j = 0; j < kWidth; ++j) {
    float in[kHeight];
#pragma unroll
    for (int i = 0; i < kHeight; ++i) in[i] = products[(i * kWidth + j) * size + item];
    apply<Output<Rows>, kWidth>(in, &half[0][j], Sequence<Rows>{});
  }
  const float bias = epilogue.bias != nullptr ? epilogue.bias[filter] : 0.0f;
#pragma unroll
  for (int i = 0; i < Rows; ++i) {
    const int64_t row = place.row + i * shape.rows.dilation;
    float line[Columns];
    apply<Output<Columns>, 1>(half[i], line, Sequence<Columns>{});
#pragma unroll
    for (int j = 0; j < Columns; ++j) {
      const int64_t column = place.column + j * shape.columns.dilation;
      if (row >= shape.rows.out || column >= shape.columns.out) continue;
      const int64_t at = ((place.image * shape.rows.out + row) * shape.columns.out + column) * shape.filters + filter;
      float y = line[j] + bias;
      if (epilogue.residual != nullptr) y += epilogue.residual[at];
      out[at] = epilogue.relu && y < 0 ? 0.0f : y;
    }
  }
}

}  // namespace deeplab_crf::cuda

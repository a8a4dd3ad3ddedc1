// The transforms of Winograd convolution; each lane works on one channel.
#include <utility>

#include "conv/cpu/denormals.h"
#include "conv/cpu/kernels.h"
#include "support/simd.h"

namespace deeplab_crf::DEEPLAB_CRF_ISA {
namespace {

using conv::kMaxPoints;
using P = Pack<float, kLongLanes<float>>;
constexpr int kLanes = P::kLanes;

// Adds M[Row][k] * in(k) to `sum` for k from K on, leaving out zero factors. `dot` starts the sum
// with the first factor that is not zero.
template <const auto& M, int Row, int K, int Size, class In>
DEEPLAB_CRF_INLINE P dot_from(const In& in, P sum) {
  if constexpr (K == Size) {
    return sum;
  } else {
    constexpr float factor = M.at[Row][K];
    if constexpr (factor == 0) {
      return dot_from<M, Row, K + 1, Size>(in, sum);
    } else {
      return dot_from<M, Row, K + 1, Size>(in, sum + in(K) * factor);
    }
  }
}

template <const auto& M, int Row, int K, int Size, class In>
DEEPLAB_CRF_INLINE P dot(const In& in) {
  constexpr float factor = M.at[Row][K];
  if constexpr (factor == 0) {
    return dot<M, Row, K + 1, Size>(in);
  } else {
    return dot_from<M, Row, K + 1, Size>(in, in(K) * factor);
  }
}

// out(i) = sum over k of M[i][k] in(k): one side of a two-dimensional transform.
template <const auto& M, int Size, class In, class Out, int... Row>
DEEPLAB_CRF_INLINE void apply(const In& in, const Out& out, std::integer_sequence<int, Row...>) {
  (out(Row, dot<M, Row, 0, Size>(in)), ...);
}

template <int Tile>
constexpr conv::DataMatrix<Tile> kData = conv::make_data_matrix<Tile>();
template <int Tile>
constexpr conv::OutputMatrix<Tile> kOutput = conv::make_output_matrix<Tile>();
constexpr conv::WeightMatrix kWeights = conv::make_weight_matrix();

template <int Size>
using Sequence = std::make_integer_sequence<int, Size>;

// The first input that a tile reads along an axis.
int64_t first_input(const conv::Axis& axis, const conv::AxisTile& tile) { return tile.start - axis.padding; }

// Transforms the inputs of one tile of Rows x Columns outputs: (Rows + 2)(Columns + 2) loads and
// stores per pack of channels, and about 240 flops per channel for 4 x 4.
template <int Rows, int Columns>
void transform_input_tile(const conv::Shape& shape, const float* x, const float* zeros, const conv::AxisTile& row,
                          int64_t row_index, const conv::AxisTile& column, int64_t column_index,
                          const conv::TileMatrices& matrices) {
  constexpr int kHeight = Rows + 2, kWidth = Columns + 2;
  const int64_t channels = shape.channels;
  const float* from[kHeight][kWidth];
  float* to[kHeight][kWidth];
  for (int i = 0; i < kHeight; ++i) {
    const int64_t y = first_input(shape.rows, row) + i * shape.rows.dilation;
    for (int j = 0; j < kWidth; ++j) {
      const int64_t left = first_input(shape.columns, column) + j * shape.columns.dilation;
      const bool inside = y >= 0 && y < shape.rows.in && left >= 0 && left < shape.columns.in;
      from[i][j] = inside ? x + (y * shape.columns.in + left) * channels : zeros;
      to[i][j] = matrices.data + matrices.begin[i][j] + (row_index * matrices.column_counts[j] + column_index) * matrices.stride;
    }
  }
  const auto transform = [&](int64_t c, const auto& load, const auto& store) DEEPLAB_CRF_INLINE_LAMBDA {
    P half[kHeight][kWidth];
    for (int j = 0; j < kWidth; ++j) {
      apply<kData<Rows>, kHeight>([&](int i) DEEPLAB_CRF_INLINE_LAMBDA { return load(from[i][j] + c); },
                                  [&](int i, P value) DEEPLAB_CRF_INLINE_LAMBDA { half[i][j] = value; }, Sequence<kHeight>{});
    }
    for (int i = 0; i < kHeight; ++i) {
      apply<kData<Columns>, kWidth>([&](int j) DEEPLAB_CRF_INLINE_LAMBDA { return half[i][j]; },
                                    [&](int j, P value) DEEPLAB_CRF_INLINE_LAMBDA { store(to[i][j] + c, value); },
                                    Sequence<kWidth>{});
    }
  };
  int64_t c = 0;
  for (; c + kLanes <= channels; c += kLanes) {
    transform(
        c, [](const float* p) DEEPLAB_CRF_INLINE_LAMBDA { return P::load(p); },
        [](float* p, P value) DEEPLAB_CRF_INLINE_LAMBDA { value.store(p); });
  }
  if (c < channels) {
    const int64_t left = channels - c;
    transform(
        c, [=](const float* p) DEEPLAB_CRF_INLINE_LAMBDA { return P::load_partial(p, left); },
        [=](float* p, P value) DEEPLAB_CRF_INLINE_LAMBDA { value.store_partial(p, left); });
  }
}

// Transforms the products of one tile to its outputs. Returns zeros, or NaN where one was not
// finite.
template <int Rows, int Columns>
P transform_output_tile(const conv::Shape& shape, const conv::TileMatrices& matrices, const conv::AxisTile& row, int64_t row_index,
                        const conv::AxisTile& column, int64_t column_index, const conv::Epilogue& epilogue, float* out) {
  constexpr int kHeight = Rows + 2, kWidth = Columns + 2;
  const int64_t filters = shape.filters;
  const float* from[kHeight][kWidth];
  int64_t to[Rows][Columns];
  for (int i = 0; i < kHeight; ++i) {
    for (int j = 0; j < kWidth; ++j) {
      from[i][j] = matrices.data + matrices.begin[i][j] + (row_index * matrices.column_counts[j] + column_index) * matrices.stride;
    }
  }
  for (int i = 0; i < Rows; ++i) {
    for (int j = 0; j < Columns; ++j) {
      to[i][j] = ((row.start + i * shape.rows.dilation) * shape.columns.out + column.start + j * shape.columns.dilation) * filters;
    }
  }
  P finite = P::zero();
  const auto transform = [&](int64_t k, const auto& load, const auto& store) DEEPLAB_CRF_INLINE_LAMBDA {
    P half[Rows][kWidth];
    for (int j = 0; j < kWidth; ++j) {
      apply<kOutput<Rows>, kHeight>([&](int i) DEEPLAB_CRF_INLINE_LAMBDA { return P::load(from[i][j] + k); },
                                    [&](int i, P value) DEEPLAB_CRF_INLINE_LAMBDA { half[i][j] = value; }, Sequence<Rows>{});
    }
    const P bias = epilogue.bias != nullptr ? load(epilogue.bias + k) : P::zero();
    for (int i = 0; i < Rows; ++i) {
      apply<kOutput<Columns>, kWidth>([&](int j) DEEPLAB_CRF_INLINE_LAMBDA { return half[i][j]; },
                                      [&](int j, P y) DEEPLAB_CRF_INLINE_LAMBDA {
                                        finite = finite + y * 0.0f;
                                        y = y + bias;
                                        if (epilogue.residual != nullptr) y = y + load(epilogue.residual + to[i][j] + k);
                                        if (epilogue.relu) y = P{y.v < P::zero().v ? P::zero().v : y.v};
                                        store(out + to[i][j] + k, y);
                                      },
                                      Sequence<Columns>{});
    }
  };
  int64_t k = 0;
  for (; k + kLanes <= filters; k += kLanes) {
    transform(
        k, [](const float* p) DEEPLAB_CRF_INLINE_LAMBDA { return P::load(p); },
        [](float* p, P value) DEEPLAB_CRF_INLINE_LAMBDA { value.store(p); });
  }
  if (k < filters) {
    // Lanes beyond the filters hold products with the panel's zeros. They are NaN only if an input
    // is not finite, so including them in `finite` is right.
    const int64_t left = filters - k;
    transform(
        k, [=](const float* p) DEEPLAB_CRF_INLINE_LAMBDA { return P::load_partial(p, left); },
        [=](float* p, P value) DEEPLAB_CRF_INLINE_LAMBDA { value.store_partial(p, left); });
  }
  return finite;
}

// Calls call<Rows, Columns>() with the sizes of a tile as constants.
template <class Call>
DEEPLAB_CRF_INLINE void for_sizes(int rows, int columns, const Call& call) {
  const auto for_columns = [&]<int Rows>() {
    switch (columns) {
      case 1:
        return call.template operator()<Rows, 1>();
      case 2:
        return call.template operator()<Rows, 2>();
      case 3:
        return call.template operator()<Rows, 3>();
      default:
        return call.template operator()<Rows, 4>();
    }
  };
  switch (rows) {
    case 1:
      return for_columns.template operator()<1>();
    case 2:
      return for_columns.template operator()<2>();
    case 3:
      return for_columns.template operator()<3>();
    default:
      return for_columns.template operator()<4>();
  }
}

void transform_input(const conv::Shape& shape, const float* x, const float* zeros, const conv::TileRow& tiles,
                     const conv::TileMatrices& matrices) {
  for (int64_t b = 0; b < tiles.num_columns; ++b) {
    for_sizes(tiles.row.size, tiles.columns[b].size, [&]<int Rows, int Columns>() {
      transform_input_tile<Rows, Columns>(shape, x, zeros, tiles.row, tiles.index, tiles.columns[b], b, matrices);
    });
  }
}

bool transform_output(const conv::Shape& shape, const conv::TileMatrices& matrices, const conv::TileRow& tiles,
                      const conv::Epilogue& epilogue, float* out) {
  P finite = P::zero();
  for (int64_t b = 0; b < tiles.num_columns; ++b) {
    for_sizes(tiles.row.size, tiles.columns[b].size, [&]<int Rows, int Columns>() {
      finite = finite +
               transform_output_tile<Rows, Columns>(shape, matrices, tiles.row, tiles.index, tiles.columns[b], b, epilogue, out);
    });
  }
  return first_lane(across_lanes<kLanes / 2>(finite, Sum{})) == 0;
}

P flush_denormals(P value) {
  const P bound = P::broadcast(conv::kSmallestNormal);
  const P magnitude{value.v < P::zero().v ? -value.v : value.v};
  return P{magnitude.v < bound.v ? P::zero().v : value.v};
}

void transform_weights(const conv::Shape& shape, const float* weight, const int64_t* strides, int64_t panel, int64_t panel_width,
                       float* u, int64_t matrix_stride) {
  for (int64_t k = panel * panel_width; k < (panel + 1) * panel_width; k += kLanes) {
    for (int64_t c = 0; c < shape.channels; ++c) {
      alignas(64) float taps[conv::kTaps][conv::kTaps][kLanes] = {};
      for (int64_t lane = 0; lane < kLanes && k + lane < shape.filters; ++lane) {
        const float* from = weight + (k + lane) * strides[0] + c * strides[1];
        for (int y = 0; y < conv::kTaps; ++y) {
          for (int x = 0; x < conv::kTaps; ++x) taps[y][x][lane] = from[y * strides[2] + x * strides[3]];
        }
      }
      P half[kMaxPoints][conv::kTaps];
      for (int x = 0; x < conv::kTaps; ++x) {
        apply<kWeights, conv::kTaps>([&](int y) DEEPLAB_CRF_INLINE_LAMBDA { return P::load(taps[y][x]); },
                                     [&](int i, P value) DEEPLAB_CRF_INLINE_LAMBDA { half[i][x] = value; }, Sequence<kMaxPoints>{});
      }
      float* to = u + (panel * shape.channels + c) * panel_width + k - panel * panel_width;
      for (int i = 0; i < kMaxPoints; ++i) {
        apply<kWeights, conv::kTaps>([&](int x) DEEPLAB_CRF_INLINE_LAMBDA { return half[i][x]; },
                                     [&](int j, P value) DEEPLAB_CRF_INLINE_LAMBDA {
                                       flush_denormals(value).store(to + (i * kMaxPoints + j) * matrix_stride);
                                     },
                                     Sequence<kMaxPoints>{});
      }
    }
  }
}

}  // namespace

extern const conv::WinogradKernels winograd_kernels{transform_input, transform_output, transform_weights};

}  // namespace deeplab_crf::DEEPLAB_CRF_ISA

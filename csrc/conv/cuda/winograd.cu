#include "conv/cuda/winograd.h"
#include "conv/cuda/winograd_kernels.cuh"
#include "support/cuda/launch.h"
#include "support/divide_up.h"

namespace deeplab_crf::cuda {
namespace {

AxisTiles tiles_of_size(const conv::Axis& axis, int size) {
  const int64_t outputs = axis.out / axis.dilation, longer = axis.out % axis.dilation;
  AxisTiles tiles{size, longer, divide_up(outputs + 1, size), divide_up(outputs, size), 0};
  tiles.count = longer * tiles.in_longer + (axis.dilation - longer) * tiles.in_shorter;
  return tiles;
}

// Calls call<Rows, Columns>() with the sizes of the tiles as constants.
template <int Rows, class Call>
void for_columns(int columns, const Call& call) {
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
}

template <class Call>
void for_sizes(const WinogradTiles& tiles, const Call& call) {
  switch (tiles.rows.size) {
    case 1:
      return for_columns<1>(tiles.columns.size, call);
    case 2:
      return for_columns<2>(tiles.columns.size, call);
    case 3:
      return for_columns<3>(tiles.columns.size, call);
    default:
      return for_columns<4>(tiles.columns.size, call);
  }
}

}  // namespace

AxisTiles tiles_of(const conv::Axis& axis) {
  AxisTiles best = tiles_of_size(axis, conv::kLargestTile);
  for (int size = conv::kLargestTile - 1; size > 0; --size) {
    const AxisTiles tiles = tiles_of_size(axis, size);
    if (tiles.count * conv::points_of(size) < best.count * conv::points_of(best.size)) best = tiles;
  }
  return best;
}

void winograd_weights(const WinogradTiles& tiles, const float* weight, const int64_t* strides, float* transformed,
                      const Queue& queue) {
  const DeviceGuard guard(queue.device);
  for_sizes(tiles, [&]<int Rows, int Columns>() {
    launch("transform_weights", transform_weights<Rows, Columns>, blocks_for(tiles.shape.filters * tiles.shape.channels), queue,
           tiles.shape, weight, strides[0], strides[1], strides[2], strides[3], transformed);
  });
}

void winograd_inputs(const WinogradTiles& tiles, const TileRange& range, const float* x, float* transformed, const Queue& queue) {
  const DeviceGuard guard(queue.device);
  for_sizes(tiles, [&]<int Rows, int Columns>() {
    launch("transform_inputs", transform_inputs<Rows, Columns>, blocks_for(range.count * tiles.shape.channels), queue, tiles, range,
           x, transformed);
  });
}

void winograd_outputs(const WinogradTiles& tiles, const TileRange& range, const float* products, const conv::Epilogue& epilogue,
                      float* out, const Queue& queue) {
  const DeviceGuard guard(queue.device);
  for_sizes(tiles, [&]<int Rows, int Columns>() {
    launch("transform_outputs", transform_outputs<Rows, Columns>, blocks_for(range.count * tiles.shape.filters), queue, tiles,
           range, products, epilogue, out);
  });
}

}  // namespace deeplab_crf::cuda

#include "conv/cpu/direct.h"

#include <algorithm>

#include "conv/cpu/denormals.h"
#include "conv/cpu/kernels.h"
#include "support/divide_up.h"
#include "support/parallel.h"

namespace deeplab_crf::conv {
namespace {

// Most outputs of one task, and the width of the widest panel (512-bit vectors): 12 KB of sums.
constexpr int64_t kRun = 48;
constexpr int64_t kWidestPanel = 64;
// Floats that stay in the second-level cache beside a run of pixels.
constexpr int64_t kNearCache = int64_t{1} << 17;

int64_t panels_of(int64_t columns) { return divide_up(columns, product_kernels().panel_width); }

// Outputs [begin, end) of an axis.
struct OutputRange {
  int64_t begin, end;
};

// The outputs whose tap falls inside the map.
OutputRange outputs_of_tap(const Axis& axis, int64_t tap) {
  const int64_t shift = axis.padding - tap * axis.dilation;  // input = output * stride - shift
  const int64_t begin = shift > 0 ? divide_up(shift, axis.stride) : 0;
  const int64_t last = axis.in - 1 + shift;
  return {begin, last < 0 ? 0 : std::min(axis.out, last / axis.stride + 1)};
}

int64_t products_along(const Axis& axis) {
  int64_t products = 0;
  for (int64_t tap = 0; tap < axis.kernel; ++tap) {
    const OutputRange range = outputs_of_tap(axis, tap);
    products += std::max<int64_t>(0, range.end - range.begin);
  }
  return products;
}

// Outputs [begin, end) of one row of an image, for one panel of filters.
struct Run {
  int64_t image, row, begin, end, panel;
};

void add_taps(const Shape& shape, const float* x, const float* packed, const Run& run, float* sums) {
  const ProductKernels& kernels = product_kernels();
  const Axis &rows = shape.rows, &columns = shape.columns;
  const int64_t width = kernels.panel_width;
  const int vectors = static_cast<int>(divide_up(std::min(width, shape.filters - run.panel * width), kernels.lanes));
  const float* panel = packed + run.panel * rows.kernel * columns.kernel * shape.channels * width;
  for (int64_t ky = 0; ky < rows.kernel; ++ky) {
    const int64_t y = run.row * rows.stride - rows.padding + ky * rows.dilation;
    if (y < 0 || y >= rows.in) continue;
    const float* line = x + (run.image * rows.in + y) * columns.in * shape.channels;
    for (int64_t kx = 0; kx < columns.kernel; ++kx) {
      const OutputRange range = outputs_of_tap(columns, kx);
      const int64_t begin = std::max(range.begin, run.begin), end = std::min(range.end, run.end);
      if (begin >= end) continue;
      const int64_t left = begin * columns.stride - columns.padding + kx * columns.dilation;
      kernels.multiply(line + left * shape.channels, columns.stride * shape.channels, end - begin,
                       panel + (ky * columns.kernel + kx) * shape.channels * width, shape.channels,
                       sums + (begin - run.begin) * width, width, vectors, true);
    }
  }
}

void convolve(const Shape& shape, const float* x, const float* packed, const Epilogue& epilogue, float* out, const Run& run) {
  const ProductKernels& kernels = product_kernels();
  const int64_t width = kernels.panel_width, count = run.end - run.begin;
  alignas(64) float sums[kRun * kWidestPanel];
  std::fill(sums, sums + count * width, 0.0f);
  add_taps(shape, x, packed, run, sums);
  const int64_t first = run.panel * width;
  const int64_t at = ((run.image * shape.rows.out + run.row) * shape.columns.out + run.begin) * shape.filters + first;
  const Epilogue shifted{epilogue.bias != nullptr ? epilogue.bias + first : nullptr,
                         epilogue.residual != nullptr ? epilogue.residual + at : nullptr, epilogue.relu};
  kernels.finish(sums, width, count, std::min(width, shape.filters - first), shifted, out + at, shape.filters);
}

// A pointwise convolution as one row of all pixels; any other shape unchanged.
Shape flattened(const Shape& shape) {
  const auto pointwise = [](const Axis& axis) { return axis.kernel == 1 && axis.stride == 1 && axis.padding == 0; };
  if (!pointwise(shape.rows) || !pointwise(shape.columns)) return shape;
  const int64_t pixels = shape.batch * shape.rows.in * shape.columns.in;
  return {1, shape.channels, shape.filters, {1, 1, 1, 1, 0, 1}, {pixels, pixels, 1, 1, 0, 1}};
}

}  // namespace

int64_t direct_weights_size(const Shape& shape) {
  return panels_of(shape.filters) * shape.rows.kernel * shape.columns.kernel * shape.channels * product_kernels().panel_width;
}

void pack_direct_weights(const Shape& shape, const float* weight, const int64_t* strides, float* packed, int threads) {
  const int64_t width = product_kernels().panel_width, taps = shape.rows.kernel * shape.columns.kernel;
  parallel_for(threads, panels_of(shape.filters) * taps, [&](int64_t task) {
    const int64_t first = task / taps * width, tap = task % taps;
    const int64_t used = std::min(width, shape.filters - first);
    const float* from =
        weight + first * strides[0] + tap / shape.columns.kernel * strides[2] + tap % shape.columns.kernel * strides[3];
    float* to = packed + task * shape.channels * width;
    for (int64_t c = 0; c < shape.channels; ++c) {
      for (int64_t k = 0; k < width; ++k)
        to[c * width + k] = k < used ? flush_denormal(from[k * strides[0] + c * strides[1]]) : 0.0f;
    }
  });
}

int64_t direct_products(const Shape& shape) { return shape.batch * products_along(shape.rows) * products_along(shape.columns); }

void direct(const Shape& given, const float* x, const float* packed, const Epilogue& epilogue, float* out, int threads) {
  const Shape shape = flattened(given);
  const int64_t rows = shape.batch * shape.rows.out, runs = divide_up(shape.columns.out, kRun);
  const int64_t panels = panels_of(shape.filters), all = rows * runs;
  // If the weights stay in a near cache, use a run of pixels for all panels before fetching the
  // next run; else use a panel for all pixels.
  const bool runs_first = direct_weights_size(shape) <= kNearCache;
  parallel_for(threads, panels * all, [&](int64_t task) {
    const int64_t place = runs_first ? task / panels : task % all, run = place % runs, row = place / runs;
    convolve(shape, x, packed, epilogue, out,
             {row / shape.rows.out, row % shape.rows.out, run * shape.columns.out / runs, (run + 1) * shape.columns.out / runs,
              runs_first ? task % panels : task / all});
  });
}

}  // namespace deeplab_crf::conv

#include "conv/cpu/shifted.h"

#include <algorithm>
#include <map>

#include "conv/cpu/denormals.h"
#include "conv/cpu/kernels.h"
#include "support/divide_up.h"
#include "support/parallel.h"

namespace deeplab_crf::conv {
namespace {

// Pixels whose products are computed together: as many rows as the product keeps in registers.
constexpr int64_t kBlock = 6;
constexpr int64_t kWidestPanel = 64;  // with 512-bit vectors
// Output rows of a task: they share the weights that they read.
constexpr int64_t kTaskRows = 8;

}  // namespace

// Input pixels [begin, end) of a row, and the range of columns (dx, K) that any of them needs.
struct ShiftedSum::Pixels {
  int64_t begin, end, first_column, last_column;
};

ShiftedSum::ShiftedSum(const Shape& shape, const std::vector<Branch>& branches) : shape_(shape), branches_(branches) {
  std::map<int64_t, std::map<int64_t, std::vector<TapRow::Tap>>> offsets;
  for (int64_t b = 0; b < static_cast<int64_t>(branches.size()); ++b) {
    const Axis &rows = branches[b].rows, &columns = branches[b].columns;
    for (int64_t ky = 0; ky < rows.kernel; ++ky) {
      for (int64_t kx = 0; kx < columns.kernel; ++kx) {
        const int64_t dy = ky * rows.dilation - rows.padding, dx = kx * columns.dilation - columns.padding;
        offsets[dy][dx].push_back({b, ky, kx});
      }
    }
  }
  for (const auto& [dy, columns] : offsets) {
    TapRow row{dy, {}, {}, weights_size_};
    for (const auto& [dx, taps] : columns) {
      row.dx.push_back(dx);
      row.taps.push_back(taps);
    }
    weights_size_ += panels_of(row) * shape.channels * product_kernels().panel_width;
    rows_.push_back(row);
  }
}

int64_t ShiftedSum::panels_of(const TapRow& row) const {
  return divide_up(static_cast<int64_t>(row.dx.size()) * shape_.filters, product_kernels().panel_width);
}

ShiftedSum::Pixels ShiftedSum::block_of(const TapRow& row, int64_t block) const {
  const int64_t width = shape_.columns.in, blocks = divide_up(width, kBlock);
  const int64_t begin = block * width / blocks, end = (block + 1) * width / blocks;
  // Pixel x contributes to output x - dx, so dx lies in (x - out, x].
  const auto first = std::upper_bound(row.dx.begin(), row.dx.end(), begin - shape_.columns.out);
  const auto last = std::upper_bound(row.dx.begin(), row.dx.end(), end - 1);
  return {begin, end, (first - row.dx.begin()) * shape_.filters, (last - row.dx.begin()) * shape_.filters};
}

int64_t ShiftedSum::padded_products() const {
  const int64_t lanes = product_kernels().lanes;
  int64_t products = 0;
  for (const TapRow& row : rows_) {
    int64_t columns = 0;
    for (int64_t block = 0; block < divide_up(shape_.columns.in, kBlock); ++block) {
      const Pixels pixels = block_of(row, block);
      if (pixels.first_column >= pixels.last_column) continue;
      columns += (pixels.end - pixels.begin) * (divide_up(pixels.last_column, lanes) - pixels.first_column / lanes) * lanes;
    }
    const int64_t height = std::min(shape_.rows.out, shape_.rows.in - row.dy) - std::max<int64_t>(0, -row.dy);
    products += columns * std::max<int64_t>(0, height);
  }
  return shape_.batch * products;
}

void ShiftedSum::pack_panel(const TapRow& row, int64_t panel, float* to) const {
  const int64_t width = product_kernels().panel_width;
  for (int64_t column = panel * width; column < (panel + 1) * width; ++column, ++to) {
    const int64_t d = column / shape_.filters, k = column % shape_.filters;
    const bool used = d < static_cast<int64_t>(row.dx.size());
    for (int64_t c = 0; c < shape_.channels; ++c) {
      float sum = 0;
      if (used) {
        for (const TapRow::Tap& tap : row.taps[d]) {
          const Branch& branch = branches_[tap.branch];
          const int64_t* strides = branch.strides;
          sum += branch.weight[k * strides[0] + c * strides[1] + tap.ky * strides[2] + tap.kx * strides[3]];
        }
      }
      to[c * width] = flush_denormal(sum);
    }
  }
}

void ShiftedSum::pack_weights(float* packed, int threads) const {
  const int64_t panel_size = shape_.channels * product_kernels().panel_width;
  for (const TapRow& row : rows_) {
    parallel_for(threads, panels_of(row), [&](int64_t panel) { pack_panel(row, panel, packed + row.begin + panel * panel_size); });
  }
}

// Adds the products of `line`, one input row, to `out` (OW, K), one output row.
void ShiftedSum::add_row(const TapRow& row, const float* line, const float* packed, float* out) const {
  const ProductKernels& kernels = product_kernels();
  const int64_t width = kernels.panel_width, lanes = kernels.lanes, filters = shape_.filters;
  alignas(64) float products[kBlock * kWidestPanel];
  for (int64_t panel = 0; panel < panels_of(row); ++panel) {
    const float* weights = packed + row.begin + panel * shape_.channels * width;
    for (int64_t block = 0; block < divide_up(shape_.columns.in, kBlock); ++block) {
      const Pixels pixels = block_of(row, block);
      const int64_t first = std::max(panel * width, pixels.first_column);
      const int64_t last = std::min((panel + 1) * width, pixels.last_column);
      if (first >= last) continue;
      const int64_t begin = first / lanes * lanes;  // a panel begins at a pack boundary
      kernels.multiply(line + pixels.begin * shape_.channels, shape_.channels, pixels.end - pixels.begin,
                       weights + begin - panel * width, shape_.channels, products, width,
                       static_cast<int>(divide_up(last - begin, lanes)), false);
      for (int64_t x = pixels.begin; x < pixels.end; ++x) {
        const float* values = products + (x - pixels.begin) * width;
        for (int64_t column = first; column < last;) {
          const int64_t d = column / filters, next = std::min(last, (d + 1) * filters), to = x - row.dx[d];
          if (to >= 0 && to < shape_.columns.out) {
            kernels.add(values + column - begin, next - column, out + to * filters + column - d * filters);
          }
          column = next;
        }
      }
    }
  }
}

void ShiftedSum::run(const float* x, const float* packed, const Epilogue& epilogue, float* out, int threads) const {
  const int64_t height = shape_.rows.out, width = shape_.columns.out;
  const int64_t tasks = divide_up(height, kTaskRows);
  parallel_for(threads, shape_.batch * tasks, [&](int64_t task) {
    const int64_t image = task / tasks, begin = task % tasks * height / tasks, end = (task % tasks + 1) * height / tasks;
    const int64_t at = (image * height + begin) * width * shape_.filters;
    float* to = out + at;
    std::fill(to, to + (end - begin) * width * shape_.filters, 0.0f);
    for (const TapRow& row : rows_) {
      for (int64_t y = std::max(begin, -row.dy); y < std::min(end, shape_.rows.in - row.dy); ++y) {
        add_row(row, x + (image * shape_.rows.in + y + row.dy) * shape_.columns.in * shape_.channels, packed,
                to + (y - begin) * width * shape_.filters);
      }
    }
    const Epilogue shifted{epilogue.bias, epilogue.residual != nullptr ? epilogue.residual + at : nullptr, epilogue.relu};
    product_kernels().finish(to, shape_.filters, (end - begin) * width, shape_.filters, shifted, to, shape_.filters);
  });
}

}  // namespace deeplab_crf::conv

// The sum of convolutions of one input with few filters each (the classifiers of DeepLab's atrous spatial pyramid): products first,
// shifts afterwards. Stride 1.
//
// out[y, x] = sum over offsets (dy, dx) of W_(dy, dx) in[y + dy, x + dx]. Taps of all branches that have an offset in common (the
// centres of all rates) are one. For an output row and each dy, the pixels of input row y + dy are multiplied with the weights of
// all dx side by side, (C, dx K), and the products are added where they belong. The dx sorted, those that a pixel needs are
// neighbours: what falls outside the map is not computed, and the lanes are full however few filters there are. No workspace; the
// same bits for any number of threads and any batch.
#pragma once

#include <cstdint>
#include <vector>

#include "conv/shapes.h"

namespace deeplab_crf::conv {

// weight (K, C, kh, kw), strides in elements; nothing but the sizes is read where weights are not packed.
struct Branch {
  const float* weight;
  int64_t strides[4];
  Axis rows, columns;
};

// All taps with the same dy.
struct TapRow {
  struct Tap {
    int64_t branch, ky, kx;
  };
  int64_t dy;
  std::vector<int64_t> dx;             // ascending
  std::vector<std::vector<Tap>> taps;  // of each dx
  int64_t begin;                       // of its panels in the packed weights
};

class ShiftedSum {
 public:
  // shape: the sizes that the branches share; its kernel, padding and dilation are not read.
  ShiftedSum(const Shape& shape, const std::vector<Branch>& branches);

  int64_t weights_size() const { return weights_size_; }
  // Products an input channel, each a lane: columns are counted in whole packs.
  int64_t padded_products() const;
  void pack_weights(float* packed, int threads) const;
  void run(const float* x, const float* packed, const Epilogue& epilogue, float* out, int threads) const;

 private:
  struct Pixels;
  int64_t panels_of(const TapRow& row) const;
  Pixels block_of(const TapRow& row, int64_t block) const;
  void pack_panel(const TapRow& row, int64_t panel, float* to) const;
  void add_row(const TapRow& row, const float* line, const float* packed, float* out) const;

  Shape shape_;
  std::vector<Branch> branches_;
  std::vector<TapRow> rows_;
  int64_t weights_size_ = 0;
};

}  // namespace deeplab_crf::conv

// The sum of convolutions of one input with few filters each, such as the classifiers of DeepLab's
// atrous spatial pyramid: products first, shifts afterwards. Stride 1.
//
//   out[y, x] = sum over offsets (dy, dx) of W_(dy, dx) in[y + dy, x + dx]
//
// Taps of different branches with the same offset (the centres of all rates) are added into one.
// For an output row and each dy, the pixels of input row y + dy are multiplied with the weights of
// all dx side by side, (C, dx K), and the products are added at their outputs. As the dx are
// sorted, those that a pixel needs are neighbours: nothing outside the map is computed, and the
// lanes are full however few filters there are. No workspace is needed. The bits do not depend on
// the number of threads or on the batch.
#pragma once

#include <cstdint>
#include <vector>

#include "conv/shapes.h"

namespace deeplab_crf::conv {

// weight (K, C, kh, kw), strides in elements. Only `pack_weights` reads the weights themselves.
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
  std::vector<std::vector<Tap>> taps;  // by dx
  int64_t begin;                       // where its panels begin in the packed weights
};

class ShiftedSum {
 public:
  // shape: the sizes that the branches share. Its kernel, padding and dilation are not read.
  ShiftedSum(const Shape& shape, const std::vector<Branch>& branches);

  int64_t weights_size() const { return weights_size_; }
  // Multiplications per input channel, unused lanes of partial packs included.
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

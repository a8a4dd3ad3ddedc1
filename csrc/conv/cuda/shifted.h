// The sum of convolutions of one input with few filters each, products first, shifts afterwards
// (conv/cpu/shifted.h): the pass that shifts and adds, after a library's product of all pixels with
// all taps. Plain C++ without CUDA headers.
#pragma once

#include <cstdint>
#include <type_traits>

#include "support/cuda/device.h"

namespace deeplab_crf::cuda {

// Offsets are launch arguments, which are limited to 4 KB. Four rates of 3 x 3 have 33 distinct
// offsets.
constexpr int kMaxOffsets = 128;

struct Offsets {
  int32_t count;
  int32_t rows[kMaxOffsets], columns[kMaxOffsets];
};

// out[b, y, x, k] = bias[k] + sum of products[b, y + rows[s], x + columns[s], s, k] over the s that
// stay on the map. E: float, double, Float16 or BFloat16; 16-bit numbers are added as floats and
// rounded once.
//   products  (B, H, W, S, K)
//   bias      (K) of the type of the sums, or null
//   out       with strides in elements between images, pixels and classes
template <class E>
struct GatherArguments {
  using Sum = std::conditional_t<sizeof(E) == 2, float, E>;
  const E* products;
  const Sum* bias;
  E* out;
  int64_t batch, height, width, classes;
  int64_t image_stride, pixel_stride, class_stride;
  Offsets offsets;
};
template <class E>
void gather_shifted(const GatherArguments<E>& arguments, const Queue& queue);

}  // namespace deeplab_crf::cuda

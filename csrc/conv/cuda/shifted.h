// The sum of convolutions of one input with few filters each, products first, shifts afterwards (conv/shifted.h): after a library's
// product of all pixels with all taps, the pass that shifts and adds. Plain C++: no CUDA header.
#pragma once

#include <cstdint>
#include <type_traits>

#include "support/cuda/device.h"

namespace deeplab_crf::cuda {

// They travel with the launch, which takes 4 KB at most. Four rates of 3 x 3 have 33 distinct ones.
constexpr int kMaxOffsets = 128;

struct Offsets {
  int32_t count;
  int32_t rows[kMaxOffsets], columns[kMaxOffsets];
};

// out[b, y, x, k] = bias[k] + sum over s of products[b, y + rows[s], x + columns[s], s, k], of those s that stay on the map.
// E: float, double, Float16 or BFloat16; 16-bit numbers are added as floats and rounded once.
//   products  (B, H, W, S, K)
//   bias      (K), what E is added as; or null
//   out       strides in elements of an image, a pixel and a class
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

// The epilogue after a library's convolution, in one pass and in place. Plain C++ without CUDA
// headers.
#pragma once

#include <cstdint>

#include "support/cuda/device.h"

namespace deeplab_crf::cuda {

// values <- relu(values + bias + residual); null pointers are left out. E: float, double, Float16
// or BFloat16; 16-bit numbers are added as floats and rounded once.
//   values, residual  `count` elements; `inner` neighbours share a channel: H W in NCHW, 1 in NHWC
//   bias              (channels)
template <class E>
struct EpilogueArguments {
  E* values;
  const E* bias;
  const E* residual;
  int64_t count;
  int64_t channels;
  int64_t inner;
  bool relu;
};
template <class E>
void epilogue(const EpilogueArguments<E>& arguments, const Queue& queue);

}  // namespace deeplab_crf::cuda

// Numbers of 16 bits as they lie in memory; arithmetic is done in float (half.cuh converts). Plain C++: no CUDA header, and not
// those of cuda_fp16.h, which a C++ compiler without CUDA does not have.
#pragma once

#include <cstdint>

namespace deeplab_crf::cuda {

// IEEE 754 binary16: 5 bits of exponent, 10 of mantissa; up to 65504.
struct Float16 {
  uint16_t bits;
};

// The upper half of a float: 8 bits of exponent, 7 of mantissa.
struct BFloat16 {
  uint16_t bits;
};

}  // namespace deeplab_crf::cuda

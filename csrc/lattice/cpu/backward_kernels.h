// The kernels of lattice/cpu/backward.cpp, a table per instruction set.
#pragma once

#include "lattice/cpu/kernels.h"

namespace deeplab_crf {

template <class T>
struct LatticeGradientKernels {
  // out[p, k] += slice_scale * <vectors[p], values[row(p, k)]> for the points p of [begin, end), in one thread.
  // vectors (N, channels), out (N, d+1).
  void (*dot_rows)(const LatticeView<T>& lattice, int64_t begin, int64_t end, const T* vectors, int64_t channels, const T* values,
                   T* out);
};

// The table of the active instruction set.
template <class T>
const LatticeGradientKernels<T>& lattice_gradient_kernels();

}  // namespace deeplab_crf

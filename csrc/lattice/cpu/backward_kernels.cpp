// Gradients of the filter on the CPU. Compiled once per instruction set; one thread per call, a point's channels over the lanes.
#include "lattice/cpu/backward_kernels.h"

#include "lattice/cpu/dots.h"
#include "lattice/geometry.h"

namespace deeplab_crf::DEEPLAB_CRF_ISA {
namespace {

template <class T>
void dot_rows(const LatticeView<T>& lattice, int64_t begin, int64_t end, const T* vectors, int64_t channels, const T* values,
              T* out) {
  const int corners = lattice.corners();
  const int32_t* rows = lattice.rows;
  const T scale = geometry::slice_scale<T>(lattice.dims);
  for_row_blocks<T>(padded_channels<T>(channels), [=]<int W, int V>(int64_t first, auto stride) DEEPLAB_CRF_INLINE_LAMBDA {
    for_corners(corners, [=]<int Corners>() DEEPLAB_CRF_INLINE_LAMBDA {
      for (int64_t p = begin; p < end; ++p) {
        Row<T, W, V> vector;
        vector.load_first(vectors + p * channels + first, channels - first);
        add_dots<Corners>(rows + p * corners, corners, vector, values + first, stride, scale, out + p * corners);
      }
    });
  });
}

}  // namespace

extern const LatticeGradientKernels<float> lattice_gradient_kernels_float{dot_rows<float>};
extern const LatticeGradientKernels<double> lattice_gradient_kernels_double{dot_rows<double>};

}  // namespace deeplab_crf::DEEPLAB_CRF_ISA

// The simplices around points, on the device.
#pragma once

#include <cmath>
#include <cstring>

#include "lattice/coordinate_bounds.h"
#include "lattice/cuda/build.h"
#include "support/cuda/launch.h"

namespace deeplab_crf::cuda {

// elevation_scales, computed once on the host.
template <class Scalar>
struct Scales {
  Scalar scale[geometry::kMaxDimensions];

  explicit Scales(int dims) { geometry::elevation_scales(dims, scale); }
};

// How the simplices of an image are computed whose lattice coordinates go up to `largest`.
__device__ inline bool is_refused(double largest) { return !(largest < kLargestCoordinate); }
template <class T>
__device__ bool needs_double(double largest) {
  return sizeof(T) == 4 && largest > kLargestNarrowCoordinate && !is_refused(largest);
}

template <class T>
__device__ inline bool is_finite(T value) {
  return value - value == T(0);
}

template <class T>
__device__ inline T feature_at(const Features<T>& features, int64_t image, int64_t point, int i) {
  return features.data[image * features.batch_stride + point * features.point_stride + i * features.dim_stride];
}

// Loops over the dimensions unroll if they are known when compiling, D > 0: arrays then are registers.
template <int D>
constexpr int kArraySize = (D > 0 ? D : geometry::kMaxDimensions) + 1;

// geometry::enclosing_simplex around one point, computed in Real. A point of `usable` false stands at zero.
template <class T, class Real, int D>
struct Simplex {
  Real origin[kArraySize<D>], ranks[kArraySize<D>], weights[kArraySize<D>];

  __device__ inline bool embed(const Features<T>& features, const Scales<Real>& scales, int64_t image, int64_t point, bool usable) {
    const int dims = D > 0 ? D : features.dims;
    Real position[kArraySize<D>];
    position[0] = 0;
    for (int i = 0; i < dims; ++i) {
      position[i] = static_cast<Real>(feature_at(features, image, point, i));
      usable = usable && is_finite(position[i]);
    }
    for (int i = 0; i < dims; ++i) position[i] = usable ? position[i] : Real(0);
    geometry::enclosing_simplex(dims, position, scales.scale, origin, ranks, weights);
    return usable;
  }
};

}  // namespace deeplab_crf::cuda

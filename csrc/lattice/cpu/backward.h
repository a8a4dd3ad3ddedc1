// Derivatives of the filter in the barycentric weights, and of these in the features. The values' own gradient is the transposed
// filter. Where the simplex of a point changes the filter is not differentiable (but continuous in the weights); there these are
// the derivatives within the simplex that the lattice was built with.
#pragma once

#include "lattice/cpu/batch.h"

namespace deeplab_crf {

// Gradient of <grad, L in> in the weights (<grad, L^T in> if `transpose`): with y = blur splat in, z = blur^T splat grad,
//   out[p, k] = slice_scale (<grad[p], y[row(p, k)]> + <in[p], z[row(p, k)]>).
//   in, grad   (B, N, channels)
//   out        (B, N, d+1), written
//   workspace  images_side_by_side() times two of (max_rows, row_stride(channels))
// Twice a filter's splat and blur, and 2 (d+1) dot products of rows a point.
template <class T>
struct WeightGradientArguments {
  const LatticeBatch<T>* lattice;
  const T* in;
  const T* grad;
  T* out;
  int64_t channels;
  T* workspace;
  bool transpose;
};
template <class T>
void weight_gradient(const WeightGradientArguments<T>& arguments, int threads);

// grad_features (B, N, d) from grad_weights (B, N, d+1), contiguous both: the chain rule through geometry::enclosing_simplex,
// whose rounding and sorting are locally constant.
template <class T>
void embed_gradient(const FeatureBatch<T>& features, const T* grad_weights, T* grad_features, int threads);

}  // namespace deeplab_crf

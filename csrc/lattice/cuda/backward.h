// Derivatives of the filter in the barycentric weights, and of these in the features, on a device; see lattice/cpu/backward.h.
// Plain C++: no CUDA header.
#pragma once

#include "lattice/cuda/build.h"
#include "lattice/cuda/filter.h"

namespace deeplab_crf::cuda {

// Gradient of <grad, L in> in the weights (<grad, L^T in> if `transpose`): with y = blur splat in, z = blur^T splat grad,
//   out[p, k] = slice_scale (<grad[p], y[row(p, k)]> + <in[p], z[row(p, k)]>).
//   in, grad   (B, N, channels)
//   out        (B, N, d+1), written
//   workspace  two of a filter's
template <class T>
struct DeviceWeightGradientArguments {
  DeviceLattice<T> lattice;
  const T* in;
  const T* grad;
  T* out;
  int64_t channels;
  T* workspace;
  bool transpose;
};
template <class T>
void weight_gradient(const DeviceWeightGradientArguments<T>& arguments, const Queue& queue);

// grad_features (B, N, d) from grad_weights (B, N, d+1), contiguous both: the chain rule through geometry::enclosing_simplex, whose
// rounding and sorting are locally constant.
//   workspace  embed_gradient_workspace_size() bytes, aligned to 8
int64_t embed_gradient_workspace_size(int64_t batch, int dims);
template <class T>
void embed_gradient(const Features<T>& features, const T* grad_weights, T* grad_features, void* workspace, const Queue& queue);

}  // namespace deeplab_crf::cuda

// Kernels of the derivatives of the filter.
#pragma once

#include "lattice/cuda/features.cuh"
#include "lattice/cuda/vectors.cuh"

namespace deeplab_crf::cuda {

// out[p, k] = scale (<grad[p], forward[row]> + <in[p], backward[row]>), row = rows[p, k].
//   in, grad           (N, channels)
//   forward, backward  (capacity, V)
// NaN where the weight is: the row of a corner without a vertex is another image's. A corner a thread, its sum in one order:
// repeatable. Bytes a point: rows of in and grad, once for d+1 threads, 4 (d+1) of weights, and 2 (d+1) rows of the lattice from
// the cache; 4 (d+1) flops a channel.
template <class T>
__global__ void __launch_bounds__(kThreads)
    dot_rows(DeviceLattice<T> lattice, T scale, const T* in, const T* grad, int64_t channels, const Vector<T>* forward,
             const Vector<T>* backward, T* out) {
  const int64_t corner = thread_number();
  if (corner >= lattice.sizes.contributions()) return;
  const int64_t point = corner / lattice.sizes.corners(), vectors = vectors_of<T>(channels), row = lattice.rows[corner] * vectors;
  T sum = 0;
  for (int64_t v = 0; v < vectors; ++v) {
    const Vector<T> a = load_row(grad + point * channels, channels, v), b = load_row(in + point * channels, channels, v);
    const Vector<T> y = forward[row + v], z = backward[row + v];
    for (int i = 0; i < Vector<T>::kLanes; ++i) sum += a.lane[i] * y.lane[i] + b.lane[i] * z.lane[i];
  }
  const T weight = lattice.weights[corner];
  out[corner] = weight == weight ? scale * sum : weight;
}

// Gradient in the features of every point.
//   largest        (B) of measure_features
//   grad_weights   (B, N, d+1)
//   grad_features  (B, N, d) out
// A thread a point. Bytes a point: 4 d + 4 (d+1) in, 4 d out. Compiled without contraction, as the embedding.
template <class T, class Real, int D>
__global__ void __launch_bounds__(kThreads) embed_gradients(Features<T> features, Scales<Real> scales, Scales<T> gradient_scales,
                                                            const double* largest, const T* grad_weights, T* grad_features) {
  const int64_t at = thread_number();
  if (at >= features.batch * features.num_points) return;
  const int dims = D > 0 ? D : features.dims;
  const int64_t image = at / features.num_points;
  if (needs_double<T>(largest[image]) != (sizeof(Real) > sizeof(T))) return;
  Simplex<T, Real, D> simplex;
  simplex.embed(features, scales, image, at - image * features.num_points, !is_refused(largest[image]));
  T of_weights[kArraySize<D>];
  for (int k = 0; k <= dims; ++k) of_weights[k] = grad_weights[at * (dims + 1) + k];
  geometry::feature_gradient(dims, gradient_scales.scale, simplex.ranks, of_weights, grad_features + at * dims);
}

}  // namespace deeplab_crf::cuda

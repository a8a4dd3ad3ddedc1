#include "lattice/cuda/backward.h"
#include "lattice/cuda/backward_kernels.cuh"

namespace deeplab_crf::cuda {
namespace {

template <class T, class Real>
void embed_gradient_in(const Features<T>& features, const double* largest, const T* grad_weights, T* grad_features,
                       const Queue& queue) {
  const int dims = features.dims;
  const auto launch_for = [&]<int D>() {
    launch("embed_gradients", embed_gradients<T, Real, D>, blocks_for(features.batch * features.num_points), queue, features,
           Scales<Real>(dims), Scales<T>(dims), largest, grad_weights, grad_features);
  };
  if (dims == 2) return launch_for.template operator()<2>();
  if (dims == 5) return launch_for.template operator()<5>();
  launch_for.template operator()<0>();
}

}  // namespace

template <class T>
void weight_gradient(const DeviceWeightGradientArguments<T>& a, const Queue& queue) {
  const DeviceGuard guard(queue.device);
  const T* no_norm = nullptr;
  T* second = a.workspace + filter_workspace_size<T>(a.lattice.sizes, a.channels);
  const T* forward = splat_and_blur(a.lattice, a.in, no_norm, a.channels, a.workspace, a.transpose, queue);
  const T* backward = splat_and_blur(a.lattice, a.grad, no_norm, a.channels, second, !a.transpose, queue);
  launch("dot_rows", dot_rows<T>, blocks_for(a.lattice.sizes.contributions()), queue, a.lattice,
         geometry::slice_scale<T>(a.lattice.sizes.dims), a.in, a.grad, a.channels, reinterpret_cast<const Vector<T>*>(forward),
         reinterpret_cast<const Vector<T>*>(backward), a.out);
}

int64_t embed_gradient_workspace_size(int64_t batch, int dims) {
  return kHeaderSize * static_cast<int64_t>(sizeof(int32_t)) + batch * static_cast<int64_t>(sizeof(double)) +
         ranges_size(batch, dims);
}

template <class T>
void embed_gradient(const Features<T>& features, const T* grad_weights, T* grad_features, void* workspace, const Queue& queue) {
  const DeviceGuard guard(queue.device);
  auto* header = static_cast<int32_t*>(workspace);
  auto* largest = reinterpret_cast<double*>(header + kHeaderSize);
  auto* ranges = reinterpret_cast<unsigned long long*>(largest + features.batch);
  measure_features(features, ranges, largest, header, queue);
  embed_gradient_in<T, T>(features, largest, grad_weights, grad_features, queue);
  // Leaves at once where no image needs it.
  if constexpr (sizeof(T) == 4) embed_gradient_in<T, double>(features, largest, grad_weights, grad_features, queue);
}

#define DEEPLAB_CRF_INSTANTIATE(T)                                                         \
  template void weight_gradient<T>(const DeviceWeightGradientArguments<T>&, const Queue&); \
  template void embed_gradient<T>(const Features<T>&, const T*, T*, void*, const Queue&);
DEEPLAB_CRF_INSTANTIATE(float)
DEEPLAB_CRF_INSTANTIATE(double)
#undef DEEPLAB_CRF_INSTANTIATE

}  // namespace deeplab_crf::cuda

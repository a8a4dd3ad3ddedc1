#include <string>
#include <utility>

#include "lattice/cuda/filter.h"
#include "lattice/cuda/filter_kernels.cuh"
#include "lattice/geometry.h"
#include "support/errors.h"

namespace deeplab_crf::cuda {

template <class T>
int64_t row_stride(int64_t channels) {
  // With the 2^32 rows of a workspace, at most, no size overflows.
  constexpr int64_t kMaxChannels = int64_t{1} << 24;
  if (channels < 0 || channels > kMaxChannels) {
    throw InvalidArgument("channels (or labels) must be 0 to 2^24 on CUDA; got " + std::to_string(channels));
  }
  return vectors_of<T>(channels) * Vector<T>::kLanes;
}

template <class T, class E>
T* splat_and_blur(const DeviceLattice<T>& lattice, const E* in, const T* norm, int64_t channels, T* workspace, bool reverse,
                  const Queue& queue) {
  const LatticeSizes& sizes = lattice.sizes;
  const int64_t vectors = row_stride<T>(channels) / Vector<T>::kLanes, rows = sizes.capacity * vectors;
  auto* from = reinterpret_cast<Vector<T>*>(workspace);
  Vector<T>* to = from + rows;
  Vector<T>* partial = to + rows;
  launch("splat_pieces", splat_pieces<T, E>, blocks_for(sizes.pieces() * vectors), queue, lattice, Divisor(sizes.corners()), in,
         norm, channels, from, partial);
  launch("add_pieces", add_pieces<T>, blocks_for(rows), queue, lattice, vectors, partial, from);
  for (int pass = 0; pass <= sizes.dims; ++pass) {
    const int axis = reverse ? sizes.dims - pass : pass;
    launch("blur_axis", blur_axis<T>, blocks_for(rows), queue, lattice, axis, vectors, from, to);
    std::swap(from, to);
  }
  return reinterpret_cast<T*>(from);
}

template <class T, class E>
void filter(const DeviceFilterArguments<T, E>& a, const Queue& queue) {
  const DeviceGuard guard(queue.device);
  const T* values = splat_and_blur(a.lattice, a.in, static_cast<const T*>(nullptr), a.channels, a.workspace, a.transpose, queue);
  const LatticeSizes& sizes = a.lattice.sizes;
  launch("slice_points", slice_points<T, E>, blocks_for(sizes.points() * vectors_of<T>(a.channels)), queue, a.lattice,
         geometry::slice_scale<T>(sizes.dims), reinterpret_cast<const Vector<T>*>(values), a.channels, a.out);
}

template int64_t row_stride<float>(int64_t);
template int64_t row_stride<double>(int64_t);

#define DEEPLAB_CRF_INSTANTIATE(T, E)                                                                             \
  template T* splat_and_blur<T, E>(const DeviceLattice<T>&, const E*, const T*, int64_t, T*, bool, const Queue&); \
  template void filter<T, E>(const DeviceFilterArguments<T, E>&, const Queue&);
DEEPLAB_CRF_INSTANTIATE(float, float)
DEEPLAB_CRF_INSTANTIATE(double, double)
DEEPLAB_CRF_INSTANTIATE(float, Float16)
DEEPLAB_CRF_INSTANTIATE(float, BFloat16)
#undef DEEPLAB_CRF_INSTANTIATE

}  // namespace deeplab_crf::cuda

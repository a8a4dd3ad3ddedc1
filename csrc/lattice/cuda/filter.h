// The lattice filter on a device. Plain C++: no CUDA header.
#pragma once

#include "lattice/cuda/structure.h"
#include "support/cuda/device.h"
#include "support/cuda/half.h"

namespace deeplab_crf::cuda {

// Rows of values, one a vertex, (capacity, row_stride()); channels padded to whole 16-byte vectors. A filter needs two of them, and
// a row for each piece of the vertices' lists. Throws InvalidArgument for more channels than can be counted in.
template <class T>
int64_t row_stride(int64_t channels);
template <class T>
int64_t filter_workspace_size(const LatticeSizes& sizes, int64_t channels) {
  return (2 * sizes.capacity + sizes.pieces()) * row_stride<T>(channels);
}

// blur splat (norm * in), the blur's axes in reverse order if `reverse`.
//   in         (B, N, channels) of E: T, or where T is float also Float16 or BFloat16
//   norm       (B, N) or null
//   workspace  filter_workspace_size() elements, aligned to 16 bytes
// Returns the values, in the workspace. Sums are taken in the order of points, piece by piece: the same bits every time, and for
// each image those that it has alone.
template <class T, class E>
T* splat_and_blur(const DeviceLattice<T>& lattice, const E* in, const T* norm, int64_t channels, T* workspace, bool reverse,
                  const Queue& queue);

// Filters every image, or takes the transposed filter: out = slice blur splat in, scaled by geometry::slice_scale.
//   in, out  (B, N, channels) of E as above, may be the same array. Out of 16-bit numbers is what it would be of floats, rounded
template <class T, class E = T>
struct DeviceFilterArguments {
  DeviceLattice<T> lattice;
  const E* in;
  E* out;
  int64_t channels;
  T* workspace;
  bool transpose;
};
template <class T, class E>
void filter(const DeviceFilterArguments<T, E>& arguments, const Queue& queue);

}  // namespace deeplab_crf::cuda

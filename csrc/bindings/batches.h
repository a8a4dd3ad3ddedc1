// How batches of lattices cross the boundary.
#pragma once

#include <pybind11/pybind11.h>

#include "bindings/pointers.h"
#include "lattice/batch.h"

namespace deeplab_crf::bindings {

// The addresses of rows, weights and structure.
template <class T>
LatticeBatch<T> make_lattice_batch(const pybind11::handle& addresses) {
  const auto fields = addresses.cast<std::tuple<uintptr_t, uintptr_t, uintptr_t>>();
  return {pointer<const int32_t>(std::get<0>(fields)), pointer<const T>(std::get<1>(fields)),
          pointer<const int32_t>(std::get<2>(fields))};
}

// Elements of `buffers` value buffers for each image that is worked on at the same time.
template <class T>
int64_t batch_workspace(uintptr_t structure, int64_t channels, int threads, int buffers) {
  const BatchSizes sizes = read_sizes(pointer<const int32_t>(structure));
  return buffers * images_side_by_side(sizes.batch, threads) * sizes.max_rows() * row_stride<T>(channels);
}

}  // namespace deeplab_crf::bindings

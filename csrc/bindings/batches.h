// How batches of lattices cross the boundary: as objects of LatticeBatch, made for one call.
#pragma once

#include <pybind11/pybind11.h>

#include "lattice/cpu/batch.h"

namespace deeplab_crf::bindings {

// Elements of `buffers` value buffers for each image that is worked on at the same time.
template <class T>
int64_t batch_workspace(const LatticeBatch<T>& lattice, int64_t channels, int threads, int buffers) {
  const BatchSizes& sizes = lattice.sizes();
  return buffers * images_side_by_side(sizes.batch, threads) * sizes.max_rows() * row_stride<T>(channels);
}

}  // namespace deeplab_crf::bindings

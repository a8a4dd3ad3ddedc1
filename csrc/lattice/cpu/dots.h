// Dot products with the rows of a value buffer: what the derivative in a barycentric weight is made of.
#pragma once

#include "lattice/cpu/rows.h"

namespace deeplab_crf::DEEPLAB_CRF_ISA {

// The sum of the products of two rows.
template <class T, int W, int V>
DEEPLAB_CRF_INLINE T dot(const Row<T, W, V>& a, const T* b) {
  Row<T, W, V> products;
  for (int v = 0; v < V; ++v) products.packs[v] = a.packs[v] * Pack<T, W>::load(b + v * W);
  return products.reduce(Sum{});
}

// dots[k] += factor * <vector, values[rows[k]]> for each corner k.
template <int Corners, class T, int W, int V>
DEEPLAB_CRF_INLINE void add_dots(const int32_t* rows, int corners, const Row<T, W, V>& vector, const T* values, int64_t stride,
                                 T factor, T* dots) {
  const int count = Corners > 0 ? Corners : corners;
#pragma GCC unroll 6
  for (int k = 0; k < count; ++k) dots[k] += factor * dot(vector, values + rows[k] * stride);
}

}  // namespace deeplab_crf::DEEPLAB_CRF_ISA

// Operations on rows of a value buffer, shared by the filter and the mean field kernels. A row is `stride` elements: V packs of
// W lanes for few channels, blocks of kMaxPacks packs and a rest for many.
#pragma once

#include "lattice/lattice.h"
#include "support/simd.h"

namespace deeplab_crf::DEEPLAB_CRF_ISA {

// Packs that a row block may have, so that two blocks stay in registers.
constexpr int kMaxPacks = 6;

// Calls body.template operator()<W, V>(first channel) for each block of a row of `stride` elements.
template <class T, class Body>
DEEPLAB_CRF_INLINE void for_row_blocks(int64_t stride, const Body& body) {
  constexpr int W = kWideLanes<T>;
  if (stride == 1) return body.template operator()<1, 1>(0);
  if (stride == kNarrowLanes<T>) return body.template operator()<kNarrowLanes<T>, 1>(0);
  int64_t channel = 0;
  for (; channel + kMaxPacks * W <= stride; channel += kMaxPacks * W) body.template operator()<W, kMaxPacks>(channel);
  switch ((stride - channel) / W) {
    case 1:
      return body.template operator()<W, 1>(channel);
    case 2:
      return body.template operator()<W, 2>(channel);
    case 3:
      return body.template operator()<W, 3>(channel);
    case 4:
      return body.template operator()<W, 4>(channel);
    case 5:
      return body.template operator()<W, 5>(channel);
    default:
      return;
  }
}

// The stride of rows of `channels` channels: one, one narrow pack, or whole wide packs.
template <class T>
DEEPLAB_CRF_INLINE int64_t padded_channels(int64_t channels) {
  if (channels == 1) return 1;
  if (channels <= kNarrowLanes<T>) return kNarrowLanes<T>;
  return (channels + kWideLanes<T> - 1) / kWideLanes<T> * kWideLanes<T>;
}

// sum over the corners k of weights[k] * values[rows[k]], V packs from `channel` on.
template <class T, int W, int V>
DEEPLAB_CRF_INLINE void gather_rows(const int32_t* rows, const T* weights, int corners, const T* values, int64_t stride,
                                    Pack<T, W> (&sum)[V]) {
  for (int v = 0; v < V; ++v) sum[v] = Pack<T, W>::zero();
  for (int k = 0; k < corners; ++k) {
    const T* row = values + rows[k] * stride;
    for (int v = 0; v < V; ++v) sum[v] = sum[v] + Pack<T, W>::load(row + v * W) * weights[k];
  }
}

// values[rows[k]] += weights[k] * in for each corner k.
template <class T, int W, int V>
DEEPLAB_CRF_INLINE void scatter_rows(const int32_t* rows, const T* weights, int corners, const Pack<T, W> (&in)[V], T* values,
                                     int64_t stride) {
  for (int k = 0; k < corners; ++k) {
    T* row = values + rows[k] * stride;
    for (int v = 0; v < V; ++v) (Pack<T, W>::load(row + v * W) + in[v] * weights[k]).store(row + v * W);
  }
}

}  // namespace deeplab_crf::DEEPLAB_CRF_ISA

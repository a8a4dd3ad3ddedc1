// Operations on rows of a value buffer, shared by the filter and the mean field kernels. A row is `stride` elements: V packs of
// W lanes for few channels, blocks of kMaxPacks packs and a rest for many.
#pragma once

#include <type_traits>

#include "lattice/lattice.h"
#include "support/simd.h"

namespace deeplab_crf::DEEPLAB_CRF_ISA {

// Packs that a row block may have, so that two blocks stay in registers.
constexpr int kMaxPacks = 6;

// The longest row that one block holds, in elements.
template <class T>
constexpr int64_t kWidestRow = (kMaxPacks - 1) * kWideLanes<T>;

// V packs of W lanes in registers.
template <class T, int W, int V>
struct Row {
  using P = Pack<T, W>;
  P packs[V];

  DEEPLAB_CRF_INLINE void set_zero() {
    for (int v = 0; v < V; ++v) packs[v] = P::zero();
  }
  DEEPLAB_CRF_INLINE void load(const T* from) {
    for (int v = 0; v < V; ++v) packs[v] = P::load(from + v * W);
  }
  DEEPLAB_CRF_INLINE void store(T* to) const {
    for (int v = 0; v < V; ++v) packs[v].store(to + v * W);
  }
  DEEPLAB_CRF_INLINE void scale(T factor) {
    for (int v = 0; v < V; ++v) packs[v] = packs[v] * factor;
  }
  // this += factor * from
  DEEPLAB_CRF_INLINE void add(const T* from, T factor) {
    for (int v = 0; v < V; ++v) packs[v] = packs[v] + P::load(from + v * W) * factor;
  }
  // to += factor * this
  DEEPLAB_CRF_INLINE void add_to(T* to, T factor) const {
    for (int v = 0; v < V; ++v) (P::load(to + v * W) + packs[v] * factor).store(to + v * W);
  }
  // The first `count` elements, all of them or all but some of the last pack; the others are zero (loading) or left alone
  // (storing).
  DEEPLAB_CRF_INLINE void load_first(const T* from, int64_t count) {
    for (int v = 0; v + 1 < V; ++v) packs[v] = P::load(from + v * W);
    const T* last = from + (V - 1) * W;
    packs[V - 1] = count >= V * W ? P::load(last) : P::load_partial(last, count - (V - 1) * W);
  }
  DEEPLAB_CRF_INLINE void store_first(T* to, int64_t count) const {
    for (int v = 0; v + 1 < V; ++v) packs[v].store(to + v * W);
    if (count >= V * W) {
      packs[V - 1].store(to + (V - 1) * W);
    } else {
      packs[V - 1].store_partial(to + (V - 1) * W, count - (V - 1) * W);
    }
  }
  // All elements combined by Sum or Minimum.
  template <class Combine>
  DEEPLAB_CRF_INLINE T reduce(const Combine& combine) const {
    P result = packs[0];
    for (int v = 1; v < V; ++v) result = combine(result, packs[v]);
    return first_lane(across_lanes<W / 2>(result, combine));
  }
};

// A row stride known when compiling: addresses of a row's packs then need one multiplication instead of three additions more.
template <int64_t Elements>
using FixedStride = std::integral_constant<int64_t, Elements>;

// Calls body.template operator()<W, V>(first channel, stride) for each block of a row of `stride` elements. Where one block is
// the whole row, the body gets the stride as a constant.
template <class T, class Body>
DEEPLAB_CRF_INLINE void for_row_blocks(int64_t stride, const Body& body) {
  constexpr int W = kWideLanes<T>;
  const FixedStride<0> start;
  if (stride == 1) return body.template operator()<1, 1>(start, FixedStride<1>());
  if (stride == kNarrowLanes<T>) return body.template operator()<kNarrowLanes<T>, 1>(start, FixedStride<kNarrowLanes<T>>());
  switch (stride / W) {
    case 1:
      return body.template operator()<W, 1>(start, FixedStride<W>());
    case 2:
      return body.template operator()<W, 2>(start, FixedStride<2 * W>());
    case 3:
      return body.template operator()<W, 3>(start, FixedStride<3 * W>());
    case 4:
      return body.template operator()<W, 4>(start, FixedStride<4 * W>());
    case 5:
      return body.template operator()<W, 5>(start, FixedStride<5 * W>());
    default:
      break;
  }
  int64_t channel = 0;
  for (; channel + kMaxPacks * W <= stride; channel += kMaxPacks * W) body.template operator()<W, kMaxPacks>(channel, stride);
  switch ((stride - channel) / W) {
    case 1:
      return body.template operator()<W, 1>(channel, stride);
    case 2:
      return body.template operator()<W, 2>(channel, stride);
    case 3:
      return body.template operator()<W, 3>(channel, stride);
    case 4:
      return body.template operator()<W, 4>(channel, stride);
    case 5:
      return body.template operator()<W, 5>(channel, stride);
    default:
      return;
  }
}

// Fetches the cache lines of `count` elements.
template <class T>
DEEPLAB_CRF_INLINE void prefetch_row(const T* row, int count) {
  constexpr int kLine = 64 / sizeof(T);
  for (int i = 0; i < count; i += kLine) __builtin_prefetch(row + i);
}

// The stride of rows of `channels` channels: one, one narrow pack, or whole wide packs.
template <class T>
DEEPLAB_CRF_INLINE int64_t padded_channels(int64_t channels) {
  if (channels == 1) return 1;
  if (channels <= kNarrowLanes<T>) return kNarrowLanes<T>;
  return (channels + kWideLanes<T> - 1) / kWideLanes<T> * kWideLanes<T>;
}

// Keeps a row's address in one register. GCC would compute it anew for each pack of the row: a fifth of the time of a splat.
template <class T>
DEEPLAB_CRF_INLINE T* in_register(T* row) {
  __asm__("" : "+r"(row));
  return row;
}

// sum over the corners k of weights[k] * values[rows[k]]. Corners is their number where it is known when compiling.
template <int Corners, class T, int W, int V>
DEEPLAB_CRF_INLINE void gather_rows(const int32_t* rows, const T* weights, int corners, const T* values, int64_t stride,
                                    Row<T, W, V>& sum) {
  const int count = Corners > 0 ? Corners : corners;
  sum.set_zero();
#pragma GCC unroll 6
  for (int k = 0; k < count; ++k) sum.add(in_register(values + rows[k] * stride), weights[k]);
}

// values[rows[k]] += weights[k] * in for each corner k.
template <int Corners, class T, int W, int V>
DEEPLAB_CRF_INLINE void scatter_rows(const int32_t* rows, const T* weights, int corners, const Row<T, W, V>& in, T* values,
                                     int64_t stride) {
  const int count = Corners > 0 ? Corners : corners;
#pragma GCC unroll 6
  for (int k = 0; k < count; ++k) in.add_to(in_register(values + rows[k] * stride), weights[k]);
}

// Fetches the rows of one point.
template <int Corners, class T>
DEEPLAB_CRF_INLINE void prefetch_rows(const int32_t* rows, int corners, const T* values, int64_t stride, int count) {
  for (int k = 0; k < (Corners > 0 ? Corners : corners); ++k) prefetch_row(values + rows[k] * stride, count);
}

// Calls body.template operator()<Corners>() with the number of corners as a constant for the lattices that images have.
template <class Body>
DEEPLAB_CRF_INLINE void for_corners(int corners, const Body& body) {
  if (corners == 3) return body.template operator()<3>();
  if (corners == 6) return body.template operator()<6>();
  return body.template operator()<0>();
}

}  // namespace deeplab_crf::DEEPLAB_CRF_ISA

// The CPU kernels of the lattice as a table of functions, one table per instruction set. Each works on a range of points,
// rows or chain entries in one thread; filter.cpp and build.cpp hand out the ranges.
#pragma once

#include <cstdint>

#include "lattice/lattice.h"

namespace deeplab_crf {

// Points whose simplices one call of `embed` computes.
constexpr int kEmbedBlock = 64;

// Feature of dimension i of point p: data[p * point_stride + i * dim_stride].
template <class T>
struct FeatureView {
  const T* data;
  int64_t num_points;
  int32_t dims;
  int64_t point_stride;
  int64_t dim_stride;
};

// Simplices of one block of points, dimension-major: element [i * kEmbedBlock + p].
template <class T>
struct SimplexBlock {
  int32_t* origin;  // (d+1, kEmbedBlock) remainder-0 vertex
  int32_t* ranks;   // (d+1, kEmbedBlock)
  T* weights;       // (d+1, kEmbedBlock)
};

template <class T>
struct LatticeKernels {
  // Elements between rows of `channels` channels.
  int64_t (*row_stride)(int64_t channels);

  // geometry::enclosing_simplex for points [begin, begin + count), count <= kEmbedBlock. `embed_wide` computes in double, for
  // coordinates so large that T would lose the barycentric weights.
  void (*embed)(const FeatureView<T>& features, int64_t begin, int count, SimplexBlock<T> out);
  void (*embed_wide)(const FeatureView<T>& features, int64_t begin, int count, SimplexBlock<T> out);

  // values[row] += weight * norm * in[point] for the points of [begin, end). in (N, channels), norm (N) or null.
  void (*splat)(const LatticeView<T>& lattice, int64_t begin, int64_t end, const T* in, int64_t channels, const T* norm, T* values);
  // out[point] = norm * scale * sum of weight * values[row].
  void (*slice)(const LatticeView<T>& lattice, int64_t begin, int64_t end, const T* values, int64_t channels, const T* norm,
                T* out);
  // values[owner] += values[ghost row] for ghosts [begin, end) of ghost_order.
  void (*gather_ghosts)(const LatticeView<T>& lattice, int64_t begin, int64_t end, T* values, int64_t stride);
  // Walks whole chains: entries [begin, end) of a chain list, `begin` at a chain start.
  void (*blur)(const int32_t* chains, int64_t begin, int64_t end, T* values, int64_t stride);
};

// The table of the active instruction set.
template <class T>
const LatticeKernels<T>& lattice_kernels();

}  // namespace deeplab_crf

// Builds the lattices of a batch on a device. Nothing here waits for the device: what depends on the number of vertices is either
// read from the header by the caller between the two steps (one wait), or bounded by the caller beforehand (none, so that all of it
// can be captured in a graph).
//   embed(arguments);     // weights; rows numbered; header at the workspace's begin
//   ...                   // check_header() of a copy of the header -> number of vertices
//   connect(arguments, structure, capacity);
// Plain C++: no CUDA header.
#pragma once

#include "lattice/cuda/structure.h"
#include "support/cuda/device.h"

namespace deeplab_crf::cuda {

// Feature i of point p of image b: data[b * batch_stride + p * point_stride + i * dim_stride].
template <class T>
struct Features {
  const T* data;
  int64_t batch;
  int64_t num_points;
  int32_t dims;
  int64_t batch_stride;
  int64_t point_stride;
  int64_t dim_stride;
};

// Ranges of the features and the largest lattice coordinate of each image, which decides the precision of its simplices;
// kBadElement of the header, and -1 in its other fields. For the build, and for the gradient of the embedding, which must decide
// alike.
//   ranges   ranges_size() bytes
//   largest  (B)
inline int64_t ranges_size(int64_t batch, int dims) { return (batch + 1) * dims * 2 * static_cast<int64_t>(sizeof(uint64_t)); }
template <class T>
void measure_features(const Features<T>& features, unsigned long long* ranges, double* largest, int32_t* header,
                      const Queue& queue);

// Widths of keys that there are kernels for: 64-bit words. One does for photographs, 16 for whatever kMaxDimensions allows.
constexpr int kNarrowKey = 1, kMediumKey = 4, kWideKey = 16;

//   rows, weights  (B, N, d+1) out
//   key_words      kNarrowKey, kMediumKey or kWideKey; where the header says that more are needed nothing was built
//   max_vertices   bound of the number of vertices, or 0 for none. With a bound nobody need look at the header in between: images
//                  that lack a vertex, or have a feature that is not finite, get NaN for all their weights, so that no result of
//                  theirs looks right, and take part in no other image's. The row of a corner without a vertex is 0. The header
//                  tells in the end
//   workspace      build_workspace_size() bytes, aligned to 256, kept from embed() to the one connect() after it; its first
//                  kHeaderSize int32 are the header
template <class T>
struct BuildArguments {
  Features<T> features;
  int32_t* rows;
  T* weights;
  int key_words;
  int64_t max_vertices;
  void* workspace;
};

template <class T>
int64_t build_workspace_size(const BuildArguments<T>& arguments, const Queue& queue);
template <class T>
void embed(const BuildArguments<T>& arguments, const Queue& queue);
// structure: LatticeSizes::structure_size() elements for this capacity: the number of vertices, or max_vertices (it throws
// InvalidArgument for another where there is a bound).
template <class T>
void connect(const BuildArguments<T>& arguments, int32_t* structure, int64_t capacity, const Queue& queue);

}  // namespace deeplab_crf::cuda

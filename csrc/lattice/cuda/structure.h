// Lattices of B images of N points each on a device, in three arrays that a tensor library owns and passes around:
//   rows       int32 (B, N, d+1)  vertex of each corner of a point's simplex, by remainder; numbered over the whole batch, in the
//                                 order of first touch, so an image's vertices follow one another
//   weights    T (B, N, d+1)      barycentric weights
//   structure  int32, one-dimensional, with room for `capacity` vertices (M of them exist; capacity = M unless the caller set it):
//     header         (kHeaderSize)
//     neighbours     (d+1, capacity, 2)  previous and next vertex on each axis, -1 if there is none
//     image_begin    (B+1)               first vertex of each image
//     list_begin     (capacity+1)        first of a vertex's contributions
//     piece_begin    (capacity+1)        first of the pieces that a vertex's contributions are cut into
//     piece_vertex   (pieces())          vertex of each piece
//     contributions  (B N (d+1))         indices into rows and weights, sorted by vertex, then by point: so a splat is a gather
//                                        that sums in one order, and each image has the bits that it has alone. Corners without
//                                        a vertex come last and are in no vertex' list
// Plain C++: no CUDA header.
#pragma once

#include <cstdint>

#include "lattice/geometry.h"

namespace deeplab_crf::cuda {

// Contributions of a piece. Lists may be long (a bilateral kernel's vertex in a plain sky has thousands of points): pieces are
// summed side by side, and their sums added in order.
constexpr int kPieceLength = 32;

// Places in the header. A build writes it on the device; after a copy check_header() tells what it says.
enum HeaderField : int {
  kMark,           // kFormatMark
  kBatch,          // B
  kNumPoints,      // N
  kDims,           // d
  kNumVertices,    // M, also where it is over the capacity
  kCapacity,       // vertices there is room for; 0 before connect()
  kKeyWords,       // 64-bit words that a key of these features needs
  kKeyWordsGiven,  // words that the build had
  kLostCorners,    // corners that found no place in the hash table
  kBadElement,     // first feature that is not finite, as b N d + p d + i; -1: all are finite
  kBadValue,       // that feature, the bits of a float
  kBadImage,       // first image whose lattice coordinates are too large; -1: none
  kBadCoordinate,  // its largest coordinate, the bits of a float
  kHeaderSize = 16
};
constexpr int32_t kFormatMark = 0x44435547;

struct LatticeSizes {
  int64_t batch;
  int64_t num_points;
  int32_t dims;
  int64_t capacity;

  DEEPLAB_CRF_HOST_DEVICE int corners() const { return dims + 1; }
  DEEPLAB_CRF_HOST_DEVICE int64_t points() const { return batch * num_points; }
  DEEPLAB_CRF_HOST_DEVICE int64_t contributions() const { return points() * corners(); }
  // At most: sum of ceil(length / kPieceLength) over the vertices.
  DEEPLAB_CRF_HOST_DEVICE int64_t pieces() const { return capacity + contributions() / kPieceLength; }

  DEEPLAB_CRF_HOST_DEVICE int64_t neighbours_at() const { return kHeaderSize; }
  DEEPLAB_CRF_HOST_DEVICE int64_t image_begin_at() const { return neighbours_at() + 2 * corners() * capacity; }
  DEEPLAB_CRF_HOST_DEVICE int64_t list_begin_at() const { return image_begin_at() + batch + 1; }
  DEEPLAB_CRF_HOST_DEVICE int64_t piece_begin_at() const { return list_begin_at() + capacity + 1; }
  DEEPLAB_CRF_HOST_DEVICE int64_t piece_vertex_at() const { return piece_begin_at() + capacity + 1; }
  DEEPLAB_CRF_HOST_DEVICE int64_t contributions_at() const { return piece_vertex_at() + pieces(); }
  DEEPLAB_CRF_HOST_DEVICE int64_t structure_size() const { return contributions_at() + contributions(); }
};

// Sizes of the lattices whose structure has `length` elements. Throws InvalidArgument if there are none of these B, N and d.
LatticeSizes sizes_of_structure(int64_t batch, int64_t num_points, int64_t dims, int64_t length);

// Throws InvalidArgument unless B, N >= 1, d is in 1..kMaxDimensions and B N (d+1) at most 2^30.
void check_shape(int64_t batch, int64_t num_points, int64_t dims);

// Throws InvalidArgument unless a capacity is in 1..2^30, and is max_vertices where that is not 0.
void check_capacity(int64_t capacity, int64_t max_vertices);

// What a header says, copied to the host. Throws InvalidArgument if the build failed: features that are not finite or too large, or
// more vertices than the capacity, or than max_vertices where that is not 0, or, in a structure, wider keys than it was built with.
struct BuildOutcome {
  int64_t num_vertices;
  int key_words;  // more than the build had: nothing was built, and it must be done again with so many
};
BuildOutcome check_header(const int32_t* header, int64_t max_vertices);

// What kernels are given.
template <class T>
struct DeviceLattice {
  LatticeSizes sizes;
  const int32_t* rows;
  const T* weights;
  const int32_t* structure;

  DEEPLAB_CRF_HOST_DEVICE const int32_t* neighbours() const { return structure + sizes.neighbours_at(); }
  DEEPLAB_CRF_HOST_DEVICE const int32_t* list_begin() const { return structure + sizes.list_begin_at(); }
  DEEPLAB_CRF_HOST_DEVICE const int32_t* piece_begin() const { return structure + sizes.piece_begin_at(); }
  DEEPLAB_CRF_HOST_DEVICE const int32_t* piece_vertex() const { return structure + sizes.piece_vertex_at(); }
  DEEPLAB_CRF_HOST_DEVICE const int32_t* contributions() const { return structure + sizes.contributions_at(); }
};

}  // namespace deeplab_crf::cuda

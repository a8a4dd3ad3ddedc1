// Lattices of B images of N points each, packed in three arrays that a tensor library can own and pass around:
//   rows       int32 (B, N, d+1)
//   weights    T (B, N, d+1)
//   structure  int32, one-dimensional: a header (format mark, B, N, d, then M and G of each image); then, image by image,
//              owned_begin, ghost_begin, ghost_owner, ghost_order, chain_lengths and chains of LatticeView
#pragma once

#include <atomic>
#include <cstdint>
#include <memory>
#include <vector>

#include "lattice/cpu/build.h"
#include "lattice/lattice.h"
#include "support/parallel.h"
#include "support/spare_buffers.h"

namespace deeplab_crf {

// Images that are worked on side by side, each by one thread; 1: one after the other, by all threads.
inline int images_side_by_side(int64_t batch, int threads) { return batch >= threads && threads > 1 ? threads : 1; }

// Calls body(image, threads, slot) for every image of the batch. Images that run at the same time have different slots in
// [0, images_side_by_side): each may own a part of a workspace.
template <class Body>
void for_images(int64_t batch, int threads, const Body& body) {
  const int lanes = images_side_by_side(batch, threads);
  std::atomic<int64_t> next{0};
  parallel_for(lanes, lanes, [&](int64_t slot) {
    try {
      for (int64_t image = next++; image < batch; image = next++) body(image, lanes > 1 ? 1 : threads, static_cast<int>(slot));
    } catch (...) {
      next = batch;
      throw;
    }
  });
}

// Feature of dimension i of point p of image b: data[b * batch_stride + p * point_stride + i * dim_stride].
template <class T>
struct FeatureBatch {
  const T* data;
  int64_t batch;
  int64_t num_points;
  int32_t dims;
  int64_t batch_stride;
  int64_t point_stride;
  int64_t dim_stride;

  FeatureView<T> image(int64_t b) const { return {data + b * batch_stride, num_points, dims, point_stride, dim_stride}; }
};

// Sizes in the header of a structure.
struct BatchSizes {
  int64_t batch;
  int64_t num_points;
  int32_t dims;
  std::vector<int64_t> num_vertices;  // (B)
  std::vector<int64_t> num_ghosts;    // (B)

  int64_t max_rows() const;
  int64_t structure_size() const;
};

// Reads the header of a structure of `length` integers. Throws InvalidArgument if it is none.
BatchSizes read_sizes(const int32_t* structure, int64_t length);

// The lattice of one image of a batch, with rows of its own.
template <class T>
struct ImageLattice {
  SpareBuffer rows;
  LatticeView<T> view;
};

// The lattices of a batch. Kernels read and write memory at what rows and structure say, and a caller may write to these arrays
// while a kernel runs: the structure is copied and then checked here, the rows image by image where they are used.
template <class T>
class LatticeBatch {
 public:
  //   rows       `num_rows` integers: those of B images of N points with d + 1 vertices
  //   weights    as many
  //   structure  `length` integers
  // Throws InvalidArgument if the structure is none, or of other sizes.
  LatticeBatch(const int32_t* rows, int64_t num_rows, const T* weights, const int32_t* structure, int64_t length);

  const BatchSizes& sizes() const { return sizes_; }
  // Copies the rows of an image. Throws InvalidArgument for rows of another lattice.
  ImageLattice<T> image(int64_t image, int threads) const;

 private:
  const int32_t* rows_;
  const T* weights_;
  SpareBuffer structure_;
  BatchSizes sizes_;
  std::vector<int64_t> chain_lengths_;  // (B, d+1), what the views point to
  std::vector<LatticeView<T>> views_;   // without rows
};

// LatticeBuilder for a batch, images side by side. Throws InvalidArgument as it does, naming the image.
template <class T>
class LatticeBatchBuilder {
 public:
  LatticeBatchBuilder(const FeatureBatch<T>& features, int threads);

  // rows (B, N, d+1), weights (B, N, d+1). rows is not final before connect().
  void embed(int32_t* rows, T* weights);
  // What follows is known after embed().
  BatchSizes sizes() const;
  // structure: sizes().structure_size() elements.
  void connect(int32_t* rows, int32_t* structure);

 private:
  FeatureBatch<T> features_;
  int threads_;
  std::vector<std::unique_ptr<LatticeBuilder<T>>> builders_;
};

// Filters every image: filter() of lattice.h without norms.
//   in, out    (B, N, channels), may be the same array
//   workspace  images_side_by_side() times (max_rows, row_stride(channels))
template <class T>
struct BatchFilterArguments {
  const LatticeBatch<T>* lattice;
  const T* in;
  T* out;
  int64_t channels;
  T* workspace;
  bool transpose;
};
template <class T>
void filter(const BatchFilterArguments<T>& arguments, int threads);

}  // namespace deeplab_crf

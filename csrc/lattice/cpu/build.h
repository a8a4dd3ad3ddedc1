// Builds a lattice in two steps, so that the caller can allocate what depends on the number of vertices:
//   LatticeBuilder<T> builder(features, threads);   // checks the features
//   builder.embed(rows, weights);                   // -> num_vertices(), num_ghosts()
//   builder.connect(arrays);                        // renumbers the rows, fills the tables and the chains
#pragma once

#include <memory>

#include "lattice/cpu/kernels.h"
#include "lattice/lattice.h"

namespace deeplab_crf {

// The arrays of a LatticeView that `connect` fills; shapes as there.
struct LatticeArrays {
  int32_t* rows;
  int32_t* owned_begin;
  int32_t* ghost_begin;
  int32_t* ghost_owner;
  int32_t* ghost_order;
  int32_t* chains;
  int64_t* chain_lengths;
};

// What a builder does once the width of its keys is known.
template <class T>
class BuilderSteps {
 public:
  virtual ~BuilderSteps() = default;
  virtual void embed(int32_t* rows, T* weights) = 0;
  virtual void connect(const LatticeArrays& arrays) = 0;
  virtual int64_t num_vertices() const = 0;
  virtual int64_t num_ghosts() const = 0;
};

// Throws InvalidArgument if there are no points, the dimension is not in 1..kMaxDimensions, or a feature is not finite or is too
// large for the lattice (coordinates beyond 2^30).
// touch_origin: the vertices around the zero feature exist too, as if one more point without values lay there.
template <class T>
class LatticeBuilder {
 public:
  LatticeBuilder(const FeatureView<T>& features, bool touch_origin, int threads);

  // rows (N, d+1), weights (N, d+1). rows is not final before connect().
  void embed(int32_t* rows, T* weights) { steps_->embed(rows, weights); }
  void connect(const LatticeArrays& arrays) { steps_->connect(arrays); }
  int64_t num_vertices() const { return steps_->num_vertices(); }
  int64_t num_ghosts() const { return steps_->num_ghosts(); }

 private:
  std::unique_ptr<BuilderSteps<T>> steps_;
};

// Whether the builder computes the simplices of these features in double: with large coordinates T would lose the barycentric
// weights.
template <class T>
bool needs_wide_embedding(const FeatureView<T>& features, int threads);

}  // namespace deeplab_crf

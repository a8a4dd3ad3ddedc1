// A permutohedral lattice over a set of points, and the filter on it.
//
// The points are cut into chunks (a function of their number alone). Each chunk has its own rows for the vertices its points
// touch: a vertex belongs to the first chunk that touches it (its owned row is its vertex number); later chunks that touch
// it get a ghost row behind the M owned ones. So chunks splat side by side without atomics, sums are taken in a fixed
// order, and a chunk's rows lie close together.
#pragma once

#include <cstdint>

namespace deeplab_crf {

// Marks the first vertex of a chain in LatticeView::chains.
constexpr int32_t kChainStart = INT32_MIN;

// Number of chunks that `num_points` points are cut into, and the first point of chunk c (c may equal the number of chunks).
int64_t chunk_count(int64_t num_points);
int64_t chunk_begin(int64_t num_points, int64_t chunk);

// Pointers into arrays that the caller owns. N points, d dimensions, M vertices, G ghost rows, K chunks.
template <class T>
struct LatticeView {
  int32_t dims = 0;
  int64_t num_points = 0;
  int64_t num_vertices = 0;
  int64_t num_ghosts = 0;
  const int32_t* rows = nullptr;           // (N, d+1) row of each vertex of a point's simplex, by remainder
  const T* weights = nullptr;              // (N, d+1) barycentric weights
  const int32_t* owned_begin = nullptr;    // (K+1) first owned row of each chunk
  const int32_t* ghost_begin = nullptr;    // (K+1) first ghost of each chunk; its row is M + ghost
  const int32_t* ghost_owner = nullptr;    // (G) vertex that each ghost stands for
  const int32_t* ghost_order = nullptr;    // (G) ghosts sorted by owner, then by chunk
  const int32_t* chains = nullptr;         // (d+1, M) per axis: vertices that have a neighbour, chain by chain
  const int64_t* chain_lengths = nullptr;  // (d+1) used length of each axis' list

  int64_t num_rows() const { return num_vertices + num_ghosts; }
  int corners() const { return dims + 1; }
};

// Rows of a value buffer are `row_stride` elements apart: the channels, padded to whole vectors with zeros.
template <class T>
int64_t row_stride(int64_t channels);

// Before the slice: copies the blurred values of owners into the ghost rows of one chunk.
template <class T>
void fill_ghosts(const LatticeView<T>& lattice, int64_t chunk, T* values, int64_t stride);

// Before the splat: zeros the owned and ghost rows of one chunk.
template <class T>
void clear_rows(const LatticeView<T>& lattice, int64_t chunk, T* values, int64_t stride);

// After the splat: adds the ghost rows to their owners, then blurs axis by axis (0..d, or d..0 if `reverse`):
// v <- v + (v_prev + v_next) / 2, a missing neighbour counting 0. In place: an axis is a set of chains of neighbours, and each
// chain is walked once with the old values in registers; vertices without a neighbour are not touched. Per vertex on a chain and
// axis: 2 rows of traffic, 3 flops a channel. Repeats bit for bit for any thread count.
template <class T>
void gather_and_blur(const LatticeView<T>& lattice, T* values, int64_t channels, bool reverse, int threads);

// values = blur splat (norm * in), the blur's axes in reverse order if `reverse`.
//   in      (N, channels)
//   norm    (N) or null
//   values  (num_rows, row_stride(channels)); the ghost rows are not filled afterwards
template <class T>
struct SplatArguments {
  const LatticeView<T>* lattice;
  const T* in;
  const T* norm;
  int64_t channels;
  T* values;
  bool reverse;
};
template <class T>
void splat_and_blur(const SplatArguments<T>& arguments, int threads);

// out = norm_out * L(norm_in * in), with L = slice blur splat (its transpose if `transpose`: the blur in reverse order).
//   in, out           (N, channels), may be the same array
//   norm_in, norm_out (N) or null
//   workspace         (num_rows, row_stride(channels))
template <class T>
struct FilterArguments {
  const LatticeView<T>* lattice;
  const T* in;
  T* out;
  int64_t channels;
  const T* norm_in;
  const T* norm_out;
  T* workspace;
  bool transpose;
};
template <class T>
void filter(const FilterArguments<T>& arguments, int threads);

}  // namespace deeplab_crf

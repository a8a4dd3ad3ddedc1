// Splat, blur and slice. A thread has one vector of one row, neighbouring threads the vectors of a row and then the next row: rows
// are read and written in whole sectors. N points in all, M vertices, d dimensions, V vectors of 16 bytes a row.
//
// Bytes for 187,500 points of 21 float channels (84 bytes, 96 padded): in and out 15.8 MB each; corners of d = 5 with their
// weights 9.0 MB read in the splat and again in the slice; a bilateral lattice 80/13 has 11,000 vertices, 1.1 MB a buffer, which
// the second-level cache keeps. Floor: 50 MB, 12 us at 4.3 TB/s. Rows are gathered 6 times a point, 108 MB from the cache in the
// splat and again in the slice. In and out of 16-bit numbers are 7.9 MB each, gathered 54 MB; the rows between them stay floats:
// each sum over a list and each of the d + 1 axes would be rounded to 11 bits (8 of bfloat16), to save traffic that the cache
// serves.
#pragma once

#include "lattice/cuda/structure.h"
#include "lattice/cuda/vectors.cuh"

namespace deeplab_crf::cuda {

// Quotient of a number below 2^31 by a divisor that is known when a kernel is launched, as a product: a division takes 20
// instructions.
class Divisor {
 public:
  explicit Divisor(uint32_t divisor) {
    for (shift_ = 31; (uint64_t{1} << (shift_ - 31)) < divisor;) ++shift_;
    factor_ = (uint64_t{1} << shift_) / divisor + 1;
  }
  __device__ inline uint32_t quotient(uint32_t number) const { return static_cast<uint32_t>(number * factor_ >> shift_); }

 private:
  uint64_t factor_;
  int shift_;
};

// Sums of the pieces of the vertices' lists: of weight * norm * in over the contributions of a piece, in their order.
//   in        (N, channels) of E: T, or 16-bit numbers, whose sums are taken in float
//   norm      (N) or null
//   values    (capacity, V) out: vertices of one piece
//   partial   (pieces, V) out: pieces of vertices that have several
// A piece and vector a thread. Per contribution 8 bytes of index and weight, once for V threads, and a row of `in`; 2 flops a
// channel.
template <class T, class E>
__global__ void __launch_bounds__(kThreads) splat_pieces(DeviceLattice<T> lattice, Divisor corners, const E* in, const T* norm,
                                                         int64_t channels, Vector<T>* values, Vector<T>* partial) {
  const int64_t vectors = vectors_of<T>(channels), thread = thread_number(), piece = thread / vectors, v = thread - piece * vectors;
  const int32_t* piece_begin = lattice.piece_begin();
  if (piece >= piece_begin[lattice.sizes.capacity]) return;
  const int32_t vertex = lattice.piece_vertex()[piece];
  const int32_t* list_begin = lattice.list_begin() + vertex;
  const auto before = static_cast<int32_t>(piece) - piece_begin[vertex];
  const int32_t begin = list_begin[0] + before * kPieceLength;
  const int32_t end = list_begin[1] - begin < kPieceLength ? list_begin[1] : begin + kPieceLength;
  const int32_t* contributions = lattice.contributions();
  Vector<T> sum{};
#pragma unroll 4
  for (int32_t i = begin; i < end; ++i) {
    const int32_t contribution = contributions[i];
    const int64_t point = corners.quotient(static_cast<uint32_t>(contribution));
    T weight = lattice.weights[contribution];
    if (norm != nullptr) weight *= norm[point];
    add_scaled(sum, weight, load_row(in + point * channels, channels, v));
  }
  const bool alone = piece_begin[vertex + 1] - piece_begin[vertex] == 1;
  (alone ? values + vertex * vectors : partial + piece * vectors)[v] = sum;
}

// The sum of each vertex that has several pieces, in their order. A vertex and vector a thread.
template <class T>
__global__ void __launch_bounds__(kThreads)
    add_pieces(DeviceLattice<T> lattice, int64_t vectors, const Vector<T>* partial, Vector<T>* values) {
  const int64_t thread = thread_number(), vertex = thread / vectors, v = thread - vertex * vectors;
  if (vertex >= lattice.sizes.capacity) return;
  const int32_t begin = lattice.piece_begin()[vertex], end = lattice.piece_begin()[vertex + 1];
  if (end - begin < 2) return;
  Vector<T> sum = partial[begin * vectors + v];
#pragma unroll 4
  for (int64_t piece = begin + 1; piece < end; ++piece) add_scaled(sum, T(1), partial[piece * vectors + v]);
  values[vertex * vectors + v] = sum;
}

// One axis of the blur: to = from + (from_previous + from_next) / 2, a missing neighbour counting 0.
//   from, to  (capacity, V)
// A vertex and vector a thread. Bytes a vertex: 8 of neighbours and up to 4 rows, of which the cache serves the neighbours'.
template <class T>
__global__ void __launch_bounds__(kThreads)
    blur_axis(DeviceLattice<T> lattice, int axis, int64_t vectors, const Vector<T>* from, Vector<T>* to) {
  const int64_t thread = thread_number(), vertex = thread / vectors, v = thread - vertex * vectors;
  if (vertex >= lattice.structure[kNumVertices] || vertex >= lattice.sizes.capacity) return;
  const int32_t* pair = lattice.neighbours() + (axis * lattice.sizes.capacity + vertex) * 2;
  const int32_t previous = pair[0], next = pair[1];
  Vector<T> value = from[thread], around{};
  if (previous >= 0) around = from[previous * vectors + v];
  if (next >= 0) add_scaled(around, T(1), from[next * vectors + v]);
  add_scaled(value, T(0.5), around);
  to[thread] = value;
}

// out = scale * sum of weight * values[row] over the corners of each point.
//   values  (capacity, V)
//   out     (N, channels) of E
// A point and vector a thread. Bytes a point: 8 (d+1) of corners, once for V threads, d+1 rows from the cache, and a row out.
template <class T, class E>
__global__ void __launch_bounds__(kThreads)
    slice_points(DeviceLattice<T> lattice, T scale, const Vector<T>* values, int64_t channels, E* out) {
  const int64_t vectors = vectors_of<T>(channels), thread = thread_number(), point = thread / vectors, v = thread - point * vectors;
  if (point >= lattice.sizes.points()) return;
  const int corners = lattice.sizes.corners();
  const int32_t* rows = lattice.rows + point * corners;
  const T* weights = lattice.weights + point * corners;
  Vector<T> sum{};
#pragma unroll 3
  for (int k = 0; k < corners; ++k) add_scaled(sum, weights[k], values[rows[k] * vectors + v]);
  for (int i = 0; i < Vector<T>::kLanes; ++i) sum.lane[i] *= scale;
  store_row(out + point * channels, channels, v, sum);
}

}  // namespace deeplab_crf::cuda

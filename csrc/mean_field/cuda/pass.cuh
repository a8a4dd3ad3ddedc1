// What the passes over the points share, forward and backward.
//
// A point has a group of lanes of one warp, a power of two, a vector of labels a lane (8 lanes of 4 labels for 21 float labels);
// more labels than a warp has lanes for take several vectors a lane. What is told of a whole point goes through shuffles, in an
// order that depends on the number of labels alone.
#pragma once

#include <cstring>
#include <string>
#include <type_traits>
#include <vector>

#include "lattice/cuda/vectors.cuh"
#include "mean_field/cuda/forward.h"
#include "support/errors.h"

namespace deeplab_crf::cuda {

constexpr int kWarpBits = 5, kWarp = 1 << kWarpBits;
// Vectors a lane that are kept in registers.
constexpr int kMostVectors = 4;

//   order    (N) or null: position p is row order[p] of what the caller gave
//   stopped  (B) or null: images that are left alone
struct PointGrid {
  int64_t points;  // of all images
  int64_t num_points;
  int64_t num_labels;
  int group;  // 2^group_bits lanes a point
  int group_bits;
  const int32_t* order;
  const int32_t* stopped;

  unsigned blocks() const { return blocks_for(points * group); }
};

template <class T>
PointGrid make_point_grid(int64_t batch, int64_t num_points, int64_t num_labels, const int32_t* order) {
  PointGrid grid{batch * num_points, num_points, num_labels, 1, 0, order, nullptr};
  while (grid.group_bits < kWarpBits && grid.group < vectors_of<T>(num_labels)) grid.group = 1 << ++grid.group_bits;
  return grid;
}

// Calls body.template operator()<R>(), R vectors a lane in registers; 0: any number, and none of them.
template <class Body>
void for_vectors_a_lane(int64_t vectors, const Body& body) {
  if (vectors > int64_t{kWarp} * kMostVectors) return body.template operator()<0>();
  if (vectors > kWarp) return body.template operator()<kMostVectors>();
  body.template operator()<1>();
}

// This thread's part of a grid. Lanes without a point take the last one's part in the shuffles and write nothing.
struct PointLane {
  int lane;
  int64_t point;  // position, over all images
  int64_t image;
  int64_t row;
  bool writes;

  __device__ __forceinline__ explicit PointLane(const PointGrid& grid) {
    lane = static_cast<int>(threadIdx.x) & (grid.group - 1);
    const int64_t wanted = thread_number() >> grid.group_bits;
    point = wanted < grid.points ? wanted : grid.points - 1;
    image = point / grid.num_points;
    row = row_of(grid, image, point - image * grid.num_points);
    writes = wanted < grid.points && !is_left_alone(grid, image);
  }
  __device__ static __forceinline__ int64_t row_of(const PointGrid& grid, int64_t image, int64_t position) {
    return image * grid.num_points + (grid.order != nullptr ? grid.order[position] : position);
  }
  __device__ static __forceinline__ bool is_left_alone(const PointGrid& grid, int64_t image) {
    return grid.stopped != nullptr && grid.stopped[image] != 0;
  }
};

// Calls body(r, v) for the vectors of this lane.
template <int R, class Body>
__device__ __forceinline__ void for_vectors(const PointLane& at, int group, int64_t vectors, const Body& body) {
  if constexpr (R > 0) {
#pragma unroll
    for (int r = 0; r < R; ++r) {
      if (at.lane + r * group < vectors) body(r, at.lane + r * group);
    }
  } else {
    for (int r = 0; at.lane + r * group < vectors; ++r) body(r, at.lane + r * group);
  }
}

template <class T, class Combine>
__device__ T across_group(T value, int group, const Combine& combine) {
  for (int distance = group / 2; distance > 0; distance /= 2) value = combine(value, __shfl_xor_sync(~0u, value, distance));
  return value;
}
struct Sum {
  template <class T>
  __device__ T operator()(T x, T y) const {
    return x + y;
  }
};
struct Largest {
  template <class T>
  __device__ T operator()(T x, T y) const {
    return x > y ? x : y;
  }
};

template <class T>
using Bits = std::conditional_t<sizeof(T) == 4, unsigned, unsigned long long>;

// Bits of numbers that are not negative have the order of the numbers.
template <class T>
__device__ void raise_to(T* largest, T value) {
  auto* bits = reinterpret_cast<Bits<T>*>(largest);
  Bits<T> mine;
  memcpy(&mine, &value, sizeof value);
  // Most points find a larger one there already.
  if (mine > *static_cast<volatile Bits<T>*>(bits)) atomicMax(bits, mine);
}

// What a pass needs of a kernel, or of the transposed one. values (capacity, V): blurred, with a matrix already applied.
//   norm    (B, N) or null: of the kernel's output
//   labels  (L) compatibilities by label, or null: the same for all labels
//   same    (1) or null for 1
//   factor  times that: the sign and the lattice's scale
template <class T>
struct DevicePassTerm {
  const int32_t* rows;
  const T* weights;
  const T* norm;
  const Vector<T>* values;
  const T* labels;
  const T* same;
  T factor;
  int corners;
};

template <class T>
DevicePassTerm<T> make_pass_term(const DeviceLattice<T>& lattice, const T* norm, Compatibility kind, const T* compat) {
  const T scale = geometry::slice_scale<T>(lattice.sizes.dims);
  const bool potts = kind == Compatibility::kPotts;
  return {lattice.rows,
          lattice.weights,
          norm,
          nullptr,
          kind == Compatibility::kDiagonal ? compat : nullptr,
          potts ? compat : nullptr,
          potts ? -scale : scale,
          lattice.sizes.corners()};
}

// Factor of all labels of a point, without the norm.
template <class T>
__device__ __forceinline__ T factor_of(const DevicePassTerm<T>& term) {
  return term.same != nullptr ? term.factor * *term.same : term.factor;
}

// sum_k b_k values[row_k], one vector.
template <class T>
__device__ __forceinline__ Vector<T> slice_of(const DevicePassTerm<T>& term, int64_t point, int64_t vectors, int64_t v) {
  const int32_t* rows = term.rows + point * term.corners;
  const T* weights = term.weights + point * term.corners;
  Vector<T> sum{};
#pragma unroll 3
  for (int k = 0; k < term.corners; ++k) add_scaled(sum, weights[k], term.values[rows[k] * vectors + v]);
  return sum;
}

// value times the compatibilities by label, where the term has them.
template <class T>
__device__ __forceinline__ Vector<T> by_label(const DevicePassTerm<T>& term, int64_t labels, int64_t v, Vector<T> value) {
  if (term.labels == nullptr) return value;
  const Vector<T> factors = load_row(term.labels, labels, v);
  for (int i = 0; i < Vector<T>::kLanes; ++i) value.lane[i] *= factors.lane[i];
  return value;
}

// mixed[v, l] = sum_l' compat(l, l') values[v, l'] at every vertex: the matrix of a compatibility commutes with the slice, and
// there are fewer vertices than points.
//   compat         (L, L): compat(l, l') lies at l * to_stride + l' * from_stride
//   values, mixed  (capacity, V)
// A vertex and vector a thread. Bytes a vertex: a row in, for V threads, and a row out; the matrix from the cache; 2 L flops a
// label.
template <class T>
__global__ void __launch_bounds__(kThreads)
    apply_compatibility(DeviceLattice<T> lattice, const T* compat, int64_t to_stride, int64_t from_stride, int64_t labels,
                        const T* values, Vector<T>* mixed) {
  constexpr int kLanes = Vector<T>::kLanes;
  const int64_t vectors = vectors_of<T>(labels), thread = thread_number(), vertex = thread / vectors, v = thread - vertex * vectors;
  if (vertex >= lattice.structure[kNumVertices] || vertex >= lattice.sizes.capacity) return;
  const T* value = values + vertex * vectors * kLanes;
  Vector<T> sum{};
  for (int64_t from = 0; from < labels; ++from) {
    for (int i = 0; i < kLanes; ++i) {
      const int64_t to = v * kLanes + i;
      if (to < labels) sum.lane[i] += compat[to * to_stride + from * from_stride] * value[from];
    }
  }
  mixed[thread] = sum;
}

// What splat_and_blur left in a filter's workspace, mixed by a matrix or its transpose, in the buffer that is free there.
template <class T>
T* mix(const DeviceLattice<T>& lattice, const T* compat, bool transpose, int64_t labels, const T* values, T* workspace,
       const Queue& queue) {
  const int64_t vectors = vectors_of<T>(labels), rows = lattice.sizes.capacity * vectors;
  T* mixed = values == workspace ? workspace + rows * Vector<T>::kLanes : workspace;
  launch("apply_compatibility", apply_compatibility<T>, blocks_for(rows), queue, lattice, compat, transpose ? int64_t{1} : labels,
         transpose ? labels : int64_t{1}, labels, values, reinterpret_cast<Vector<T>*>(mixed));
  return mixed;
}

// After step `step`: the images that moved by no more than the tolerance stop.
//   changes  (B) of this step
//   steps    (B) out
//   stopped  (B) in and out. One block.
template <class T>
__global__ void __launch_bounds__(kThreads)
    stop_settled_images(int64_t batch, int step, T tolerance, const T* changes, int32_t* steps, int32_t* stopped) {
  for (int64_t image = threadIdx.x; image < batch; image += kThreads) {
    if (stopped[image] != 0) continue;
    steps[image] = step;
    if (changes[image] <= tolerance) stopped[image] = 1;
  }
}

// Throws InvalidArgument if there are more terms than kernels take, or lattices of other shapes.
template <class Terms>
void check_terms(const Terms& terms, int64_t batch, int64_t num_points) {
  if (terms.size() > kMaxTerms) {
    throw InvalidArgument("terms must be at most " + std::to_string(kMaxTerms) + " on CUDA; got " + std::to_string(terms.size()) +
                          ". Use the CPU for more");
  }
  for (const auto& term : terms) {
    const LatticeSizes& sizes = term.lattice.sizes;
    if (sizes.batch == batch && sizes.num_points == num_points) continue;
    throw InvalidArgument("lattices must be of " + std::to_string(batch) + " images of " + std::to_string(num_points) +
                          " points, as the energies are; got one of " + std::to_string(sizes.batch) + " images of " +
                          std::to_string(sizes.num_points));
  }
}

}  // namespace deeplab_crf::cuda

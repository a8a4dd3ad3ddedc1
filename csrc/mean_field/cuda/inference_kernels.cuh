// The fused pass over the points: slice, normalise, compatibility, softmax; and what goes with it.
//
// A point has a group of lanes of one warp, a power of two, a vector of labels a lane (8 lanes of 4 labels for 21 float labels);
// more labels than a warp has lanes for take several vectors a lane. Minimum, sum and change of a point go through shuffles, in an
// order that depends on the number of labels alone.
#pragma once

#include <cmath>
#include <cstring>
#include <type_traits>

#include "lattice/cuda/vectors.cuh"
#include "mean_field/cuda/inference.h"

namespace deeplab_crf::cuda {

// What the pass needs of a term. values (capacity, V): blurred, with a matrix already applied.
//   labels  (L) compatibilities by label, or null: the same for all labels
//   same    (1) or null for 1
//   factor  times that: the sign and the lattice's scale
template <class T>
struct PassTerm {
  const int32_t* rows;
  const T* weights;
  const T* norm_out;
  const Vector<T>* values;
  const T* labels;
  const T* same;
  T factor;
  int corners;
};

//   start     (B, N, L) or null: Q is taken from there
//   beliefs   (B N, V) in and out, padded with zeros
//   out       (B, N, L) or null: Q, or log Q if `logarithm`
//   trace     (B, N, L) or null: Q
//   changes   (B) bits of the largest moves, zero before; null: not wanted
//   stopped   (B) or null: images that are left alone
template <class T>
struct PassArguments {
  int64_t points;
  int64_t num_points;
  int64_t num_labels;
  int group;  // 2^group_bits lanes a point
  int group_bits;
  const T* unary;
  const T* start;
  const int32_t* order;
  T damping;
  bool logarithm;
  Vector<T>* beliefs;
  T* out;
  T* trace;
  T* changes;
  const int32_t* stopped;
  int num_terms;
  PassTerm<T> terms[kMaxTerms];
};

template <class T>
using Bits = std::conditional_t<sizeof(T) == 4, unsigned, unsigned long long>;

// Bits of numbers that are not negative have the order of the numbers.
template <class T>
__device__ void raise_to(T* largest, T value) {
  auto* bits = reinterpret_cast<Bits<T>*>(largest);
  Bits<T> mine;
  memcpy(&mine, &value, sizeof value);
  // Most points find a larger move there already.
  if (mine > *static_cast<volatile Bits<T>*>(bits)) atomicMax(bits, mine);
}

template <class T, class Combine>
__device__ T across_group(T value, int group, const Combine& combine) {
  for (int distance = group / 2; distance > 0; distance /= 2) value = combine(value, __shfl_xor_sync(~0u, value, distance));
  return value;
}

// energy += compatibility * norm * slice, one vector.
template <class T>
__device__ void add_term(const PassTerm<T>& term, int64_t point, int64_t vectors, int64_t v, int64_t labels, Vector<T>& energy) {
  const int32_t* rows = term.rows + point * term.corners;
  const T* weights = term.weights + point * term.corners;
  Vector<T> sum{};
#pragma unroll 3
  for (int k = 0; k < term.corners; ++k) add_scaled(sum, weights[k], term.values[rows[k] * vectors + v]);
  T factor = term.factor;
  if (term.norm_out != nullptr) factor *= term.norm_out[point];
  if (term.same != nullptr) factor *= *term.same;
  if (term.labels == nullptr) {
    add_scaled(energy, factor, sum);
    return;
  }
  const Vector<T> by_label = load_row(term.labels, labels, v);
  for (int i = 0; i < Vector<T>::kLanes; ++i) energy.lane[i] += factor * by_label.lane[i] * sum.lane[i];
}

// Exponents -e of vector v of a point; -inf behind the last label.
template <class T>
__device__ Vector<T> exponents_of(const PassArguments<T>& a, int64_t point, int64_t row, int64_t vectors, int64_t v) {
  Vector<T> energy = load_row(a.unary + row * a.num_labels, a.num_labels, v);
  for (int m = 0; m < a.num_terms; ++m) add_term(a.terms[m], point, vectors, v, a.num_labels, energy);
  for (int i = 0; i < Vector<T>::kLanes; ++i) {
    energy.lane[i] = v * Vector<T>::kLanes + i < a.num_labels ? -energy.lane[i] : -static_cast<T>(INFINITY);
  }
  return energy;
}

// Moves q from `old` by the damping; returns the largest move.
template <class T>
__device__ T blend(Vector<T>& q, const Vector<T>& old, T damping) {
  T change = 0;
  for (int i = 0; i < Vector<T>::kLanes; ++i) {
    q.lane[i] += damping * (old.lane[i] - q.lane[i]);
    const T move = std::fabs(q.lane[i] - old.lane[i]);
    change = move > change ? move : change;
  }
  return change;
}

// e_l = U_l + sum_m C_m,l norm_out_m scale_m sum_k b_k values_m[row_k, l];  Q_l = exp(-e_l) / sum exp(-e), damped; log Q_l = -e_l -
// log sum exp(-e). R: vectors a lane, whose exponents stay in registers. R = 0: any number; the exponents are computed each time
// that they are needed. Bytes a point: 4 L of U in, 8 (d+1) of corners a term, 4 (L padded) of Q out; (d+1) rows a term from the
// cache. For 500 x 375 x 21 with d = 2 and 5: 15.8 + 13.5 + 18 = 47 MB, 11 us at 4.3 TB/s. Flops a label: 2 (d+1) a term and
// about 30.
template <class T, int R>
__global__ void __launch_bounds__(kThreads, 1) update_beliefs(PassArguments<T> a) {
  constexpr int kLanes = Vector<T>::kLanes;
  const int64_t labels = a.num_labels, vectors = vectors_of<T>(labels);
  const int lane = static_cast<int>(threadIdx.x) & (a.group - 1);
  const int64_t wanted = thread_number() >> a.group_bits;
  // Lanes without a point take the last one's part in the shuffles and write nothing.
  const int64_t point = wanted < a.points ? wanted : a.points - 1, image = point / a.num_points;
  const int64_t position = point - image * a.num_points;
  const int64_t row = image * a.num_points + (a.order != nullptr ? a.order[position] : position);
  const bool writes = wanted < a.points && (a.stopped == nullptr || a.stopped[image] == 0);
  Vector<T>* belief = a.beliefs + point * vectors;

  Vector<T> kept[R > 0 ? R : 1]{};
  const auto exponents = [&](int r) {
    if constexpr (R > 0) return kept[r];
    return exponents_of(a, point, row, vectors, lane + r * a.group);
  };
  // Calls body(r, v) for the vectors of this lane.
  const auto for_vectors = [&](const auto& body) {
    if constexpr (R > 0) {
#pragma unroll
      for (int r = 0; r < R; ++r) {
        if (lane + r * a.group < vectors) body(r, lane + r * a.group);
      }
    } else {
      for (int r = 0; lane + r * a.group < vectors; ++r) body(r, lane + r * a.group);
    }
  };

  T largest = -static_cast<T>(INFINITY);
  for_vectors([&](int r, int64_t v) {
    const Vector<T> exponent = exponents_of(a, point, row, vectors, v);
    if constexpr (R > 0) kept[r] = exponent;
    for (int i = 0; i < kLanes; ++i) largest = exponent.lane[i] > largest ? exponent.lane[i] : largest;
  });
  largest = across_group(largest, a.group, [](T x, T y) { return x > y ? x : y; });
  T sum = 0;
  for_vectors([&](int r, int64_t) {
    const Vector<T> exponent = exponents(r);
    for (int i = 0; i < kLanes; ++i) sum += std::exp(exponent.lane[i] - largest);
  });
  sum = across_group(sum, a.group, [](T x, T y) { return x + y; });
  const T scale = T(1) / sum, shift = -largest - std::log(sum);

  T change = 0;
  for_vectors([&](int r, int64_t v) {
    Vector<T> q = exponents(r), logarithm = q;
    for (int i = 0; i < kLanes; ++i) {
      q.lane[i] = std::exp(q.lane[i] - largest) * scale;
      logarithm.lane[i] += shift;
    }
    if (a.start != nullptr) {
      q = load_row(a.start + row * labels, labels, v);
      for (int i = 0; i < kLanes; ++i) logarithm.lane[i] = std::log(q.lane[i]);
    }
    if (a.damping > T(0) || a.changes != nullptr) {
      const T move = blend(q, belief[v], a.damping);
      change = move > change ? move : change;
    }
    if (!writes) return;
    belief[v] = q;
    if (a.trace != nullptr) store_row(a.trace + row * labels, labels, v, q);
    // Lane by lane: a choice between two vectors would be one of addresses, and both would lie in memory.
    for (int i = 0; i < kLanes; ++i) q.lane[i] = a.logarithm ? logarithm.lane[i] : q.lane[i];
    if (a.out != nullptr) store_row(a.out + row * labels, labels, v, q);
  });
  if (a.changes == nullptr) return;
  change = across_group(change, a.group, [](T x, T y) { return x > y ? x : y; });
  if (lane == 0 && writes) raise_to(a.changes + image, change);
}

// mixed[v, l] = sum_l' compat[l, l'] values[v, l'] at every vertex: the matrix of a compatibility commutes with the slice, and
// there are fewer vertices than points.
//   compat         (L, L) row-major
//   values, mixed  (capacity, V)
// A vertex and vector a thread. Bytes a vertex: a row in, for V threads, and a row out; the matrix from the cache; 2 L flops a
// label.
template <class T>
__global__ void __launch_bounds__(kThreads)
    mix_labels(LatticeView<T> lattice, const T* compat, int64_t labels, const T* values, Vector<T>* mixed) {
  constexpr int kLanes = Vector<T>::kLanes;
  const int64_t vectors = vectors_of<T>(labels), thread = thread_number(), vertex = thread / vectors, v = thread - vertex * vectors;
  if (vertex >= lattice.structure[kNumVertices] || vertex >= lattice.sizes.capacity) return;
  const T* value = values + vertex * vectors * kLanes;
  Vector<T> sum{};
  for (int64_t from = 0; from < labels; ++from) {
    for (int i = 0; i < kLanes; ++i) {
      const int64_t to = v * kLanes + i;
      if (to < labels) sum.lane[i] += compat[to * labels + from] * value[from];
    }
  }
  mixed[thread] = sum;
}

// After iteration `step`: the images whose beliefs moved by no more than the tolerance stop.
//   changes  (B) of this iteration
//   steps    (B) out
//   stopped  (B); stopped[B]: whether all have. One block.
template <class T>
__global__ void __launch_bounds__(kThreads)
    judge_changes(int64_t batch, int step, T tolerance, const T* changes, int32_t* steps, int32_t* stopped) {
  __shared__ int running;
  if (threadIdx.x == 0) running = 0;
  __syncthreads();
  for (int64_t image = threadIdx.x; image < batch; image += kThreads) {
    if (stopped[image] != 0) continue;
    steps[image] = step;
    if (changes[image] <= tolerance) {
      stopped[image] = 1;
    } else {
      atomicAdd(&running, 1);
    }
  }
  __syncthreads();
  if (threadIdx.x == 0) stopped[batch] = running == 0 ? 1 : 0;
}

}  // namespace deeplab_crf::cuda

// The fused pass over the points: slice, normalise, compatibility, softmax.
#pragma once

#include <cmath>

#include "mean_field/cuda/pass.cuh"

namespace deeplab_crf::cuda {

//   start     (B, N, L) or null: Q is taken from there
//   beliefs   (B N, V) in and out, padded with zeros
//   out       (B, N, L) or null: Q, or log Q if `logarithm`
//   trace     (B, N, L) or null: Q
//   changes   (B) bits of the largest moves, zero before; null: not wanted
template <class T>
struct DevicePassArguments {
  PointGrid grid;
  const T* unary;
  const T* start;
  T damping;
  bool logarithm;
  Vector<T>* beliefs;
  T* out;
  T* trace;
  T* changes;
  int num_terms;
  DevicePassTerm<T> terms[kMaxTerms];
};

// energy += compatibility * norm * slice, one vector.
template <class T>
__device__ void add_term(const DevicePassTerm<T>& term, int64_t point, int64_t vectors, int64_t v, int64_t labels,
                         Vector<T>& energy) {
  const Vector<T> slice = slice_of(term, point, vectors, v);
  T factor = factor_of(term);
  if (term.norm != nullptr) factor *= term.norm[point];
  add_scaled(energy, factor, by_label(term, labels, v, slice));
}

// Exponents -e of vector v of a point; -inf behind the last label.
template <class T>
__device__ Vector<T> exponents_of(const DevicePassArguments<T>& a, int64_t point, int64_t row, int64_t vectors, int64_t v) {
  const int64_t labels = a.grid.num_labels;
  Vector<T> energy = load_row(a.unary + row * labels, labels, v);
  for (int m = 0; m < a.num_terms; ++m) add_term(a.terms[m], point, vectors, v, labels, energy);
  for (int i = 0; i < Vector<T>::kLanes; ++i) {
    energy.lane[i] = v * Vector<T>::kLanes + i < labels ? -energy.lane[i] : -static_cast<T>(INFINITY);
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
__global__ void __launch_bounds__(kThreads, 1) update_beliefs(DevicePassArguments<T> a) {
  constexpr int kLanes = Vector<T>::kLanes;
  const int64_t labels = a.grid.num_labels, vectors = vectors_of<T>(labels);
  const PointLane at(a.grid);
  const int64_t point = at.point, row = at.row;
  Vector<T>* belief = a.beliefs + point * vectors;

  Vector<T> kept[R > 0 ? R : 1]{};
  const auto exponents = [&](int r) {
    if constexpr (R > 0) return kept[r];
    return exponents_of(a, point, row, vectors, at.lane + r * a.grid.group);
  };
  const auto for_own_vectors = [&](const auto& body) { for_vectors<R>(at, a.grid.group, vectors, body); };

  T largest = -static_cast<T>(INFINITY);
  for_own_vectors([&](int r, int64_t v) {
    const Vector<T> exponent = exponents_of(a, point, row, vectors, v);
    if constexpr (R > 0) kept[r] = exponent;
    for (int i = 0; i < kLanes; ++i) largest = exponent.lane[i] > largest ? exponent.lane[i] : largest;
  });
  largest = across_group(largest, a.grid.group, Largest());
  T sum = 0;
  for_own_vectors([&](int r, int64_t) {
    const Vector<T> exponent = exponents(r);
    for (int i = 0; i < kLanes; ++i) sum += std::exp(exponent.lane[i] - largest);
  });
  sum = across_group(sum, a.grid.group, Sum());
  const T scale = T(1) / sum, shift = -largest - std::log(sum);

  T change = 0;
  for_own_vectors([&](int r, int64_t v) {
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
    if (!at.writes) return;
    belief[v] = q;
    if (a.trace != nullptr) store_row(a.trace + row * labels, labels, v, q);
    // Lane by lane: a choice between two vectors would be one of addresses, and both would lie in memory.
    for (int i = 0; i < kLanes; ++i) q.lane[i] = a.logarithm ? logarithm.lane[i] : q.lane[i];
    if (a.out != nullptr) store_row(a.out + row * labels, labels, v, q);
  });
  if (a.changes == nullptr) return;
  change = across_group(change, a.grid.group, Largest());
  if (at.lane == 0 && at.writes) raise_to(a.changes + at.image, change);
}

}  // namespace deeplab_crf::cuda

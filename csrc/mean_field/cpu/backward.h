// The adjoint of mean field: gradients of T iterations, from their last belief back to their first.
//
// Iteration t was e_t = U + sum_m C_m K_m Q_{t-1}, Q_t = softmax(-e_t), K_m = norm_out_m L_m norm_in_m. With g_t the gradient in
// e_t:
//   G_m = K_m^T g_{t+1},  gradient in Q_t = sum_m C_m^T G_m,  g_t = -Q_t (gradient in Q_t - <gradient in Q_t, Q_t>),
// and the gradients in U, C_m, norms and barycentric weights are sums over t. K_m^T splats, blurs in reverse and slices as K_m
// does.
#pragma once

#include <cstdint>
#include <vector>

#include "mean_field/cpu/forward.h"

namespace deeplab_crf {

// One pairwise kernel, and where its gradients go (null: not asked for).
//   values             workspaces of (num_rows, row_stride(L)) each; the third if norm_out_gradient or weight_gradient is asked for
//   compat_gradient    whether the gradient in compat is asked for; MeanFieldBackward returns it
//   norm_in_gradient, norm_out_gradient (N), weight_gradient (N, d+1): written
template <class T>
struct GradientTerm {
  const LatticeView<T>* lattice;
  const T* norm_in;
  const T* norm_out;
  Compatibility kind;
  const T* compat;
  T* values[3];
  bool compat_gradient;
  T* norm_in_gradient;
  T* norm_out_gradient;
  T* weight_gradient;

  // Whether the messages K_m Q_{t-1} have to be computed again.
  bool refilters() const { return norm_out_gradient != nullptr || weight_gradient != nullptr; }
};

// Arrays (N, L) in the rows that `order` gives, as in MeanFieldArguments.
template <class T>
struct GradientArguments {
  int64_t num_points;
  int64_t num_labels;
  const int32_t* order;
  std::vector<GradientTerm<T>> terms;
  int iterations;
  const T* trace;        // Q_t at t * trace_stride, t < iterations
  int64_t trace_stride;  // 0: one Q for all t, the fixed point of an implicit derivative
  const T* output;       // Q_T, or log Q_T
  bool log_output;
  const T* grad_output;
  T* grad_unary;  // written
  T* grad_start;  // written: the gradient in a given Q_0; null if Q_0 was softmax(-U)
  T tolerance;    // stop once no entry of g_t is larger; 0: never
  InterruptCheck keep_going;
};

template <class T>
struct GradientOutcome {
  int steps;
  double move;  // largest entry of the last g_t; NaN without a tolerance
  // Of each term whose compat_gradient is asked for, in the shape of its compat. Sums over all points, in double.
  std::vector<std::vector<double>> compat_gradients;
};

// About the time of the iterations themselves; with refilters() a splat and a blur more an iteration, and two dot products of rows
// a corner. Repeats bit for bit for any thread count. No vertex of the lattices may be without a point. Throws Interrupted if
// keep_going says no.
template <class T>
GradientOutcome<T> mean_field_gradient(const GradientArguments<T>& arguments, int threads);

}  // namespace deeplab_crf

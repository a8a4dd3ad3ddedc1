// The backward pass of mean field over the points as a function per instruction set.
#pragma once

#include "mean_field/cpu/kernels.h"

namespace deeplab_crf {

// What a PassTerm of the transposed kernel (norms exchanged) needs besides, null where not asked for. Its coefficients: kPotts and
// kDiagonal: (stride); kMatrix: compat itself, (L, stride), rows padded.
template <class T>
struct GradientPassTerm {
  const T* columns;     // kMatrix: (L, stride), column l' of compat in row l'; others: the coefficients
  const T* messages;    // blurred values of norm_in Q_{t-1}, ghost rows filled
  double* compat_sums;  // (stride) or (L, stride): += G_m Q_t over the slice scale
  T* norm_in_gradient;
  T* norm_out_gradient;
  T* weight_gradient;
};

// In `pass`: old_q is Q_t, slice is off in the first pass, splat in the last one; scratch is (4 * kPassBlock * stride).
template <class T>
struct GradientPassArguments {
  PassArguments<T> pass;
  const GradientPassTerm<T>* gradients;
  const T* grad_output;  // (N, labels), in the first pass; else null
  bool log_output;       // old_q and grad_output are of log Q
  T* grad_unary;         // (N, labels): += g_t, in the first pass = g_t
  T* grad_start;         // (N, labels): the gradient in Q_t goes here, and there is no g_t; or null
};

template <class T>
struct GradientKernels {
  // Points [begin, end), one thread. Returns the largest entry of g_t if pass.watch, else 0.
  T (*pass)(const GradientPassArguments<T>& arguments, int64_t begin, int64_t end);
};

template <class T>
const GradientKernels<T>& gradient_kernels();

}  // namespace deeplab_crf

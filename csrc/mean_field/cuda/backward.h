// The adjoint of mean field for a batch on a device; see mean_field/cpu/backward.h for the mathematics and the options. Nothing
// here waits for the device: a tolerance is judged there, image by image. Plain C++: no CUDA header.
#pragma once

#include <vector>

#include "mean_field/cuda/forward.h"

namespace deeplab_crf::cuda {

// One pairwise kernel, and where its gradients go (null: not asked for), all of them written.
//   norm_in, norm_out                    (B, N) or null
//   compat, compat_gradient              on the device, as of KernelTerm; the gradient is summed over the images
//   norm_in_gradient, norm_out_gradient  (B, N)
//   weight_gradient                      (B, N, d+1)
template <class T>
struct DeviceGradientTerm {
  DeviceLattice<T> lattice;
  const T* norm_in;
  const T* norm_out;
  Compatibility kind;
  const T* compat;
  T* compat_gradient;
  T* norm_in_gradient;
  T* norm_out_gradient;
  T* weight_gradient;

  // Whether the messages K_m Q_{t-1} have to be computed again.
  bool refilters() const { return norm_out_gradient != nullptr || weight_gradient != nullptr; }
};

//   order         (N) or null: as in InferenceArguments
//   trace         (B, N, L), Q_t at t * trace_stride, t < iterations
//   trace_stride  0: one Q for all t, the fixed point of an implicit derivative
//   output        (B, N, L): Q_T, or log Q_T
//   grad_output   (B, N, L)
//   grad_unary    (B, N, L), written
//   grad_start    (B, N, L), written: the gradient in a given Q_0; null if Q_0 was softmax(-U)
//   tolerance     an image stops once no entry of its g_t is larger; 0: never
//   steps         (B) int32 out, where tolerance > 0: steps that each image took
//   moves         (iterations + 1, B) out, where tolerance > 0: largest entries of g_T, ..., g_0; 0 after an image has stopped
//   workspace     gradient_workspace_size() bytes, aligned to 256
template <class T>
struct DeviceGradientArguments {
  int64_t batch;
  int64_t num_points;
  int64_t num_labels;
  const int32_t* order;
  std::vector<DeviceGradientTerm<T>> terms;
  int iterations;
  const T* trace;
  int64_t trace_stride;
  const T* output;
  bool log_output;
  const T* grad_output;
  T* grad_unary;
  T* grad_start;
  T tolerance;
  int32_t* steps;
  T* moves;
  void* workspace;
};

// Of these arguments; of their pointers it matters which are null, but for the workspace. Throws as mean_field_gradient does.
template <class T>
int64_t gradient_workspace_size(const DeviceGradientArguments<T>& arguments);

// Throws InvalidArgument if there are too many terms, or lattices of other shapes. The same bits every time, and for each image
// those that it has alone; compat_gradient is the sum of the images' in their order.
template <class T>
void mean_field_gradient(const DeviceGradientArguments<T>& arguments, const Queue& queue);

}  // namespace deeplab_crf::cuda

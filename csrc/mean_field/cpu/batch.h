// Mean field and its gradients for a batch of images that share compatibilities and the order of their points. Images are worked on
// as for_images says; each has the bits that it has alone.
#pragma once

#include <cstdint>
#include <vector>

#include "lattice/cpu/batch.h"
#include "mean_field/cpu/backward.h"
#include "mean_field/cpu/forward.h"

namespace deeplab_crf {

// Workspaces of an image: of a KernelTerm, and of a GradientTerm.
constexpr int kForwardBuffers = 2;
constexpr int gradient_buffers(bool refilters) { return refilters ? 3 : 2; }

// KernelTerm for B images.
//   norm_in, norm_out  (B, N) or null
//   values             images_side_by_side() times the workspaces of a KernelTerm (GradientTerm) with max_rows
template <class T>
struct BatchTerm {
  const LatticeBatch<T>* lattice;
  const T* norm_in;
  const T* norm_out;
  Compatibility kind;
  const T* compat;
  T* values;
};

// `first` has the arrays of the first image, without terms; those of the others lie N * L elements on, each.
template <class T>
struct MeanFieldBatchArguments {
  int64_t batch;
  MeanFieldArguments<T> first;
  std::vector<BatchTerm<T>> terms;
};
// The outcome of each image. Throws InvalidArgument if the lattices are not of `batch` images of N points.
template <class T>
std::vector<MeanFieldOutcome> mean_field(const MeanFieldBatchArguments<T>& arguments, int threads);

// Where the gradients of a BatchTerm go, or null.
//   compat_gradient                      in the shape of compat, summed over the images
//   norm_in_gradient, norm_out_gradient  (B, N)
//   weight_gradient                      (B, N, d+1)
template <class T>
struct BatchGradientTerm {
  BatchTerm<T> kernel;
  T* compat_gradient;
  T* norm_in_gradient;
  T* norm_out_gradient;
  T* weight_gradient;

  // Value buffers of an image.
  int buffers() const { return gradient_buffers(norm_out_gradient != nullptr || weight_gradient != nullptr); }
};

template <class T>
struct GradientBatchArguments {
  int64_t batch;
  GradientArguments<T> first;
  std::vector<BatchGradientTerm<T>> terms;
};
// The outcome of each image; their compat_gradients are summed already. Throws InvalidArgument as mean_field does.
template <class T>
std::vector<GradientOutcome<T>> mean_field_gradient(const GradientBatchArguments<T>& arguments, int threads);

}  // namespace deeplab_crf

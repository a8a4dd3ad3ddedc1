// Mean field inference for a batch on a device; see mean_field/cpu/forward.h for the iteration and its options. Nothing here waits
// for the device: a tolerance is judged there, image by image. Plain C++: no CUDA header.
#pragma once

#include <vector>

#include "lattice/cuda/filter.h"
#include "mean_field/cpu/forward.h"

namespace deeplab_crf::cuda {

// One pairwise kernel.
//   norm_in, norm_out  (B, N) or null
//   compat             on the device, as of KernelTerm
//   workspace          a filter's, for L channels
template <class T>
struct Term {
  DeviceLattice<T> lattice;
  const T* norm_in;
  const T* norm_out;
  Compatibility kind;
  const T* compat;
  T* workspace;
};

// Terms of one inference, at most: kernels take them by value.
constexpr int kMaxTerms = 16;

//   unary    (B, N, L) energies
//   q        (B, N, L) out; in: the start, if start_from_q
//   order    (N) or null: position p of the lattices and norms is row order[p] of unary, q and trace
//   trace    (trace_slots, B, N, L) or null: Q_t goes to slot t % trace_slots, the last one excepted
//   beliefs  (B N, row_stride(L)) workspace, aligned to 16 bytes: Q by position
//   steps    (B) int32 out, where tolerance > 0: iterations that each image took
//   changes  (iterations, B) out, where tolerance > 0: largest move of a probability in each iteration; 0 after an image has
//            stopped
//   state    (B) int32 workspace, where tolerance > 0: images that have stopped
template <class T>
struct InferenceArguments {
  int64_t batch;
  int64_t num_points;
  int64_t num_labels;
  const T* unary;
  T* q;
  const int32_t* order;
  std::vector<Term<T>> terms;
  bool start_from_q;
  bool log_output;
  int iterations;
  T damping;
  T tolerance;
  T* trace;
  int64_t trace_slots;
  T* beliefs;
  int32_t* steps;
  T* changes;
  int32_t* state;
};

// Throws InvalidArgument if there are too many terms, or lattices of other shapes. The same bits every time, and for each image
// those that it has alone.
template <class T>
void mean_field(const InferenceArguments<T>& arguments, const Queue& queue);

}  // namespace deeplab_crf::cuda

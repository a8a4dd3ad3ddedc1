// The fused pass of mean field over the points as a function per instruction set.
#pragma once

#include <cstdint>

#include "mean_field/mean_field.h"

namespace deeplab_crf {

// A KernelTerm made ready for the pass.
template <class T>
struct PassTerm {
  const LatticeView<T>* lattice;
  const T* norm_in;
  const T* norm_out;
  Compatibility kind;
  const T* coefficients;  // slice scale multiplied in. kPotts: 1; kDiagonal: (stride); kMatrix: (L, stride), column l' of compat in
                          // row l'. Padded with zeros.
  const T* read;          // blurred values of the iteration before, ghosts filled
  T* write;               // rows of this chunk cleared
};

template <class T>
struct PassArguments {
  int64_t num_points;
  int64_t num_labels;
  int64_t stride;
  const T* unary;
  T* q;
  const PassTerm<T>* terms;
  int num_terms;
  bool slice;   // add the messages of `read` to the unary; otherwise Q = softmax(-U)
  bool from_q;  // take Q from q as it is
  bool splat;   // splat Q into `write`
  bool keep;    // write Q to q
  bool watch;   // q holds the old Q: blend with it by damping and measure the change
  T damping;
  T* scratch;  // (2 * stride) for the calling thread
};

template <class T>
struct MeanFieldKernels {
  // Points [begin, end), one thread. Returns the largest change of a probability if `watch`, else 0.
  T (*pass)(const PassArguments<T>& arguments, int64_t begin, int64_t end);
};

template <class T>
const MeanFieldKernels<T>& mean_field_kernels();

}  // namespace deeplab_crf

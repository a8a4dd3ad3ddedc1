// The fused pass of mean field over the points as a function per instruction set.
#pragma once

#include <cstdint>

#include "mean_field/cpu/forward.h"

namespace deeplab_crf {

// Points that the pass takes through its stages together.
constexpr int kPassBlock = 16;

// A KernelTerm made ready for the pass.
template <class T>
struct PassTerm {
  const LatticeView<T>* lattice;
  int corners;  // of the lattice, as are the next two
  const int32_t* rows;
  const T* weights;
  bool large;  // its values do not fit the second-level cache
  const T* norm_in;
  const T* norm_out;
  Compatibility kind;
  const T* coefficients;  // slice scale multiplied in. kPotts: 1; kDiagonal: (stride); kMatrix: (L, stride), column l' of compat in
                          // row l'. Padded with zeros.
  T* read;                // blurred values of the iteration before; the pass fills the chunk's ghost rows
  T* write;               // the pass clears the chunk's rows
  // The chunk's rows that no point has touched yet start here. Rows are numbered in the order of first touch, so the pass clears
  // them, and fetches the ghosts, just before they are used.
  int64_t next_owned;
  int64_t next_ghost;
};

// Bytes of values beyond which rows are fetched ahead.
constexpr int64_t kLargeLattice = 4 << 20;

// What the lattice and the chunk say of a term; rows are `stride` elements apart.
template <class T>
PassTerm<T> make_pass_term(const LatticeView<T>& lattice, int64_t chunk, int64_t stride) {
  PassTerm<T> term{};
  term.lattice = &lattice;
  term.corners = lattice.corners();
  term.rows = lattice.rows;
  term.weights = lattice.weights;
  term.large = lattice.num_vertices * stride * static_cast<int64_t>(sizeof(T)) > kLargeLattice;
  term.next_owned = lattice.owned_begin[chunk];
  term.next_ghost = lattice.num_vertices + lattice.ghost_begin[chunk];
  return term;
}

template <class T>
struct PassArguments {
  int64_t num_points;
  int64_t num_labels;
  int64_t stride;
  const T* unary;
  const T* old_q;        // (N, labels) for from_q and watch
  T* q;                  // (N, labels) for keep
  T* trace;              // (N, labels) Q goes here too, or null
  const int32_t* order;  // (N) row of unary and q of each position, or null: the same
  PassTerm<T>* terms;
  int num_terms;
  bool slice;       // add the messages of `read` to the unary; otherwise Q = softmax(-U)
  bool from_q;      // take Q from old_q as it is
  bool splat;       // splat Q into `write`
  bool keep;        // write Q to q
  bool log_output;  // or its logarithm
  bool watch;       // blend with old_q by damping and measure the change
  T damping;
  T* scratch;  // (2 * kPassBlock * stride) for the calling thread
};

template <class T>
struct MeanFieldKernels {
  // Points [begin, end), one thread. Returns the largest change of a probability if `watch`, else 0.
  T (*pass)(const PassArguments<T>& arguments, int64_t begin, int64_t end);
};

template <class T>
const MeanFieldKernels<T>& mean_field_kernels();

}  // namespace deeplab_crf

// Mean field inference in a fully connected CRF (Kraehenbuehl & Koltun, NIPS 2011, algorithm 1):
//   Q <- softmax(-U - sum_m C_m (K_m Q)),  K_m = norm_out L_m norm_in,
// all labels of all points at once (parallel update), the self term included.
#pragma once

#include <cstdint>
#include <vector>

#include "lattice/lattice.h"

namespace deeplab_crf {

enum class Compatibility { kPotts = 0, kDiagonal = 1, kMatrix = 2 };

// Elements of a compatibility.
constexpr int64_t compat_size(Compatibility kind, int64_t labels) {
  return kind == Compatibility::kMatrix ? labels * labels : kind == Compatibility::kDiagonal ? labels : 1;
}

// One pairwise kernel.
//   norm_in, norm_out  (N) or null
//   compat             kPotts: one weight w, the energy gets -w K Q; kDiagonal: (L) and kMatrix: (L, L) row-major, it gets
//                      + compat (K Q)
//   values             two workspaces of (num_rows, row_stride(L)) each
template <class T>
struct KernelTerm {
  const LatticeView<T>* lattice;
  const T* norm_in;
  const T* norm_out;
  Compatibility kind;
  const T* compat;
  T* values[2];
};

// Asks the caller between iterations whether to go on.
struct InterruptCheck {
  bool (*ask)(void* context);
  void* context;
};

//   trace  (trace_slots) arrays (N, L), or null: Q_t of iteration t goes to slot t % trace_slots, the last one excepted. One slot
//          holds the old Q that damping and tolerance need, as many slots as iterations the steps of a backward pass. Null: q
//          holds the old Q.
//   order  (N) or null: lattices and norms take the points in this order; position p is row order[p] of unary and q. A walk in
//          small tiles of an image keeps lattice rows in the caches.
template <class T>
struct MeanFieldArguments {
  int64_t num_points;
  int64_t num_labels;
  const T* unary;   // (N, L) energies
  T* q;             // (N, L) out; in: the start, if start_from_q
  bool log_output;  // q becomes log Q, exact where Q underflows; with a tolerance it needs a trace, and damping must be 0
  T* trace;
  int64_t trace_slots;
  int64_t trace_stride;  // elements from slot to slot
  const int32_t* order;
  std::vector<KernelTerm<T>> terms;
  bool start_from_q;
  int iterations;
  T damping;    // in [0, 1): Q <- (1 - damping) new + damping old
  T tolerance;  // stop once no probability moves by more; 0: never
  InterruptCheck keep_going;
};

struct MeanFieldOutcome {
  int iterations;
  double change;  // largest move of a probability in the last iteration; NaN if it was not watched (tolerance 0)
};

// Fused: slice, normalise, compatibility, softmax and the next splat are one pass over the points, so Q reaches memory only at
// the end, or each iteration if damping or a tolerance needs the old one. Repeats bit for bit for any thread count.
// Throws Interrupted if keep_going says no.
template <class T>
MeanFieldOutcome mean_field(const MeanFieldArguments<T>& arguments, int threads);

}  // namespace deeplab_crf

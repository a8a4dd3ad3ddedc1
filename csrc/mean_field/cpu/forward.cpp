#include "mean_field/cpu/forward.h"

#include <algorithm>
#include <limits>

#include "lattice/geometry.h"
#include "mean_field/cpu/kernels.h"
#include "support/errors.h"
#include "support/parallel.h"

namespace deeplab_crf {
namespace {

// The compatibility of a term as the pass wants it: padded, by columns, the slice scale multiplied in.
template <class T>
std::vector<T> pass_coefficients(const KernelTerm<T>& term, int64_t labels, int64_t stride) {
  const T scale = geometry::slice_scale<T>(term.lattice->dims);
  if (term.kind == Compatibility::kPotts) return {-term.compat[0] * scale};
  if (term.kind == Compatibility::kDiagonal) {
    std::vector<T> diagonal(stride, T(0));
    for (int64_t l = 0; l < labels; ++l) diagonal[l] = term.compat[l] * scale;
    return diagonal;
  }
  std::vector<T> columns(labels * stride, T(0));
  for (int64_t to = 0; to < labels; ++to) {
    for (int64_t from = 0; from < labels; ++from) columns[from * stride + to] = term.compat[to * labels + from] * scale;
  }
  return columns;
}

// The iterations: passes over the points, ghosts and blur between them.
template <class T>
class MeanFieldForward {
 public:
  MeanFieldForward(const MeanFieldArguments<T>& arguments, int threads)
      : arguments_(arguments), threads_(threads), stride_(row_stride<T>(arguments.num_labels)) {
    for (const KernelTerm<T>& term : arguments.terms) {
      coefficients_.push_back(pass_coefficients(term, arguments.num_labels, stride_));
    }
    pass_.num_points = arguments.num_points;
    pass_.num_labels = arguments.num_labels;
    pass_.stride = stride_;
    pass_.unary = arguments.unary;
    pass_.q = arguments.q;
    pass_.order = arguments.order;
    pass_.num_terms = static_cast<int>(arguments.terms.size());
    pass_.damping = arguments.damping;
    pass_.log_output = arguments.log_output;
  }

  MeanFieldOutcome run() {
    const int iterations = arguments_.iterations;
    const bool needs_old_q = arguments_.tolerance > 0 || arguments_.damping > 0;
    const bool traced = arguments_.trace != nullptr;
    MeanFieldOutcome outcome{0, std::numeric_limits<double>::quiet_NaN()};
    pass_.from_q = arguments_.start_from_q;
    pass_.old_q = arguments_.q;
    pass_.splat = iterations > 0;
    pass_.keep = !pass_.from_q && (iterations == 0 || (needs_old_q && !traced));
    pass_.trace = traced && iterations > 0 ? trace_slot(0) : nullptr;
    if (pass_.splat || pass_.keep) process_points();
    pass_.from_q = false;
    pass_.slice = true;
    pass_.watch = needs_old_q;
    for (int t = 1; t <= iterations; ++t) {
      if (!arguments_.keep_going.ask(arguments_.keep_going.context)) throw Interrupted();
      exchange();
      pass_.splat = t < iterations;
      pass_.keep = needs_old_q || t == iterations;
      pass_.old_q = traced ? trace_slot(t - 1) : arguments_.q;
      pass_.trace = traced && t < iterations ? trace_slot(t) : nullptr;
      const T change = process_points();
      outcome.iterations = t;
      if (arguments_.tolerance > 0) {
        outcome.change = static_cast<double>(change);
        if (change <= arguments_.tolerance) break;
      }
    }
    return outcome;
  }

 private:
  // One pass over all points, chunks side by side. Returns the largest change.
  T process_points() {
    const int64_t chunks = chunk_count(arguments_.num_points);
    std::vector<T> changes(chunks, T(0));
    parallel_for(threads_, chunks, [&](int64_t c) {
      std::vector<PassTerm<T>> terms;
      for (size_t m = 0; m < arguments_.terms.size(); ++m) terms.push_back(prepare_term(m, c));
      std::vector<T> scratch(2 * kPassBlock * stride_);
      PassArguments<T> pass = pass_;
      pass.terms = terms.data();
      pass.scratch = scratch.data();
      changes[c] =
          mean_field_kernels<T>().pass(pass, chunk_begin(arguments_.num_points, c), chunk_begin(arguments_.num_points, c + 1));
      if (pass_.splat) clear_untouched(terms, c);
    });
    return *std::max_element(changes.begin(), changes.end());
  }

  T* trace_slot(int t) const { return arguments_.trace + t % arguments_.trace_slots * arguments_.trace_stride; }

  PassTerm<T> prepare_term(size_t m, int64_t chunk) const {
    const KernelTerm<T>& kernel = arguments_.terms[m];
    PassTerm<T> term = make_pass_term(*kernel.lattice, chunk, stride_);
    term.norm_in = kernel.norm_in;
    term.norm_out = kernel.norm_out;
    term.kind = kernel.kind;
    term.coefficients = coefficients_[m].data();
    term.read = kernel.values[side_];
    term.write = kernel.values[1 - side_];
    return term;
  }

  // Rows of vertices that exist though no point touches them (LatticeBuilder's touch_origin).
  void clear_untouched(const std::vector<PassTerm<T>>& terms, int64_t chunk) const {
    for (const PassTerm<T>& term : terms) {
      const LatticeView<T>& lattice = *term.lattice;
      const auto clear = [&](int64_t from, int64_t to) {
        if (from < to) std::fill(term.write + from * stride_, term.write + to * stride_, T(0));
      };
      clear(term.next_owned, lattice.owned_begin[chunk + 1]);
      clear(term.next_ghost, lattice.num_vertices + lattice.ghost_begin[chunk + 1]);
    }
  }

  // What was splatted becomes what is sliced.
  void exchange() {
    side_ = 1 - side_;
    for (const KernelTerm<T>& term : arguments_.terms) {
      gather_and_blur(*term.lattice, term.values[side_], arguments_.num_labels, false, threads_);
    }
  }

  const MeanFieldArguments<T>& arguments_;
  int threads_;
  int64_t stride_;
  std::vector<std::vector<T>> coefficients_;
  PassArguments<T> pass_{};
  int side_ = 0;
};

}  // namespace

template <class T>
MeanFieldOutcome mean_field(const MeanFieldArguments<T>& arguments, int threads) {
  return MeanFieldForward<T>(arguments, threads).run();
}

template MeanFieldOutcome mean_field<float>(const MeanFieldArguments<float>&, int);
template MeanFieldOutcome mean_field<double>(const MeanFieldArguments<double>&, int);

}  // namespace deeplab_crf

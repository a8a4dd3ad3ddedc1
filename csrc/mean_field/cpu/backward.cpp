#include "mean_field/cpu/backward.h"

#include <algorithm>
#include <limits>
#include <utility>

#include "lattice/geometry.h"
#include "mean_field/cpu/backward_kernels.h"
#include "support/errors.h"
#include "support/parallel.h"

namespace deeplab_crf {
namespace {

// The compatibility of a term as the backward pass wants it (GradientPassTerm), the slice scale multiplied in.
template <class T>
struct Coefficients {
  std::vector<T> rows;
  std::vector<T> columns;  // of a matrix

  Coefficients(const GradientTerm<T>& term, int64_t labels, int64_t stride) {
    const T scale = geometry::slice_scale<T>(term.lattice->dims);
    const int64_t lines = term.kind == Compatibility::kMatrix ? labels : 1;
    rows.assign(lines * stride, T(0));
    for (int64_t line = 0; line < lines; ++line) {
      for (int64_t l = 0; l < labels; ++l) {
        rows[line * stride + l] = (term.kind == Compatibility::kPotts ? -term.compat[0] : term.compat[line * labels + l]) * scale;
      }
    }
    if (term.kind != Compatibility::kMatrix) return;
    columns.assign(labels * stride, T(0));
    for (int64_t to = 0; to < labels; ++to) {
      for (int64_t from = 0; from < labels; ++from) columns[from * stride + to] = rows[to * stride + from];
    }
  }
};

// The iterations backwards: passes over the points, ghosts and blur between them.
template <class T>
class MeanFieldBackward {
 public:
  MeanFieldBackward(const GradientArguments<T>& arguments, int threads)
      : arguments_(arguments),
        threads_(threads),
        stride_(row_stride<T>(arguments.num_labels)),
        chunks_(chunk_count(arguments.num_points)) {
    for (const GradientTerm<T>& term : arguments.terms) {
      coefficients_.emplace_back(term, arguments.num_labels, stride_);
      compat_sums_.emplace_back(term.compat_gradient ? chunks_ * coefficients_.back().rows.size() : 0);
    }
    pass_.pass.num_points = arguments.num_points;
    pass_.pass.num_labels = arguments.num_labels;
    pass_.pass.stride = stride_;
    pass_.pass.order = arguments.order;
    pass_.pass.num_terms = static_cast<int>(arguments.terms.size());
    pass_.pass.watch = arguments.tolerance > 0;
    pass_.grad_unary = arguments.grad_unary;
  }

  GradientOutcome<T> run() {
    const int last = arguments_.iterations;
    GradientOutcome<T> outcome{0, std::numeric_limits<double>::quiet_NaN(), {}};
    clear_gradients();
    for (int t = last; t >= 0; --t) {
      if (!arguments_.keep_going.ask(arguments_.keep_going.context)) throw Interrupted();
      const bool first = t == last;
      if (!first) exchange();
      if (t > 0 && (first || arguments_.trace_stride != 0)) refilter(belief(t - 1));
      pass_.pass.old_q = first ? arguments_.output : belief(t);
      pass_.pass.slice = !first;
      pass_.pass.splat = t > 0;
      pass_.grad_output = first ? arguments_.grad_output : nullptr;
      pass_.log_output = first && arguments_.log_output;
      pass_.grad_start = t == 0 ? arguments_.grad_start : nullptr;
      const T largest = process_points();
      outcome.steps = last - t;
      if (arguments_.tolerance > 0) {
        outcome.move = static_cast<double>(largest);
        if (largest <= arguments_.tolerance) break;
      }
    }
    for (size_t m = 0; m < arguments_.terms.size(); ++m) outcome.compat_gradients.push_back(compat_gradient(m));
    return outcome;
  }

 private:
  const T* belief(int t) const { return arguments_.trace + t * arguments_.trace_stride; }

  // Gradients that the passes add to.
  void clear_gradients() {
    parallel_for(threads_, chunks_, [&](int64_t c) {
      const int64_t begin = chunk_begin(arguments_.num_points, c), end = chunk_begin(arguments_.num_points, c + 1);
      const auto clear = [&](T* gradient, int64_t width) {
        if (gradient != nullptr) std::fill(gradient + begin * width, gradient + end * width, T(0));
      };
      for (const GradientTerm<T>& term : arguments_.terms) {
        clear(term.norm_in_gradient, 1);
        clear(term.norm_out_gradient, 1);
        clear(term.weight_gradient, term.lattice->corners());
      }
      // Without an iteration a given Q_0 is the output, and nothing depends on the unary energies.
      if (arguments_.iterations == 0 && arguments_.grad_start != nullptr) clear(arguments_.grad_unary, arguments_.num_labels);
    });
  }

  // The kernel of a term in a chunk, from norm `in` to norm `out`.
  PassTerm<T> prepare_term(const GradientTerm<T>& term, int64_t chunk, const T* in, const T* out) const {
    PassTerm<T> pass = make_pass_term(*term.lattice, chunk, stride_);
    pass.norm_in = in;
    pass.norm_out = out;
    pass.kind = term.kind;
    return pass;
  }

  // The transposed kernel of a term, and where its gradients go.
  std::pair<PassTerm<T>, GradientPassTerm<T>> prepare_gradient(size_t m, int64_t chunk) {
    const GradientTerm<T>& term = arguments_.terms[m];
    PassTerm<T> pass = prepare_term(term, chunk, term.norm_out, term.norm_in);
    pass.coefficients = coefficients_[m].rows.data();
    pass.read = term.values[side_];
    pass.write = term.values[1 - side_];
    const bool matrix = term.kind == Compatibility::kMatrix;
    double* sums = term.compat_gradient ? compat_sums_[m].data() + chunk * coefficients_[m].rows.size() : nullptr;
    return {pass,
            {matrix ? coefficients_[m].columns.data() : pass.coefficients, term.refilters() ? term.values[2] : nullptr, sums,
             term.norm_in_gradient, term.norm_out_gradient, term.weight_gradient}};
  }

  // One pass over all points, chunks side by side. Returns the largest entry of g_t.
  T process_points() {
    std::vector<T> largest(chunks_, T(0));
    parallel_for(threads_, chunks_, [&](int64_t c) {
      std::vector<PassTerm<T>> terms;
      std::vector<GradientPassTerm<T>> gradients;
      for (size_t m = 0; m < arguments_.terms.size(); ++m) {
        const auto& [term, gradient] = prepare_gradient(m, c);
        terms.push_back(term);
        gradients.push_back(gradient);
      }
      std::vector<T> scratch(4 * kPassBlock * stride_);
      GradientPassArguments<T> pass = pass_;
      pass.pass.terms = terms.data();
      pass.pass.scratch = scratch.data();
      pass.gradients = gradients.data();
      largest[c] =
          gradient_kernels<T>().pass(pass, chunk_begin(arguments_.num_points, c), chunk_begin(arguments_.num_points, c + 1));
    });
    return *std::max_element(largest.begin(), largest.end());
  }

  // What was splatted becomes what is sliced.
  void exchange() {
    side_ = 1 - side_;
    for (const GradientTerm<T>& term : arguments_.terms) {
      gather_and_blur(*term.lattice, term.values[side_], arguments_.num_labels, true, threads_);
    }
  }

  // The messages of the iteration that began with `q`, where norms or weights ask for them.
  void refilter(const T* q) {
    const auto refilters = [](const GradientTerm<T>& term) { return term.refilters(); };
    if (std::none_of(arguments_.terms.begin(), arguments_.terms.end(), refilters)) return;
    PassArguments<T> splat = pass_.pass;
    splat.old_q = q;
    splat.from_q = true;
    splat.slice = splat.watch = false;
    splat.splat = true;
    parallel_for(threads_, chunks_, [&](int64_t c) {
      std::vector<PassTerm<T>> terms;
      for (const GradientTerm<T>& term : arguments_.terms) {
        if (!term.refilters()) continue;
        terms.push_back(prepare_term(term, c, term.norm_in, term.norm_out));
        terms.back().write = term.values[2];
      }
      std::vector<T> scratch(2 * kPassBlock * stride_);
      PassArguments<T> pass = splat;
      pass.terms = terms.data();
      pass.num_terms = static_cast<int>(terms.size());
      pass.scratch = scratch.data();
      mean_field_kernels<T>().pass(pass, chunk_begin(arguments_.num_points, c), chunk_begin(arguments_.num_points, c + 1));
    });
    for (const GradientTerm<T>& term : arguments_.terms) {
      if (!term.refilters()) continue;
      gather_and_blur(*term.lattice, term.values[2], arguments_.num_labels, false, threads_);
      parallel_for(threads_, chunks_, [&](int64_t c) { fill_ghosts(*term.lattice, c, term.values[2], stride_); });
    }
  }

  // The sums of the chunks, in their order.
  std::vector<double> compat_gradient(size_t m) const {
    const GradientTerm<T>& term = arguments_.terms[m];
    if (!term.compat_gradient) return {};
    const int64_t labels = arguments_.num_labels, size = static_cast<int64_t>(coefficients_[m].rows.size());
    const double scale = static_cast<double>(geometry::slice_scale<T>(term.lattice->dims));
    const bool potts = term.kind == Compatibility::kPotts;
    std::vector<double> gradient(potts ? 1 : size / stride_ * labels, 0.0);
    for (int64_t c = 0; c < chunks_; ++c) {
      const double* sums = compat_sums_[m].data() + c * size;
      for (int64_t line = 0; line < size / stride_; ++line) {
        for (int64_t l = 0; l < labels; ++l) {
          const double sum = sums[line * stride_ + l] * scale;
          gradient[potts ? 0 : line * labels + l] += potts ? -sum : sum;
        }
      }
    }
    return gradient;
  }

  const GradientArguments<T>& arguments_;
  int threads_;
  int64_t stride_;
  int64_t chunks_;
  std::vector<Coefficients<T>> coefficients_;
  std::vector<std::vector<double>> compat_sums_;  // of each term: (chunks, size of its coefficients)
  GradientPassArguments<T> pass_{};
  int side_ = 0;
};

}  // namespace

template <class T>
GradientOutcome<T> mean_field_gradient(const GradientArguments<T>& arguments, int threads) {
  return MeanFieldBackward<T>(arguments, threads).run();
}

template GradientOutcome<float> mean_field_gradient<float>(const GradientArguments<float>&, int);
template GradientOutcome<double> mean_field_gradient<double>(const GradientArguments<double>&, int);

}  // namespace deeplab_crf

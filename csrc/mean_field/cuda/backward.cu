#include <algorithm>

#include "mean_field/cuda/backward.h"
#include "mean_field/cuda/backward_kernels.cuh"
#include "support/cuda/arena.h"

namespace deeplab_crf::cuda {
namespace {

// Parts of the workspace that a term has, null where it needs none.
template <class T>
struct TermWorkspace {
  T* filter;     // a filter's, for the transposed kernel
  T* messages;   // a filter's, for the kernel
  T* dots;       // (B, N), of a Potts weight
  double* sums;  // (B, chunks, elements of the compatibility)
};

template <class T>
struct Workspace {
  T* adjoint;      // (B N, row_stride(L))
  T* beliefs;      // (B N, row_stride(L)), where Q by position is not Q by row
  int32_t* state;  // (B)
  std::vector<TermWorkspace<T>> terms;
  int64_t size;

  explicit Workspace(const DeviceGradientArguments<T>& a) {
    const int64_t points = a.batch * a.num_points, rows = points * row_stride<T>(a.num_labels);
    const bool refilters = std::any_of(a.terms.begin(), a.terms.end(), [](const auto& term) { return term.refilters(); });
    Arena arena(a.workspace);
    const auto take = [&]<class E>(bool needed, int64_t count) { return needed ? arena.allocate<E>(count) : nullptr; };
    adjoint = arena.allocate<T>(rows);
    beliefs = take.template operator()<T>(refilters && a.order != nullptr, rows);
    state = take.template operator()<int32_t>(a.tolerance > 0, a.batch);
    for (const DeviceGradientTerm<T>& term : a.terms) {
      const int64_t filter = filter_workspace_size<T>(term.lattice.sizes, a.num_labels);
      const bool wanted = term.compat_gradient != nullptr;
      TermWorkspace<T> own{};
      own.filter = arena.allocate<T>(filter);
      own.messages = take.template operator()<T>(term.refilters(), filter);
      own.dots = take.template operator()<T>(wanted && term.kind == Compatibility::kPotts, points);
      own.sums = take.template operator()<double>(wanted, sums_of(a, term));
      terms.push_back(own);
    }
    size = arena.used();
  }

  static int64_t sums_of(const DeviceGradientArguments<T>& a, const DeviceGradientTerm<T>& term) {
    const int64_t elements = compat_size(term.kind, a.num_labels);
    return a.batch * Chunks(a.num_points, elements).count * elements;
  }
};

// The iterations backwards: a pass over the points, and between two of them the transposed filters' splats and blurs.
template <class T>
class DeviceBackward {
 public:
  DeviceBackward(const DeviceGradientArguments<T>& arguments, const Queue& queue)
      : a_(arguments), queue_(queue), at_(arguments), transposed_(a_.terms.size()), messages_(a_.terms.size()) {
    pass_.grid = make_point_grid<T>(a_.batch, a_.num_points, a_.num_labels, a_.order);
    pass_.grid.stopped = at_.state;
    pass_.grad_unary = a_.grad_unary;
  }

  void run() {
    clear();
    const int last = a_.iterations;
    for (int t = last; t >= 0; --t) {
      const bool first = t == last;
      if (!first) exchange();
      if (t > 0 && (first || a_.trace_stride != 0)) refilter(belief(t - 1));
      propagate(t);
      for (size_t m = 0; m < a_.terms.size(); ++m) {
        if (!first && a_.terms[m].compat_gradient != nullptr) add_products(m);
        if (a_.terms[m].refilters()) add_corners(m, t);
      }
      if (a_.tolerance > 0) {
        launch("stop_settled_images", stop_settled_images<T>, 1, queue_, a_.batch, last - t, a_.tolerance, pass_.changes, a_.steps,
               at_.state);
      }
    }
    for (size_t m = 0; m < a_.terms.size(); ++m) {
      if (a_.terms[m].compat_gradient != nullptr) finish_compat(m);
    }
  }

 private:
  const T* belief(int t) const { return a_.trace + t * a_.trace_stride; }

  // What the passes add to.
  void clear() {
    const int64_t points = pass_.grid.points;
    const auto clear_array = [&](auto* array, int64_t count) {
      if (array != nullptr) fill_bytes(array, 0, count * static_cast<int64_t>(sizeof *array), queue_);
    };
    for (size_t m = 0; m < a_.terms.size(); ++m) {
      const DeviceGradientTerm<T>& term = a_.terms[m];
      clear_array(term.norm_in_gradient, points);
      clear_array(term.norm_out_gradient, points);
      clear_array(term.weight_gradient, points * term.lattice.sizes.corners());
      clear_array(at_.terms[m].dots, points);
      clear_array(at_.terms[m].sums, Workspace<T>::sums_of(a_, term));
    }
    // Without an iteration a given Q_0 is the output, and nothing depends on the unary energies.
    if (a_.iterations == 0 && a_.grad_start != nullptr) clear_array(a_.grad_unary, points * a_.num_labels);
    if (a_.tolerance > 0) {
      clear_array(at_.state, a_.batch);
      clear_array(a_.steps, a_.batch);
      clear_array(a_.moves, (a_.iterations + 1) * a_.batch);
    }
  }

  // Splat and blur of g_{t+1} by the transposed kernels.
  void exchange() {
    pass_.num_terms = static_cast<int>(a_.terms.size());
    for (size_t m = 0; m < a_.terms.size(); ++m) {
      const DeviceGradientTerm<T>& term = a_.terms[m];
      T* workspace = at_.terms[m].filter;
      T* values = splat_and_blur(term.lattice, static_cast<const T*>(at_.adjoint), term.norm_out, row_stride<T>(a_.num_labels),
                                 workspace, true, queue_);
      transposed_[m] = values;
      if (term.kind == Compatibility::kMatrix) {
        values = mix(term.lattice, term.compat, true, a_.num_labels, values, workspace, queue_);
      }
      pass_.terms[m] = {pass_term(m), term.norm_in_gradient, at_.terms[m].dots};
      pass_.terms[m].kernel.values = reinterpret_cast<const Vector<T>*>(values);
    }
  }

  DevicePassTerm<T> pass_term(size_t m) const {
    const DeviceGradientTerm<T>& term = a_.terms[m];
    return make_pass_term(term.lattice, term.norm_in, term.kind, term.compat);
  }

  // The messages of the iteration that began with `q`, where norms or weights ask for them.
  void refilter(const T* q) {
    int64_t channels = a_.num_labels;
    if (at_.beliefs != nullptr) {
      const int64_t vectors = vectors_of<T>(channels);
      launch("gather_beliefs", gather_beliefs<T>, blocks_for(pass_.grid.points * vectors), queue_, pass_.grid, q,
             reinterpret_cast<Vector<T>*>(at_.beliefs));
      q = at_.beliefs;
      channels = row_stride<T>(channels);
    }
    for (size_t m = 0; m < a_.terms.size(); ++m) {
      const DeviceGradientTerm<T>& term = a_.terms[m];
      if (!term.refilters()) continue;
      T* workspace = at_.terms[m].messages;
      T* values = splat_and_blur(term.lattice, q, term.norm_in, channels, workspace, false, queue_);
      if (term.kind == Compatibility::kMatrix) {
        values = mix(term.lattice, term.compat, false, a_.num_labels, values, workspace, queue_);
      }
      messages_[m] = values;
    }
  }

  void propagate(int t) {
    const bool first = t == a_.iterations;
    pass_.beliefs = first ? a_.output : belief(t);
    pass_.logarithm = first && a_.log_output;
    pass_.grad_output = first ? a_.grad_output : nullptr;
    pass_.grad_start = t == 0 ? a_.grad_start : nullptr;
    pass_.adjoint = t > 0 ? reinterpret_cast<Vector<T>*>(at_.adjoint) : nullptr;
    pass_.changes = a_.tolerance > 0 ? a_.moves + (a_.iterations - t) * a_.batch : nullptr;
    for_vectors_a_lane(vectors_of<T>(a_.num_labels), [&]<int R>() {
      launch("propagate_gradient", propagate_gradient<T, R>, pass_.grid.blocks(), queue_, pass_);
    });
  }

  // Gradients of compatibilities other than Potts weights, whose products are in the pass.
  void add_products(size_t m) {
    const DeviceGradientTerm<T>& term = a_.terms[m];
    if (term.kind == Compatibility::kPotts) return;
    const int64_t labels = a_.num_labels, across = (vectors_of<T>(labels) + kTileVectors - 1) / kTileVectors;
    const Chunks chunks(a_.num_points, compat_size(term.kind, labels));
    ProductArguments<T> products{pass_.grid, chunks, pass_term(m), pass_.beliefs, at_.terms[m].sums};
    products.term.values = reinterpret_cast<const Vector<T>*>(transposed_[m]);
    const int64_t blocks = a_.batch * chunks.count * across;
    if (term.kind == Compatibility::kDiagonal) {
      launch("add_label_products", add_label_products<T>, static_cast<unsigned>(blocks), queue_, products);
    } else {
      const int64_t down = (labels + kTileLabels - 1) / kTileLabels;
      launch("add_outer_products", add_outer_products<T>, static_cast<unsigned>(blocks * down), queue_, products);
    }
  }

  void add_corners(size_t m, int t) {
    const DeviceGradientTerm<T>& term = a_.terms[m];
    CornerArguments<T> corners{
        pass_.grid,           pass_term(m),          t > 0 ? reinterpret_cast<const Vector<T>*>(messages_[m]) : nullptr,
        term.norm_out,        pass_.beliefs,         pass_.adjoint,
        term.weight_gradient, term.norm_out_gradient};
    if (t < a_.iterations && term.weight_gradient != nullptr) corners.term.values = pass_.terms[m].kernel.values;
    if (corners.term.values == nullptr && corners.messages == nullptr) return;
    const auto kernel = vectors_of<T>(a_.num_labels) <= kWarp ? add_corner_gradients<T, 1> : add_corner_gradients<T, 0>;
    launch("add_corner_gradients", kernel, pass_.grid.blocks(), queue_, corners);
  }

  void finish_compat(size_t m) {
    const DeviceGradientTerm<T>& term = a_.terms[m];
    const TermWorkspace<T>& own = at_.terms[m];
    const int64_t elements = compat_size(term.kind, a_.num_labels);
    const Chunks chunks(a_.num_points, elements);
    double factor = static_cast<double>(geometry::slice_scale<T>(term.lattice.sizes.dims));
    if (own.dots != nullptr) {
      factor = -factor;
      launch("sum_dots", sum_dots<T>, static_cast<unsigned>(a_.batch * chunks.count), queue_, own.dots, a_.num_points, chunks,
             own.sums);
    }
    const int lanes = lanes_for(chunks.count);
    launch("add_chunks", add_chunks<T>, blocks_for(elements * lanes), queue_, own.sums, a_.batch, chunks.count, elements, lanes,
           factor, term.compat_gradient);
  }

  const DeviceGradientArguments<T>& a_;
  const Queue& queue_;
  Workspace<T> at_;
  AdjointArguments<T> pass_{};
  std::vector<const T*> transposed_;  // values of each term, without a matrix
  std::vector<const T*> messages_;    // with it
};

}  // namespace

template <class T>
int64_t gradient_workspace_size(const DeviceGradientArguments<T>& a) {
  check_terms(a.terms, a.batch, a.num_points);
  DeviceGradientArguments<T> counted = a;
  counted.workspace = nullptr;
  return Workspace<T>(counted).size;
}

template <class T>
void mean_field_gradient(const DeviceGradientArguments<T>& a, const Queue& queue) {
  const DeviceGuard guard(queue.device);
  check_terms(a.terms, a.batch, a.num_points);
  DeviceBackward<T>(a, queue).run();
}

#define DEEPLAB_CRF_INSTANTIATE(T)                                                \
  template int64_t gradient_workspace_size<T>(const DeviceGradientArguments<T>&); \
  template void mean_field_gradient<T>(const DeviceGradientArguments<T>&, const Queue&);
DEEPLAB_CRF_INSTANTIATE(float)
DEEPLAB_CRF_INSTANTIATE(double)
#undef DEEPLAB_CRF_INSTANTIATE

}  // namespace deeplab_crf::cuda

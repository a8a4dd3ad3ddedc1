#include "mean_field/cuda/forward.h"
#include "mean_field/cuda/forward_kernels.cuh"

namespace deeplab_crf::cuda {
namespace {

// The iterations: a pass over the points, and between two of them the filters' splats and blurs.
template <class T>
class DeviceForward {
 public:
  DeviceForward(const InferenceArguments<T>& arguments, const Queue& queue) : a_(arguments), queue_(queue) {
    pass_.grid = make_point_grid<T>(a_.batch, a_.num_points, a_.num_labels, a_.order);
    pass_.unary = a_.unary;
    pass_.beliefs = reinterpret_cast<Vector<T>*>(a_.beliefs);
  }

  void run() {
    if (watched()) {
      fill_bytes(a_.state, 0, a_.batch * sizeof(int32_t), queue_);
      fill_bytes(a_.steps, 0, a_.batch * sizeof(int32_t), queue_);
      fill_bytes(a_.changes, 0, a_.iterations * a_.batch * sizeof(T), queue_);
    }
    pass_.start = a_.start_from_q ? a_.q : nullptr;
    describe_output(0);
    update();
    pass_.start = nullptr;
    pass_.num_terms = static_cast<int>(a_.terms.size());
    pass_.damping = a_.damping;
    pass_.grid.stopped = watched() ? a_.state : nullptr;
    for (int t = 1; t <= a_.iterations; ++t) {
      for (size_t m = 0; m < a_.terms.size(); ++m) pass_.terms[m] = exchange(a_.terms[m]);
      describe_output(t);
      pass_.changes = watched() ? a_.changes + (t - 1) * a_.batch : nullptr;
      update();
      if (watched()) {
        launch("stop_settled_images", stop_settled_images<T>, 1, queue_, a_.batch, t, a_.tolerance, pass_.changes, a_.steps,
               a_.state);
      }
    }
  }

 private:
  bool watched() const { return a_.tolerance > 0 && a_.iterations > 0; }

  // What pass t leaves: any may be an image's last if there is a tolerance.
  void describe_output(int t) {
    const bool last = t == a_.iterations;
    pass_.out = last || (watched() && t > 0) ? a_.q : nullptr;
    pass_.logarithm = a_.log_output && pass_.out != nullptr;
    pass_.trace = a_.trace != nullptr && !last ? a_.trace + t % a_.trace_slots * a_.batch * a_.num_points * a_.num_labels : nullptr;
  }

  // Splat and blur of the beliefs, and the matrix of the compatibility.
  DevicePassTerm<T> exchange(const Term<T>& term) {
    T* values = splat_and_blur(term.lattice, a_.beliefs, term.norm_in, row_stride<T>(a_.num_labels), term.workspace, false, queue_);
    if (term.kind == Compatibility::kMatrix) {
      values = mix(term.lattice, term.compat, false, a_.num_labels, values, term.workspace, queue_);
    }
    DevicePassTerm<T> result = make_pass_term(term.lattice, term.norm_out, term.kind, term.compat);
    result.values = reinterpret_cast<const Vector<T>*>(values);
    return result;
  }

  void update() {
    for_vectors_a_lane(vectors_of<T>(a_.num_labels),
                       [&]<int R>() { launch("update_beliefs", update_beliefs<T, R>, pass_.grid.blocks(), queue_, pass_); });
  }

  const InferenceArguments<T>& a_;
  const Queue& queue_;
  DevicePassArguments<T> pass_{};
};

}  // namespace

template <class T>
void mean_field(const InferenceArguments<T>& arguments, const Queue& queue) {
  const DeviceGuard guard(queue.device);
  check_terms(arguments.terms, arguments.batch, arguments.num_points);
  DeviceForward<T>(arguments, queue).run();
}

template void mean_field<float>(const InferenceArguments<float>&, const Queue&);
template void mean_field<double>(const InferenceArguments<double>&, const Queue&);

}  // namespace deeplab_crf::cuda

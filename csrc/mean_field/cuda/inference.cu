#include <string>

#include "lattice/geometry.h"
#include "mean_field/cuda/inference.h"
#include "mean_field/cuda/inference_kernels.cuh"
#include "support/errors.h"

namespace deeplab_crf::cuda {
namespace {

constexpr int kWarpBits = 5, kWarp = 1 << kWarpBits;
// Vectors a lane whose exponents are kept in registers.
constexpr int kMostVectors = 4;

template <class T>
void check_terms(const InferenceArguments<T>& a) {
  if (a.terms.size() > kMaxTerms) {
    throw InvalidArgument("terms must be at most " + std::to_string(kMaxTerms) + " on CUDA; got " + std::to_string(a.terms.size()) +
                          ". Use the CPU for more");
  }
  for (const Term<T>& term : a.terms) {
    const LatticeSizes& sizes = term.lattice.sizes;
    if (sizes.batch == a.batch && sizes.num_points == a.num_points) continue;
    throw InvalidArgument("lattices must be of " + std::to_string(a.batch) + " images of " + std::to_string(a.num_points) +
                          " points, as the energies are; got one of " + std::to_string(sizes.batch) + " images of " +
                          std::to_string(sizes.num_points));
  }
}

// The iterations: a pass over the points, and between two of them the filters' splats and blurs.
template <class T>
class Inference {
 public:
  Inference(const InferenceArguments<T>& arguments, const Queue& queue)
      : a_(arguments), queue_(queue), vectors_(vectors_of<T>(arguments.num_labels)) {
    pass_.points = a_.batch * a_.num_points;
    pass_.num_points = a_.num_points;
    pass_.num_labels = a_.num_labels;
    while (pass_.group_bits < kWarpBits && 1 << pass_.group_bits < vectors_) ++pass_.group_bits;
    pass_.group = 1 << pass_.group_bits;
    pass_.unary = a_.unary;
    pass_.order = a_.order;
    pass_.beliefs = reinterpret_cast<Vector<T>*>(a_.beliefs);
  }

  void run() {
    if (watched()) {
      fill_bytes(a_.state, 0, (a_.batch + 1) * sizeof(int32_t), queue_);
      fill_bytes(a_.steps, 0, a_.batch * sizeof(int32_t), queue_);
      fill_bytes(a_.changes, 0, a_.iterations * a_.batch * sizeof(T), queue_);
    }
    pass_.start = a_.start_from_q ? a_.q : nullptr;
    describe_output(0);
    update();
    pass_.start = nullptr;
    pass_.num_terms = static_cast<int>(a_.terms.size());
    pass_.damping = a_.damping;
    pass_.stopped = watched() ? a_.state : nullptr;
    for (int t = 1; t <= a_.iterations; ++t) {
      for (size_t m = 0; m < a_.terms.size(); ++m) pass_.terms[m] = exchange(a_.terms[m]);
      describe_output(t);
      pass_.changes = watched() ? a_.changes + (t - 1) * a_.batch : nullptr;
      update();
      if (watched()) {
        launch("judge_changes", judge_changes<T>, 1, queue_, a_.batch, t, a_.tolerance, pass_.changes, a_.steps, a_.state);
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
  PassTerm<T> exchange(const Term<T>& term) {
    const LatticeSizes& sizes = term.lattice.sizes;
    const int64_t buffer = sizes.capacity * row_stride<T>(a_.num_labels);
    T* values = splat_and_blur(term.lattice, a_.beliefs, term.norm_in, row_stride<T>(a_.num_labels), term.workspace, false, queue_);
    const T scale = geometry::slice_scale<T>(sizes.dims);
    PassTerm<T> result{};
    result.rows = term.lattice.rows;
    result.weights = term.lattice.weights;
    result.norm_out = term.norm_out;
    result.factor = term.kind == Compatibility::kPotts ? -scale : scale;
    result.same = term.kind == Compatibility::kPotts ? term.compat : nullptr;
    result.labels = term.kind == Compatibility::kDiagonal ? term.compat : nullptr;
    result.corners = sizes.corners();
    if (term.kind == Compatibility::kMatrix) {
      T* mixed = values == term.workspace ? term.workspace + buffer : term.workspace;
      launch("mix_labels", mix_labels<T>, blocks_for(sizes.capacity * vectors_), queue_, term.lattice, term.compat, a_.num_labels,
             values, reinterpret_cast<Vector<T>*>(mixed));
      values = mixed;
    }
    result.values = reinterpret_cast<const Vector<T>*>(values);
    return result;
  }

  void update() {
    const unsigned blocks = blocks_for(pass_.points * pass_.group);
    if (vectors_ > int64_t{kWarp} * kMostVectors) return launch("update_beliefs", update_beliefs<T, 0>, blocks, queue_, pass_);
    if (vectors_ > kWarp) return launch("update_beliefs", update_beliefs<T, kMostVectors>, blocks, queue_, pass_);
    launch("update_beliefs", update_beliefs<T, 1>, blocks, queue_, pass_);
  }

  const InferenceArguments<T>& a_;
  const Queue& queue_;
  int64_t vectors_;
  PassArguments<T> pass_{};
};

}  // namespace

template <class T>
void mean_field(const InferenceArguments<T>& arguments, const Queue& queue) {
  const DeviceGuard guard(queue.device);
  check_terms(arguments);
  Inference<T>(arguments, queue).run();
}

template void mean_field<float>(const InferenceArguments<float>&, const Queue&);
template void mean_field<double>(const InferenceArguments<double>&, const Queue&);

}  // namespace deeplab_crf::cuda

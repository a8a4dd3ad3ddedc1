#include "mean_field/cpu/batch.h"

#include <algorithm>
#include <string>

#include "support/errors.h"

namespace deeplab_crf {
namespace {

template <class T>
void check_lattice(const LatticeBatch<T>& lattice, int64_t batch, int64_t num_points) {
  const BatchSizes& sizes = lattice.sizes();
  if (sizes.batch == batch && sizes.num_points == num_points) return;
  throw InvalidArgument("the lattices must be of " + std::to_string(batch) + " images of " + std::to_string(num_points) +
                        " points each, as the unary energies are; got " + std::to_string(sizes.batch) + " of " +
                        std::to_string(sizes.num_points) + " points");
}

// The array of image `image`, `size` elements an image.
template <class T>
T* part(T* array, int64_t image, int64_t size) {
  return array != nullptr ? array + image * size : nullptr;
}

}  // namespace

template <class T>
std::vector<MeanFieldOutcome> mean_field(const MeanFieldBatchArguments<T>& a, int threads) {
  const int64_t points = a.first.num_points, beliefs = points * a.first.num_labels;
  const int64_t stride = row_stride<T>(a.first.num_labels);
  for (const BatchTerm<T>& term : a.terms) check_lattice(*term.lattice, a.batch, points);
  std::vector<MeanFieldOutcome> outcomes(a.batch);
  for_images(a.batch, threads, [&](int64_t image, int own_threads, int slot) {
    MeanFieldArguments<T> own = a.first;
    own.unary += image * beliefs;
    own.q += image * beliefs;
    own.trace = part(own.trace, image, beliefs);
    std::vector<ImageLattice<T>> lattices;
    for (const BatchTerm<T>& term : a.terms) lattices.push_back(term.lattice->image(image, own_threads));
    for (size_t m = 0; m < a.terms.size(); ++m) {
      const BatchTerm<T>& term = a.terms[m];
      const int64_t buffer = term.lattice->sizes().max_rows() * stride;
      T* values = term.values + slot * kForwardBuffers * buffer;
      own.terms.push_back({&lattices[m].view,
                           part(term.norm_in, image, points),
                           part(term.norm_out, image, points),
                           term.kind,
                           term.compat,
                           {values, values + buffer}});
    }
    outcomes[image] = mean_field(own, own_threads);
  });
  return outcomes;
}

template <class T>
std::vector<GradientOutcome<T>> mean_field_gradient(const GradientBatchArguments<T>& a, int threads) {
  const int64_t points = a.first.num_points, beliefs = points * a.first.num_labels;
  const int64_t stride = row_stride<T>(a.first.num_labels);
  for (const BatchGradientTerm<T>& term : a.terms) check_lattice(*term.kernel.lattice, a.batch, points);
  std::vector<GradientOutcome<T>> outcomes(a.batch);
  for_images(a.batch, threads, [&](int64_t image, int own_threads, int slot) {
    GradientArguments<T> own = a.first;
    own.trace += image * beliefs;
    own.output += image * beliefs;
    own.grad_output += image * beliefs;
    own.grad_unary += image * beliefs;
    own.grad_start = part(own.grad_start, image, beliefs);
    std::vector<ImageLattice<T>> lattices;
    for (const BatchGradientTerm<T>& term : a.terms) lattices.push_back(term.kernel.lattice->image(image, own_threads));
    for (size_t m = 0; m < a.terms.size(); ++m) {
      const BatchGradientTerm<T>& term = a.terms[m];
      const BatchTerm<T>& kernel = term.kernel;
      const int64_t buffer = kernel.lattice->sizes().max_rows() * stride;
      T* values = kernel.values + slot * term.buffers() * buffer;
      const LatticeView<T>& lattice = lattices[m].view;
      own.terms.push_back({&lattice,
                           part(kernel.norm_in, image, points),
                           part(kernel.norm_out, image, points),
                           kernel.kind,
                           kernel.compat,
                           {values, values + buffer, values + 2 * buffer},
                           term.compat_gradient != nullptr,
                           part(term.norm_in_gradient, image, points),
                           part(term.norm_out_gradient, image, points),
                           part(term.weight_gradient, image, points * lattice.corners())});
    }
    outcomes[image] = mean_field_gradient(own, own_threads);
  });
  for (size_t m = 0; m < a.terms.size(); ++m) {
    T* total = a.terms[m].compat_gradient;
    for (int64_t i = 0; total != nullptr && i < compat_size(a.terms[m].kernel.kind, a.first.num_labels); ++i) {
      double sum = 0;
      for (const GradientOutcome<T>& outcome : outcomes) sum += outcome.compat_gradients[m][i];
      total[i] = static_cast<T>(sum);
    }
  }
  return outcomes;
}

#define DEEPLAB_CRF_INSTANTIATE(T)                                                              \
  template std::vector<MeanFieldOutcome> mean_field<T>(const MeanFieldBatchArguments<T>&, int); \
  template std::vector<GradientOutcome<T>> mean_field_gradient<T>(const GradientBatchArguments<T>&, int);
DEEPLAB_CRF_INSTANTIATE(float)
DEEPLAB_CRF_INSTANTIATE(double)
#undef DEEPLAB_CRF_INSTANTIATE

}  // namespace deeplab_crf

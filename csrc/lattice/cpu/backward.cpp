#include "lattice/cpu/backward.h"

#include <algorithm>
#include <vector>

#include "lattice/cpu/backward_kernels.h"
#include "lattice/geometry.h"

namespace deeplab_crf {
namespace {

// One image. out += what the weights of the slice and those of the splat get.
template <class T>
void weight_gradient_of_image(const LatticeView<T>& lattice, const WeightGradientArguments<T>& a, int threads) {
  const int64_t chunks = chunk_count(lattice.num_points), stride = row_stride<T>(a.channels);
  T* forward = a.workspace;
  T* backward = a.workspace + lattice.num_rows() * stride;
  splat_and_blur<T>({&lattice, a.in, nullptr, a.channels, forward, a.transpose}, threads);
  splat_and_blur<T>({&lattice, a.grad, nullptr, a.channels, backward, !a.transpose}, threads);
  parallel_for(threads, chunks, [&](int64_t c) {
    const int64_t begin = chunk_begin(lattice.num_points, c), end = chunk_begin(lattice.num_points, c + 1);
    std::fill(a.out + begin * lattice.corners(), a.out + end * lattice.corners(), T(0));
    for (const auto& [vectors, values] : {std::pair(a.grad, forward), std::pair(a.in, backward)}) {
      fill_ghosts(lattice, c, values, stride);
      lattice_gradient_kernels<T>().dot_rows(lattice, begin, end, vectors, a.channels, values, a.out);
    }
  });
}

}  // namespace

template <class T>
void weight_gradient(const WeightGradientArguments<T>& a, int threads) {
  const BatchSizes& sizes = a.lattice->sizes();
  const int64_t values = sizes.num_points * a.channels, buffers = 2 * sizes.max_rows() * row_stride<T>(a.channels);
  for_images(sizes.batch, threads, [&](int64_t image, int own_threads, int slot) {
    WeightGradientArguments<T> arguments = a;
    arguments.in += image * values;
    arguments.grad += image * values;
    arguments.out += image * sizes.num_points * (sizes.dims + 1);
    arguments.workspace += slot * buffers;
    const ImageLattice<T> lattice = a.lattice->image(image, own_threads);
    weight_gradient_of_image(lattice.view, arguments, own_threads);
  });
}

template <class T>
void embed_gradient(const FeatureBatch<T>& features, const T* grad_weights, T* grad_features, int threads) {
  const int dims = features.dims, corners = dims + 1;
  const int64_t points = features.num_points;
  T scales[geometry::kMaxDimensions];
  geometry::elevation_scales(dims, scales);
  for_images(features.batch, threads, [&](int64_t image, int own_threads, int) {
    const FeatureView<T> view = features.image(image);
    const LatticeKernels<T>& kernels = lattice_kernels<T>();
    const auto embed = needs_wide_embedding(view, own_threads) ? kernels.embed_wide : kernels.embed;
    parallel_for(own_threads, chunk_count(points), [&](int64_t c) {
      std::vector<int32_t> origin(corners * kEmbedBlock), ranks(corners * kEmbedBlock);
      std::vector<T> weights(corners * kEmbedBlock);
      const int64_t end = chunk_begin(points, c + 1);
      for (int64_t first = chunk_begin(points, c); first < end; first += kEmbedBlock) {
        const int count = static_cast<int>(std::min<int64_t>(kEmbedBlock, end - first));
        embed(view, first, count, {origin.data(), ranks.data(), weights.data()});
        for (int p = 0; p < count; ++p) {
          const int64_t at = image * points + first + p;
          int32_t own_ranks[geometry::kMaxDimensions + 1];
          for (int i = 0; i < corners; ++i) own_ranks[i] = ranks[i * kEmbedBlock + p];
          geometry::feature_gradient(dims, scales, own_ranks, grad_weights + at * corners, grad_features + at * dims);
        }
      }
    });
  });
}

#define DEEPLAB_CRF_INSTANTIATE(T)                                          \
  template void weight_gradient<T>(const WeightGradientArguments<T>&, int); \
  template void embed_gradient<T>(const FeatureBatch<T>&, const T*, T*, int);
DEEPLAB_CRF_INSTANTIATE(float)
DEEPLAB_CRF_INSTANTIATE(double)
#undef DEEPLAB_CRF_INSTANTIATE

}  // namespace deeplab_crf

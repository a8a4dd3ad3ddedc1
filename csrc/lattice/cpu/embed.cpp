// Embedding of points into the lattice, a pack of points at a time. Compiled once per instruction set, without contraction to
// fused multiply-adds (see geometry.h), so every set finds the same vertices and weights bit for bit.
// Per point: about 2 (d+1)^2 + 10 d flops, 4 d bytes read, 12 (d+1) written.
#include "lattice/cpu/embed.h"

#include <type_traits>

#include "lattice/geometry.h"
#include "support/simd.h"

namespace deeplab_crf::DEEPLAB_CRF_ISA {
namespace {

template <class T, class Real, int D>
void embed_block(const FeatureView<T>& features, int64_t begin, int count, SimplexBlock<T> out) {
  constexpr int W = kWideLanes<Real>;
  using P = Pack<Real, W>;
  const int dims = D > 0 ? D : features.dims;
  constexpr int kCapacity = (D > 0 ? D : geometry::kMaxDimensions) + 1;
  Real scales[kCapacity];
  geometry::elevation_scales(dims, scales);
  for (int base = 0; base < count; base += W) {
    P point[kCapacity], origin[kCapacity], ranks[kCapacity], weights[kCapacity];
    for (int i = 0; i < dims; ++i) {
      if constexpr (std::is_same_v<T, Real>) {
        if (features.point_stride == 1 && base + W <= count) {
          point[i] = P::load(features.data + begin + base + i * features.dim_stride);
          continue;
        }
      }
      Real lanes[W];
      for (int lane = 0; lane < W; ++lane) {
        const int64_t p = begin + (base + lane < count ? base + lane : count - 1);
        lanes[lane] = static_cast<Real>(features.data[p * features.point_stride + i * features.dim_stride]);
      }
      point[i] = P::load(lanes);
    }
    geometry::enclosing_simplex(dims, point, scales, origin, ranks, weights);
    for (int i = 0; i <= dims; ++i) {
      Real a[W], b[W], c[W];
      origin[i].store(a);
      ranks[i].store(b);
      weights[i].store(c);
      for (int lane = 0; lane < W; ++lane) {
        out.origin[i * kEmbedBlock + base + lane] = static_cast<int32_t>(a[lane]);
        out.ranks[i * kEmbedBlock + base + lane] = static_cast<int32_t>(b[lane]);
        out.weights[i * kEmbedBlock + base + lane] = static_cast<T>(c[lane]);
      }
    }
  }
}

template <class T, class Real>
void embed_any(const FeatureView<T>& features, int64_t begin, int count, SimplexBlock<T> out) {
  switch (features.dims) {
    case 2:
      return embed_block<T, Real, 2>(features, begin, count, out);
    case 3:
      return embed_block<T, Real, 3>(features, begin, count, out);
    case 5:
      return embed_block<T, Real, 5>(features, begin, count, out);
    default:
      return embed_block<T, Real, 0>(features, begin, count, out);
  }
}

}  // namespace

void embed(const FeatureView<float>& features, int64_t begin, int count, SimplexBlock<float> out) {
  embed_any<float, float>(features, begin, count, out);
}
void embed(const FeatureView<double>& features, int64_t begin, int count, SimplexBlock<double> out) {
  embed_any<double, double>(features, begin, count, out);
}
void embed_wide(const FeatureView<float>& features, int64_t begin, int count, SimplexBlock<float> out) {
  embed_any<float, double>(features, begin, count, out);
}

}  // namespace deeplab_crf::DEEPLAB_CRF_ISA

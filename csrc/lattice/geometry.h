// Mathematics of the permutohedral lattice (Adams, Baek, Davis, Eurographics 2010, sections 3 and 4) for the host and the
// device, one point or one vector of points at a time.
//
// `Real` is float or double, or a pack of them that has + - * and the three functions below. All of it is compiled without
// contraction to fused multiply-adds: the last bit decides which vertices exist when a point lies on a face, and every
// implementation (NumPy oracle, each instruction set, CUDA) must take the same decision.
#pragma once

#include <cmath>
#include <cstdint>

#ifdef __CUDACC__
#define DEEPLAB_CRF_HOST_DEVICE __host__ __device__ __forceinline__
#else
// Always inlined: a shared copy might be compiled for another instruction set (see support/simd.h).
#define DEEPLAB_CRF_HOST_DEVICE inline __attribute__((always_inline))
#endif

namespace deeplab_crf::geometry {

constexpr int kMaxDimensions = 32;

// 1.5 * 2^(mantissa bits): adding and subtracting it rounds half to even, for |x| < 2^22 (float) or 2^51 (double).
template <class Scalar>
constexpr Scalar kRoundingShift = sizeof(Scalar) == 4 ? Scalar(12582912.0) : Scalar(6755399441055744.0);

DEEPLAB_CRF_HOST_DEVICE float round_half_even(float x) { return (x + kRoundingShift<float>)-kRoundingShift<float>; }
DEEPLAB_CRF_HOST_DEVICE double round_half_even(double x) { return (x + kRoundingShift<double>)-kRoundingShift<double>; }
DEEPLAB_CRF_HOST_DEVICE float one_if_less(float a, float b) { return a < b ? 1.0f : 0.0f; }
DEEPLAB_CRF_HOST_DEVICE double one_if_less(double a, double b) { return a < b ? 1.0 : 0.0; }
DEEPLAB_CRF_HOST_DEVICE float value_if_equal(float a, float b, float value) { return a == b ? value : 0.0f; }
DEEPLAB_CRF_HOST_DEVICE double value_if_equal(double a, double b, double value) { return a == b ? value : 0.0; }

// Diagonal of the elevation matrix: scale_i = sqrt(2/3) (d+1) / sqrt((i+1)(i+2)), so that the lattice's blur has unit standard
// deviation. The leading factor is rounded to Scalar first, as pydensecrf does.
template <class Scalar>
DEEPLAB_CRF_HOST_DEVICE void elevation_scales(int dims, Scalar* scales) {
  const Scalar factor = static_cast<Scalar>(std::sqrt(2.0 / 3.0) * (dims + 1));
  for (int i = 0; i < dims; ++i) {
    scales[i] = static_cast<Scalar>(1.0 / std::sqrt(static_cast<double>((i + 2) * (i + 1))) * static_cast<double>(factor));
  }
}

// The simplex around a point.
//   features  (dims)      coordinates, already divided by their standard deviations
//   scales    (dims)      elevation_scales
//   origin    (dims + 1)  out: remainder-0 vertex, integers held in Real
//   ranks     (dims + 1)  out: rank of each coordinate in the sorted residuals, integers 0..dims held in Real
//   weights   (dims + 1)  out: barycentric weight of the vertex of remainder k, k = 0..dims
// About 2 (dims+1)^2 + 10 dims operations a point.
template <class Real, class Scalar>
DEEPLAB_CRF_HOST_DEVICE void enclosing_simplex(int dims, const Real* features, const Scalar* scales, Real* origin, Real* ranks,
                                               Real* weights) {
  const Scalar count = static_cast<Scalar>(dims + 1);
  const Scalar inverse = Scalar(1) / count;
  Real elevated[kMaxDimensions + 1];
  Real zero = features[0] - features[0];
  Real partial = zero;
  for (int j = dims; j > 0; --j) {
    const Real scaled = features[j - 1] * scales[j - 1];
    elevated[j] = partial - scaled * static_cast<Scalar>(j);
    partial = partial + scaled;
  }
  elevated[0] = partial;

  Real excess = zero;
  for (int i = 0; i <= dims; ++i) {
    const Real rounded = round_half_even(elevated[i] * inverse);
    origin[i] = rounded * count;
    excess = excess + rounded;
    ranks[i] = zero;
  }
  for (int i = 0; i < dims; ++i) {
    const Real residual = elevated[i] - origin[i];
    for (int j = i + 1; j <= dims; ++j) {
      const Real less = one_if_less(residual, elevated[j] - origin[j]);
      ranks[i] = ranks[i] + less;
      ranks[j] = ranks[j] + (Scalar(1) - less);
    }
  }
  // The rounded point may lie off the plane of coordinate sum 0; shifting the ranks by the excess brings it back.
  for (int i = 0; i <= dims; ++i) {
    const Real shifted = ranks[i] + excess;
    const Real wrap = one_if_less(shifted, zero) * count - one_if_less(zero + Scalar(dims), shifted) * count;
    ranks[i] = shifted + wrap;
    origin[i] = origin[i] + wrap;
  }
  // b_k = y_(rank d-k) - y_(rank d-k+1), and b_0 wraps around (Adams et al., p. 10).
  Real sorted[kMaxDimensions + 1];
  for (int r = 0; r <= dims; ++r) sorted[r] = zero;
  for (int i = 0; i <= dims; ++i) {
    const Real y = (elevated[i] - origin[i]) * inverse;
    for (int r = 0; r <= dims; ++r) {
      sorted[r] = sorted[r] + value_if_equal(ranks[i], zero + static_cast<Scalar>(r), y);
    }
  }
  for (int k = 1; k <= dims; ++k) weights[k] = sorted[dims - k] - sorted[dims - k + 1];
  weights[0] = sorted[dims] + (Scalar(1) - sorted[0]);
}

// Gradient in a point's features from that in its weights.
//   scales        (dims)      elevation_scales
//   ranks         (dims + 1)  of enclosing_simplex: locally constant, as the origin is
//   grad_weights  (dims + 1)
//   grad          (dims)      out
// The weight of vertex k is the difference of the coordinates of rank d - k and d + 1 - k, over d + 1; coordinate j of the elevated
// point is sum_{i >= j} scales_i f_i - j scales_{j-1} f_{j-1}.
template <class Real, class Scalar>
DEEPLAB_CRF_HOST_DEVICE void feature_gradient(int dims, const Scalar* scales, const Real* ranks, const Scalar* grad_weights,
                                              Scalar* grad) {
  const Scalar inverse = Scalar(1) / static_cast<Scalar>(dims + 1);
  Scalar sum = 0;
  for (int i = 0; i <= dims; ++i) {
    Scalar below = 0, above = 0;
    for (int k = 0; k <= dims; ++k) {
      below += value_if_equal(static_cast<Scalar>(ranks[i]), static_cast<Scalar>(dims - k), grad_weights[k]);
      above += value_if_equal(static_cast<Scalar>(ranks[i]), static_cast<Scalar>(k > 0 ? dims + 1 - k : 0), grad_weights[k]);
    }
    const Scalar elevated = (below - above) * inverse;
    if (i > 0) grad[i - 1] = scales[i - 1] * (sum - static_cast<Scalar>(i) * elevated);
    sum += elevated;
  }
}

// Scale of a filter output: the blur's gain is 1 + 2^-d (Kraehenbuehl & Koltun's code calls it alpha).
template <class Scalar>
DEEPLAB_CRF_HOST_DEVICE Scalar slice_scale(int dims) {
  return Scalar(1) / (Scalar(1) + Scalar(1) / static_cast<Scalar>(1ull << dims));
}

}  // namespace deeplab_crf::geometry

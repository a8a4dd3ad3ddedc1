// Ranges of lattice coordinates, and what they decide: the precision of the simplices and the width of the keys. For the host and
// the device, so that both decide alike.
#pragma once

#include "lattice/geometry.h"
#include "lattice/keys.h"

namespace deeplab_crf {

// Above this coordinate float32 residuals would keep fewer than 8 fractional bits: the simplices are computed in double.
constexpr double kLargestNarrowCoordinate = 32768.0;
// From this coordinate on features are refused.
constexpr double kLargestCoordinate = 1073741824.0;

// Ranges of the d+1 lattice coordinates that the features can reach.
struct CoordinateBounds {
  double low[geometry::kMaxDimensions + 1];
  double high[geometry::kMaxDimensions + 1];
  double largest;  // absolute value
};

//   low, high  (d) smallest and largest feature of each dimension
//   scales     (d) elevation_scales
DEEPLAB_CRF_HOST_DEVICE CoordinateBounds coordinate_bounds(int dims, const double* low, const double* high, const double* scales) {
  CoordinateBounds bounds;
  bounds.largest = 0;
  double partial_low = 0, partial_high = 0;
  for (int j = dims; j >= 0; --j) {
    const double scaled_low = j > 0 ? low[j - 1] * scales[j - 1] : 0;
    const double scaled_high = j > 0 ? high[j - 1] * scales[j - 1] : 0;
    bounds.low[j] = partial_low - j * scaled_high;
    bounds.high[j] = partial_high - j * scaled_low;
    partial_low += scaled_low;
    partial_high += scaled_high;
    if (-bounds.low[j] > bounds.largest) bounds.largest = -bounds.low[j];
    if (bounds.high[j] > bounds.largest) bounds.largest = bounds.high[j];
  }
  return bounds;
}

// Fields for all vertices of points within the bounds and for their neighbours: a vertex lies within 2.5 (d + 1) of its point and
// a neighbour d + 1 further; the rest covers rounding.
DEEPLAB_CRF_HOST_DEVICE KeyLayout key_layout(int dims, const CoordinateBounds& bounds) {
  const int64_t margin = 4 * (dims + 1) + 4;
  int64_t low[geometry::kMaxDimensions], high[geometry::kMaxDimensions];
  for (int i = 0; i < dims; ++i) {
    low[i] = static_cast<int64_t>(std::floor(bounds.low[i])) - margin;
    high[i] = static_cast<int64_t>(std::ceil(bounds.high[i])) + margin;
  }
  return KeyLayout(dims, low, high);
}

}  // namespace deeplab_crf

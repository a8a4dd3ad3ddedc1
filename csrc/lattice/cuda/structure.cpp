#include "lattice/cuda/structure.h"

#include <cstring>
#include <sstream>

#include "support/errors.h"

namespace deeplab_crf::cuda {
namespace {

// Slots of the hash table, twice as many, are numbered in 31 bits. There are no more vertices than contributions.
constexpr int64_t kMaxContributions = int64_t{1} << 30;

float float_of(int32_t bits) {
  float value;
  std::memcpy(&value, &bits, sizeof value);
  return value;
}

[[noreturn]] void throw_not_finite(const int32_t* header) {
  const uint32_t element = static_cast<uint32_t>(header[kBadElement]), dims = header[kDims], points = header[kNumPoints];
  std::ostringstream text;
  text << "image " << element / dims / points << ": features must be finite; got " << float_of(header[kBadValue]) << " at point "
       << element / dims % points << ", dimension " << element % dims
       << ". Check the image for NaN or inf, and the standard deviations that divide it";
  throw InvalidArgument(text.str());
}

}  // namespace

LatticeSizes sizes_of_structure(int64_t batch, int64_t num_points, int64_t dims, int64_t length) {
  check_shape(batch, num_points, dims);
  LatticeSizes sizes{batch, num_points, static_cast<int32_t>(dims), 0};
  const int64_t fixed = sizes.structure_size();
  sizes.capacity = 1;
  const int64_t each = sizes.structure_size() - fixed;
  sizes.capacity = (length - fixed) / each;
  if (sizes.capacity < 1 || sizes.capacity > kMaxContributions || sizes.structure_size() != length) {
    throw InvalidArgument("structure must be what lattice_build returned for " + std::to_string(batch) + " images of " +
                          std::to_string(num_points) + " points in " + std::to_string(dims) +
                          " dimensions, on this device; got another array of " + std::to_string(length) + " integers");
  }
  return sizes;
}

void check_shape(int64_t batch, int64_t num_points, int64_t dims) {
  if (batch < 1 || num_points < 1) {
    throw InvalidArgument("features must hold at least one image of one point; got " + std::to_string(batch) + " of " +
                          std::to_string(num_points));
  }
  if (dims < 1 || dims > geometry::kMaxDimensions) {
    throw InvalidArgument("features must have 1 to " + std::to_string(geometry::kMaxDimensions) + " dimensions; got " +
                          std::to_string(dims) + ". Project them to fewer, for example by PCA");
  }
  if (num_points > kMaxContributions / (dims + 1) / batch) {
    throw InvalidArgument("features must have at most 2^30 simplex corners, batch x points x (dimensions + 1); got " +
                          std::to_string(batch) + " x " + std::to_string(num_points) + " x " + std::to_string(dims + 1) +
                          ". Process fewer images at a time");
  }
}

void check_capacity(int64_t capacity, int64_t max_vertices) {
  if (capacity < 1 || capacity > kMaxContributions) {
    throw InvalidArgument("capacity must be 1 to 2^30 vertices; got " + std::to_string(capacity));
  }
  if (max_vertices > 0 && capacity != max_vertices) {
    throw InvalidArgument("capacity must be max_vertices, " + std::to_string(max_vertices) + ", as in lattice_embed; got " +
                          std::to_string(capacity));
  }
}

BuildOutcome check_header(const int32_t* header, int64_t max_vertices) {
  if (header[kMark] != kFormatMark) throw InvalidArgument("structure must be what lattice_build returned; got other integers");
  if (header[kBadElement] >= 0) throw_not_finite(header);
  if (header[kBadImage] >= 0) {
    std::ostringstream text;
    text << "image " << header[kBadImage] << ": features must keep lattice coordinates below 2^30; got "
         << float_of(header[kBadCoordinate]) << ". Use larger standard deviations, or shift the features towards zero";
    throw InvalidArgument(text.str());
  }
  const int64_t vertices = header[kNumVertices], bound = header[kCapacity] > 0 ? header[kCapacity] : max_vertices;
  if (header[kKeyWords] <= header[kKeyWordsGiven] && (header[kLostCorners] > 0 || (bound > 0 && vertices > bound))) {
    throw InvalidArgument("max_vertices must not be less than the vertices that the features touch; got " + std::to_string(bound) +
                          ", and there are " + std::to_string(vertices) + (header[kLostCorners] > 0 ? " or more" : "") +
                          ". Give a larger bound, or none: memory then follows the true number");
  }
  if (header[kCapacity] > 0 && header[kKeyWords] > header[kKeyWordsGiven]) {
    throw InvalidArgument("features must need keys of at most " + std::to_string(header[kKeyWordsGiven]) +
                          " words where max_vertices is given; got " + std::to_string(header[kKeyWords]) +
                          ". Leave max_vertices out: the width of the keys then follows the features");
  }
  return {vertices, header[kKeyWords]};
}

}  // namespace deeplab_crf::cuda

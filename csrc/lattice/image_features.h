// Features of an image's pixels for the lattice: position and colour, each divided by its standard deviation.
#pragma once

#include <cstdint>

namespace deeplab_crf {

// out[0][p] = x / sx, out[1][p] = y / sy, out[2 + c][p] = image[i][c] / channel_widths[c], for position p of the walk at pixel
// i = order[p] = y * width + x. One division in T a value, as pydensecrf has it: the last bit decides which vertices exist.
//   image           (height * width, channels), or null without channels
//   order           (height * width) a permutation
//   channel_widths  (channels)
//   out             (2 + channels, height * width)
template <class From, class T>
struct ImageFeatureArguments {
  const From* image;
  int64_t height;
  int64_t width;
  int64_t channels;
  const int32_t* order;
  T width_x;
  T width_y;
  const T* channel_widths;
  T* out;
};
template <class From, class T>
void image_features(const ImageFeatureArguments<From, T>& arguments, int threads);

}  // namespace deeplab_crf

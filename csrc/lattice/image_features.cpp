#include "lattice/image_features.h"

#include "lattice/lattice.h"
#include "support/parallel.h"

namespace deeplab_crf {
namespace {

// Pixels of the walk from `begin` on, before `end`, that follow one another in a line of the image.
int64_t run_length(const int32_t* order, int64_t begin, int64_t end, int64_t width) {
  const int64_t left_in_line = width - order[begin] % width;
  int64_t length = 1;
  while (length < left_in_line && begin + length < end && order[begin + length] == order[begin] + length) ++length;
  return length;
}

template <class From, class T>
void fill_run(const ImageFeatureArguments<From, T>& a, int64_t begin, int64_t length) {
  const int64_t points = a.height * a.width, pixel = a.order[begin];
  const int32_t column = static_cast<int32_t>(pixel % a.width);
  const T row = static_cast<T>(pixel / a.width) / a.width_y;
  T* x = a.out + begin;
  T* y = a.out + points + begin;
  for (int32_t i = 0; i < static_cast<int32_t>(length); ++i) x[i] = static_cast<T>(column + i) / a.width_x;
  for (int64_t i = 0; i < length; ++i) y[i] = row;
  for (int64_t c = 0; c < a.channels; ++c) {
    const From* source = a.image + pixel * a.channels + c;
    T* colour = a.out + (2 + c) * points + begin;
    const T width = a.channel_widths[c];
    for (int64_t i = 0; i < length; ++i) colour[i] = static_cast<T>(source[i * a.channels]) / width;
  }
}

}  // namespace

template <class From, class T>
void image_features(const ImageFeatureArguments<From, T>& a, int threads) {
  const int64_t points = a.height * a.width;
  parallel_for(threads, chunk_count(points), [&](int64_t c) {
    const int64_t end = chunk_begin(points, c + 1);
    for (int64_t begin = chunk_begin(points, c); begin < end;) {
      const int64_t length = run_length(a.order, begin, end, a.width);
      fill_run(a, begin, length);
      begin += length;
    }
  });
}

#define DEEPLAB_CRF_INSTANTIATE(From, T) template void image_features<From, T>(const ImageFeatureArguments<From, T>&, int);
DEEPLAB_CRF_INSTANTIATE(uint8_t, float)
DEEPLAB_CRF_INSTANTIATE(float, float)
DEEPLAB_CRF_INSTANTIATE(uint8_t, double)
DEEPLAB_CRF_INSTANTIATE(double, double)
#undef DEEPLAB_CRF_INSTANTIATE

}  // namespace deeplab_crf

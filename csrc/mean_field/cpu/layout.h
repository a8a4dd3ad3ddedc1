// Scores in the layout that mean field takes: the labels of a point side by side.
#pragma once

#include <cstdint>

namespace deeplab_crf {

// out[p * labels + l] = factor * in[p * point_stride + l * label_stride]; a factor of -1 makes energies of logits. A point with a
// value of +inf and another one that is not is capped at `largest`; `largest` = inf leaves it alone. Returns the first index (l *
// num_points + p) of a value that is not finite afterwards, or -1. Reads and writes each value once.
template <class From, class T>
int64_t pack_unary(const From* in, int64_t num_points, int64_t num_labels, int64_t point_stride, int64_t label_stride, T* out,
                   T factor, T largest, int threads);

}  // namespace deeplab_crf

// Scores in the layout that mean field takes, the labels of a point side by side, and back; see mean_field/cpu/layout.h. Plain
// C++: no CUDA header.
#pragma once

#include <cstdint>

#include "support/cuda/device.h"

namespace deeplab_crf::cuda {

// out[b, i, j] = in[b * batch_stride + i * row_stride + j * column_stride].
//   out           (batch, rows, columns), contiguous; not `in`
template <class T>
struct TransposeArguments {
  const T* in;
  T* out;
  int64_t batch;
  int64_t rows;
  int64_t columns;
  int64_t batch_stride;
  int64_t row_stride;
  int64_t column_stride;
};
template <class T>
void transpose(const TransposeArguments<T>& arguments, const Queue& queue);

// Transposes `scores`, points by labels, times `factor`. A point with an energy of +inf and a widen_range one is capped at
// `largest`; all labels of a point that has none but +inf become NaN.
//   first_wrong   uint64, or null: the smallest (b * columns + j) * rows + i of a value that is NaN or -inf, or +inf of a point
//   that
//                 has no other; all ones if there is none
template <class T>
struct EnergyArguments {
  TransposeArguments<T> scores;
  T factor;
  T largest;
  unsigned long long* first_wrong;
};
template <class T>
void pack_unary(const EnergyArguments<T>& arguments, const Queue& queue);

}  // namespace deeplab_crf::cuda

// Scores in the layout that mean field takes, the labels of a point side by side, and back; see mean_field/pack_labels.h. Plain
// C++: no CUDA header.
#pragma once

#include <cstdint>

#include "support/cuda/device.h"

namespace deeplab_crf::cuda {

// out[b, i, j] = factor * in[b * batch_stride + i * row_stride + j * column_stride].
//   out           (batch, rows, columns), contiguous; not `in`
//   first_wrong   uint64, or null: the smallest (b * columns + j) * rows + i whose value is not finite, all ones if there is none
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
  T factor;
  unsigned long long* first_wrong;
};
template <class T>
void transpose(const TransposeArguments<T>& arguments, const Queue& queue);

}  // namespace deeplab_crf::cuda

// Rows of channels as vectors of 16 bytes. The rows of a lattice are padded to whole vectors; those of a caller's array are not,
// and their last vector may be short or not aligned.
#pragma once

#include <cstdint>

#include "lattice/geometry.h"
#include "support/cuda/launch.h"

namespace deeplab_crf::cuda {

template <class T>
struct alignas(16) Vector {
  static constexpr int kLanes = 16 / sizeof(T);
  T lane[kLanes];
};

// Vectors in a row of `channels` channels, for the host and the device.
template <class T>
DEEPLAB_CRF_HOST_DEVICE int64_t vectors_of(int64_t channels) {
  return (channels + Vector<T>::kLanes - 1) / Vector<T>::kLanes;
}

// Vector v of a row of a caller's array; lanes behind its end are 0.
template <class T>
__device__ Vector<T> load_row(const T* row, int64_t channels, int64_t v) {
  constexpr int kLanes = Vector<T>::kLanes;
  if (channels % kLanes == 0 && reinterpret_cast<uintptr_t>(row) % sizeof(Vector<T>) == 0) {
    return reinterpret_cast<const Vector<T>*>(row)[v];
  }
  Vector<T> result;
  for (int i = 0; i < kLanes; ++i) result.lane[i] = v * kLanes + i < channels ? row[v * kLanes + i] : T(0);
  return result;
}

template <class T>
__device__ void store_row(T* row, int64_t channels, int64_t v, const Vector<T>& value) {
  constexpr int kLanes = Vector<T>::kLanes;
  if (channels % kLanes == 0 && reinterpret_cast<uintptr_t>(row) % sizeof(Vector<T>) == 0) {
    reinterpret_cast<Vector<T>*>(row)[v] = value;
    return;
  }
  for (int i = 0; i < kLanes; ++i) {
    if (v * kLanes + i < channels) row[v * kLanes + i] = value.lane[i];
  }
}

// sum += factor * value.
template <class T>
__device__ void add_scaled(Vector<T>& sum, T factor, const Vector<T>& value) {
  for (int i = 0; i < Vector<T>::kLanes; ++i) sum.lane[i] += factor * value.lane[i];
}

}  // namespace deeplab_crf::cuda

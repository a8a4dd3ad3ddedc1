// Rows of channels as vectors of 16 bytes. The rows of a lattice are padded to whole vectors; those of a caller's array are not,
// and their last vector may be short or not aligned; they may hold 16-bit numbers, which are floats from the load to the store.
#pragma once

#include <cstdint>

#include "lattice/geometry.h"
#include "support/cuda/half.cuh"
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

// The elements of one vector in a caller's array, moved at once where they lie so that they can be: 16 bytes, or 8 of 16-bit
// numbers.
template <class E>
struct alignas(sizeof(E) * Vector<Wide<E>>::kLanes) Elements {
  E lane[Vector<Wide<E>>::kLanes];
};

template <class E>
__device__ bool lies_in_vectors(const E* row, int64_t channels) {
  return channels % Vector<Wide<E>>::kLanes == 0 && reinterpret_cast<uintptr_t>(row) % sizeof(Elements<E>) == 0;
}

// Vector v of a row of a caller's array; lanes behind its end are 0.
template <class E>
__device__ Vector<Wide<E>> load_row(const E* row, int64_t channels, int64_t v) {
  constexpr int kLanes = Vector<Wide<E>>::kLanes;
  Vector<Wide<E>> result;
  if (lies_in_vectors(row, channels)) {
    const Elements<E> elements = reinterpret_cast<const Elements<E>*>(row)[v];
    for (int i = 0; i < kLanes; ++i) result.lane[i] = widened(elements.lane[i]);
    return result;
  }
  for (int i = 0; i < kLanes; ++i) result.lane[i] = v * kLanes + i < channels ? widened(row[v * kLanes + i]) : Wide<E>(0);
  return result;
}

template <class E>
__device__ void store_row(E* row, int64_t channels, int64_t v, const Vector<Wide<E>>& value) {
  constexpr int kLanes = Vector<Wide<E>>::kLanes;
  Elements<E> elements;
  for (int i = 0; i < kLanes; ++i) narrow(value.lane[i], elements.lane[i]);
  if (lies_in_vectors(row, channels)) {
    reinterpret_cast<Elements<E>*>(row)[v] = elements;
    return;
  }
  for (int i = 0; i < kLanes; ++i) {
    if (v * kLanes + i < channels) row[v * kLanes + i] = elements.lane[i];
  }
}

// sum += factor * value. By value: a reference into global memory would be read lane by lane, not in one load of 16 bytes.
template <class T>
__device__ void add_scaled(Vector<T>& sum, T factor, Vector<T> value) {
  for (int i = 0; i < Vector<T>::kLanes; ++i) sum.lane[i] += factor * value.lane[i];
}

}  // namespace deeplab_crf::cuda

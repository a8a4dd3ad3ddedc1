// Sort and scan of whole arrays on a device. CUB does them on a GPU (behind device_algorithms.cu, the only source that sees it),
// the standard library in the emulation. Both give one result only: the sort is stable, sums of integers have no order.
#pragma once

#include <cstdint>

#include "support/cuda/device.h"

namespace deeplab_crf::cuda {

// Bytes of scratch memory that either function needs for `count` elements on the queue's device.
int64_t algorithms_scratch_size(int64_t count, const Queue& queue);

struct Scratch {
  void* memory;
  int64_t size;
};

// out[i] = in[0] + ... + in[i - 1]; out may be in. 8 bytes moved an element.
void device_exclusive_sum(const int32_t* in, int32_t* out, int64_t count, Scratch scratch, const Queue& queue);

// Sorts (key, value) pairs by the lowest `bits` bits of the keys, pairs of equal keys in the order they had. About 16 bytes moved a
// pair for every 8 bits.
void device_sort_pairs(const int32_t* keys_in, int32_t* keys_out, const int32_t* values_in, int32_t* values_out, int64_t count,
                       int bits, Scratch scratch, const Queue& queue);

}  // namespace deeplab_crf::cuda

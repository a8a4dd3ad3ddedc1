#include <algorithm>

#include "support/cuda/device_algorithms.h"
#include "support/cuda/launch.h"

#ifdef DEEPLAB_CRF_EMULATE_CUDA
#include <numeric>
#include <vector>
#else
#include <cub/device/device_radix_sort.cuh>
#include <cub/device/device_scan.cuh>
#endif

namespace deeplab_crf::cuda {

#ifdef DEEPLAB_CRF_EMULATE_CUDA

// As much as CUB might want.
int64_t algorithms_scratch_size(int64_t count, const Queue&) { return 1024 + count; }

namespace {

// All of it overwritten, so that one that is too small or in use is found.
void use_scratch(Scratch scratch, int64_t count, const Queue& queue) {
  if (scratch.size < algorithms_scratch_size(count, queue)) {
    throw CudaError("the scratch memory of " + std::to_string(scratch.size) + " bytes is too small for " + std::to_string(count) +
                    " elements");
  }
  std::memset(scratch.memory, 0xAB, scratch.size);
}

}  // namespace

void device_exclusive_sum(const int32_t* in, int32_t* out, int64_t count, Scratch scratch, const Queue& queue) {
  use_scratch(scratch, count, queue);
  std::exclusive_scan(in, in + count, out, 0);
}

void device_sort_pairs(const int32_t* keys_in, int32_t* keys_out, const int32_t* values_in, int32_t* values_out, int64_t count,
                       int bits, Scratch scratch, const Queue& queue) {
  use_scratch(scratch, count, queue);
  std::vector<int32_t> order(count);
  std::iota(order.begin(), order.end(), 0);
  const uint32_t mask = bits >= 32 ? ~0u : (1u << bits) - 1;
  const auto key = [&](int32_t i) { return static_cast<uint32_t>(keys_in[i]) & mask; };
  std::stable_sort(order.begin(), order.end(), [&](int32_t a, int32_t b) { return key(a) < key(b); });
  for (int64_t i = 0; i < count; ++i) {
    keys_out[i] = keys_in[order[i]];
    values_out[i] = values_in[order[i]];
  }
}

#else

namespace {

// Unsigned keys: those here are never negative, and their sign needs no look.
cudaError_t sort(void* scratch, size_t& size, const int32_t* keys_in, int32_t* keys_out, const int32_t* values_in,
                 int32_t* values_out, int64_t count, int bits, cudaStream_t stream) {
  return cub::DeviceRadixSort::SortPairs(scratch, size, reinterpret_cast<const uint32_t*>(keys_in),
                                         reinterpret_cast<uint32_t*>(keys_out), values_in, values_out, static_cast<int32_t>(count),
                                         0, bits, stream);
}

}  // namespace

int64_t algorithms_scratch_size(int64_t count, const Queue& queue) {
  size_t for_sum = 0, for_sort = 0;
  check(cub::DeviceScan::ExclusiveSum(nullptr, for_sum, static_cast<const int32_t*>(nullptr), static_cast<int32_t*>(nullptr),
                                      static_cast<int32_t>(count), stream_of(queue)),
        "cub::DeviceScan");
  check(sort(nullptr, for_sort, nullptr, nullptr, nullptr, nullptr, count, 32, stream_of(queue)), "cub::DeviceRadixSort");
  return static_cast<int64_t>(std::max(for_sum, for_sort));
}

void device_exclusive_sum(const int32_t* in, int32_t* out, int64_t count, Scratch scratch, const Queue& queue) {
  size_t size = static_cast<size_t>(scratch.size);
  check(cub::DeviceScan::ExclusiveSum(scratch.memory, size, in, out, static_cast<int32_t>(count), stream_of(queue)),
        "cub::DeviceScan");
  check_launched("cub::DeviceScan", queue);
}

void device_sort_pairs(const int32_t* keys_in, int32_t* keys_out, const int32_t* values_in, int32_t* values_out, int64_t count,
                       int bits, Scratch scratch, const Queue& queue) {
  size_t size = static_cast<size_t>(scratch.size);
  check(sort(scratch.memory, size, keys_in, keys_out, values_in, values_out, count, bits, stream_of(queue)),
        "cub::DeviceRadixSort");
  check_launched("cub::DeviceRadixSort", queue);
}

#endif

}  // namespace deeplab_crf::cuda

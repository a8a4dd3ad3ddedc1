// Launches of kernels. Compiled by nvcc they go to a stream of a GPU; with DEEPLAB_CRF_EMULATE_CUDA the same sources are plain C++
// and run on the CPU (emulation.h), so that every kernel is tested where there is no GPU.
#pragma once

#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <string>

#include "support/cuda/device.h"
#include "support/errors.h"

#ifdef DEEPLAB_CRF_EMULATE_CUDA
#include "support/cuda/emulation.h"
#else
#include <cuda_runtime.h>
#endif

namespace deeplab_crf::cuda {

constexpr unsigned kThreads = 256;

// Threads of one grid, at most.
constexpr int64_t kMaxThreads = ((int64_t{1} << 31) - 1) * kThreads;

// Blocks of kThreads threads, enough for `items` threads. Throws InvalidArgument if no grid has so many.
inline unsigned blocks_for(int64_t items) {
  if (items < 0 || items > kMaxThreads) {
    throw InvalidArgument("arrays must be such that a kernel needs at most " + std::to_string(kMaxThreads) + " threads; got " +
                          std::to_string(items) + ". Process fewer images, points or channels at a time");
  }
  return static_cast<unsigned>((items + kThreads - 1) / kThreads);
}

// This thread's number in the whole grid.
__device__ inline int64_t thread_number() { return static_cast<int64_t>(blockIdx.x) * blockDim.x + threadIdx.x; }

#ifdef DEEPLAB_CRF_EMULATE_CUDA

// Emulated devices are all the same.
class DeviceGuard {
 public:
  explicit DeviceGuard(int) {}
};

template <class... Parameters, class... Arguments>
void launch(const char* name, void (*kernel)(Parameters...), unsigned blocks, const Queue&, Arguments... arguments) {
  emulation::run_grid(name, blocks, kThreads, [&] { kernel(arguments...); });
}

inline void fill_bytes(void* memory, int byte, int64_t size, const Queue&) { std::memset(memory, byte, size); }

#else

// Throws CudaError unless `error` is success; `name` is what was called.
void check(cudaError_t error, const char* name);

// The current device of this thread, for as long as this lives.
class DeviceGuard {
 public:
  explicit DeviceGuard(int device);
  ~DeviceGuard();
  DeviceGuard(const DeviceGuard&) = delete;
  DeviceGuard& operator=(const DeviceGuard&) = delete;

 private:
  int before_ = 0;
  bool changed_ = false;
};

// The debug switch DEEPLAB_CRF_CUDA_SYNC=1: wait for every kernel, so that an error names the one it belongs to. Not while a graph
// is captured: nothing runs then that could be waited for.
inline bool synchronises() {
  static const bool wanted = [] {
    const char* value = std::getenv("DEEPLAB_CRF_CUDA_SYNC");
    return value != nullptr && std::strcmp(value, "1") == 0;
  }();
  return wanted;
}

inline cudaStream_t stream_of(const Queue& queue) { return static_cast<cudaStream_t>(queue.stream); }

// Checks what was just put on the stream.
inline void check_launched(const char* name, const Queue& queue) {
  check(cudaGetLastError(), name);
  if (!synchronises()) return;
  cudaStreamCaptureStatus capture = cudaStreamCaptureStatusNone;
  check(cudaStreamIsCapturing(stream_of(queue), &capture), name);
  if (capture == cudaStreamCaptureStatusNone) check(cudaStreamSynchronize(stream_of(queue)), name);
}

// kernel<<<blocks, kThreads>>>(arguments...) on the queue's stream; nothing if there are no blocks. The queue's device must be the
// current one (DeviceGuard).
template <class... Parameters, class... Arguments>
void launch(const char* name, void (*kernel)(Parameters...), unsigned blocks, const Queue& queue, Arguments... arguments) {
  if (blocks == 0) return;
  kernel<<<blocks, kThreads, 0, stream_of(queue)>>>(arguments...);
  check_launched(name, queue);
}

// memset on the stream.
inline void fill_bytes(void* memory, int byte, int64_t size, const Queue& queue) {
  if (size > 0) check(cudaMemsetAsync(memory, byte, static_cast<size_t>(size), stream_of(queue)), "cudaMemsetAsync");
}

#endif

}  // namespace deeplab_crf::cuda

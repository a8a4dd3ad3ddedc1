// CUDA's words for kernels that are compiled as plain C++ and run on the CPU, for tests.
//
// The blocks of a grid run one after the other, the threads of a block as fibers: each runs until it waits at a barrier or in a
// warp operation, then the next one has its turn. So a kernel without barriers costs a function call a thread, and a forgotten
// barrier makes a thread read what others have not written yet. Found and reported: threads that wait at different barriers, or at
// one that others never reach. The order of blocks and threads can be changed (set_thread_order): results must not.
#pragma once

#include <cstdint>
#include <cstring>
#include <functional>

#define __global__
#define __device__
#define __host__
#define __forceinline__ inline
#define __launch_bounds__(...)
// One block at a time runs, in the whole process.
#define __shared__ static

namespace deeplab_crf::cuda {

namespace emulation {

struct Index {
  unsigned x = 0, y = 0, z = 0;
};

// Runs `kernel` for every thread of a grid. Throws CudaError where threads wait for one another for ever.
void run_grid(const char* name, unsigned blocks, unsigned threads, const std::function<void()>& kernel);

// 0: blocks and threads in ascending order; 1: in descending order; others: shuffled, the number being the seed.
void set_thread_order(unsigned order);

// Waits for all threads of the block, or for the lanes of `mask` in this thread's warp; `line` is where.
void wait_for_block(int line);
void wait_for_warp(unsigned mask, int line);

// Leaves `value` for the other lanes, waits for those of `mask`, and returns what lane `source` left (lanes beyond the block's end
// and beyond the warp return the own value).
uint64_t exchange(unsigned mask, uint64_t value, int source, int line);

// Lanes of `mask` whose predicate holds.
unsigned ballot(unsigned mask, bool predicate, int line);

int lane();

template <class T>
T exchange_as(unsigned mask, T value, int source, int line) {
  static_assert(sizeof(T) <= sizeof(uint64_t));
  uint64_t bits = 0;
  std::memcpy(&bits, &value, sizeof(T));
  bits = exchange(mask, bits, source, line);
  std::memcpy(&value, &bits, sizeof(T));
  return value;
}

}  // namespace emulation

extern emulation::Index threadIdx, blockIdx, blockDim, gridDim;

inline void __syncthreads(int line = __builtin_LINE()) { emulation::wait_for_block(line); }
inline void __syncwarp(unsigned mask = ~0u, int line = __builtin_LINE()) { emulation::wait_for_warp(mask, line); }

template <class T>
T __shfl_sync(unsigned mask, T value, int source, int width = 32, int line = __builtin_LINE()) {
  const int lane = emulation::lane();
  return emulation::exchange_as(mask, value, lane / width * width + source % width, line);
}
template <class T>
T __shfl_xor_sync(unsigned mask, T value, int distance, int width = 32, int line = __builtin_LINE()) {
  const int lane = emulation::lane(), source = lane ^ distance;
  return emulation::exchange_as(mask, value, source / width > lane / width ? lane : source, line);
}
template <class T>
T __shfl_down_sync(unsigned mask, T value, int distance, int width = 32, int line = __builtin_LINE()) {
  const int lane = emulation::lane();
  return emulation::exchange_as(mask, value, lane % width + distance < width ? lane + distance : lane, line);
}
template <class T>
T __shfl_up_sync(unsigned mask, T value, int distance, int width = 32, int line = __builtin_LINE()) {
  const int lane = emulation::lane();
  return emulation::exchange_as(mask, value, lane % width >= distance ? lane - distance : lane, line);
}
inline unsigned __ballot_sync(unsigned mask, bool predicate, int line = __builtin_LINE()) {
  return emulation::ballot(mask, predicate, line);
}
inline int __popc(unsigned bits) { return __builtin_popcount(bits); }

// Nothing comes between two fibers that do not wait.
template <class T>
T atomicCAS(T* address, T expected, T desired) {
  const T before = *address;
  if (before == expected) *address = desired;
  return before;
}
template <class T>
T atomicAdd(T* address, T value) {
  const T before = *address;
  *address = before + value;
  return before;
}
template <class T>
T atomicMin(T* address, T value) {
  const T before = *address;
  if (value < before) *address = value;
  return before;
}
template <class T>
T atomicMax(T* address, T value) {
  const T before = *address;
  if (before < value) *address = value;
  return before;
}

}  // namespace deeplab_crf::cuda

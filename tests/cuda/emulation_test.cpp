// Tests of support/cuda/emulation.h, run by test_emulation.py: prints a line for each and ends with 1 if one failed.
#include <cstdio>
#include <functional>
#include <string>
#include <vector>

#include "support/cuda/device_algorithms.h"
#include "support/cuda/launch.h"

namespace deeplab_crf::cuda {
namespace {

const Queue kQueue{0, nullptr};

// Sum of each block's numbers by halves through shared memory.
__global__ void block_sums(const int* in, int* out, bool forget_barrier) {
  __shared__ int sums[kThreads];
  sums[threadIdx.x] = in[thread_number()];
  for (unsigned half = kThreads / 2; half > 0; half /= 2) {
    if (!forget_barrier) __syncthreads();
    if (threadIdx.x < half) sums[threadIdx.x] += sums[threadIdx.x + half];
  }
  if (threadIdx.x == 0) out[blockIdx.x] = sums[0];
}

// Sum over each warp's lanes, by shuffles of every kind; all four must agree.
__global__ void warp_sums(const double* in, double* out) {
  double by_xor = in[thread_number()], by_down = by_xor, by_up = by_xor;
  for (int distance = 16; distance > 0; distance /= 2) {
    by_xor += __shfl_xor_sync(~0u, by_xor, distance);
    by_down += __shfl_down_sync(~0u, by_down, distance);
    const double below = __shfl_up_sync(~0u, by_up, distance);
    by_up += below;
  }
  const double first = __shfl_sync(~0u, by_down, 0);
  const unsigned all = __ballot_sync(~0u, first == by_xor);
  out[thread_number()] = all == ~0u ? first : -1;
}

__global__ void histogram(const int* in, int* counts, unsigned* least, unsigned long long* seen) {
  const int value = in[thread_number()];
  atomicAdd(&counts[value % 8], 1);
  atomicMin(least, static_cast<unsigned>(value));
  unsigned long long before = *seen;
  while (true) {
    const unsigned long long found = atomicCAS(seen, before, before | 1ull << (value % 64));
    if (found == before) break;
    before = found;
  }
}

__global__ void divergent_barriers() {
  if (threadIdx.x < 40) {
    __syncthreads();
  } else {
    __syncthreads();
  }
}

__global__ void early_exit() {
  if (threadIdx.x == 7) return;
  __syncthreads();
}

__global__ void missing_lane() {
  if (threadIdx.x != 33) __syncwarp();
}

std::vector<int> numbers(size_t count) {
  std::vector<int> result(count);
  for (size_t i = 0; i < count; ++i) result[i] = static_cast<int>(i * 7919 % 1009);
  return result;
}

bool sums_of_blocks(bool forget_barrier) {
  const std::vector<int> in = numbers(3 * kThreads);
  std::vector<int> out(3), want(3);
  for (size_t i = 0; i < in.size(); ++i) want[i / kThreads] += in[i];
  launch("block_sums", block_sums, 3, kQueue, in.data(), out.data(), forget_barrier);
  return out == want;
}

bool sums_of_warps() {
  std::vector<double> in(2 * kThreads), out(in.size()), want(in.size());
  for (size_t i = 0; i < in.size(); ++i) in[i] = static_cast<double>(i % 37);
  for (size_t i = 0; i < in.size(); ++i) {
    for (size_t lane = 0; lane < 32; ++lane) want[i] += in[i / 32 * 32 + lane];
  }
  launch("warp_sums", warp_sums, 2, kQueue, in.data(), out.data());
  return out == want;
}

bool atomics() {
  const std::vector<int> in = numbers(2 * kThreads);
  std::vector<int> counts(8), want(8);
  unsigned least = ~0u, want_least = ~0u;
  unsigned long long seen = 0, want_seen = 0;
  for (const int value : in) {
    ++want[value % 8];
    want_least = std::min(want_least, static_cast<unsigned>(value));
    want_seen |= 1ull << (value % 64);
  }
  launch("histogram", histogram, 2, kQueue, in.data(), counts.data(), &least, &seen);
  return counts == want && least == want_least && seen == want_seen;
}

bool reports(void (*kernel)(), const std::string& what) {
  try {
    launch("kernel", kernel, 1, kQueue);
  } catch (const CudaError& error) {
    return std::string(error.what()).find(what) != std::string::npos;
  }
  return false;
}

bool sort_and_sum() {
  const std::vector<int> keys = numbers(1000);
  std::vector<int> values(1000), sorted(1000), order(1000), sums(1000);
  for (int i = 0; i < 1000; ++i) values[i] = i;
  std::vector<char> memory(algorithms_scratch_size(1000, kQueue));
  const Scratch scratch{memory.data(), static_cast<int64_t>(memory.size())};
  device_sort_pairs(keys.data(), sorted.data(), values.data(), order.data(), 1000, 10, scratch, kQueue);
  bool right = true;
  for (int i = 1; i < 1000; ++i) {
    right &= sorted[i - 1] < sorted[i] || (sorted[i - 1] == sorted[i] && order[i - 1] < order[i]);
    right &= keys[order[i]] == sorted[i];
  }
  device_exclusive_sum(keys.data(), sums.data(), 1000, scratch, kQueue);
  for (int i = 1; i < 1000; ++i) right &= sums[i] == sums[i - 1] + keys[i - 1];
  return right && sums[0] == 0;
}

bool small_scratch_is_found() {
  std::vector<int> in = numbers(1000), sums(1000);
  std::vector<char> memory(algorithms_scratch_size(999, kQueue));
  try {
    device_exclusive_sum(in.data(), sums.data(), 1000, {memory.data(), static_cast<int64_t>(memory.size())}, kQueue);
  } catch (const CudaError& error) {
    return std::string(error.what()).find("too small for 1000 elements") != std::string::npos;
  }
  return false;
}

int run() {
  int failures = 0;
  const auto check = [&](const char* name, bool right) {
    std::printf("%s: %s\n", name, right ? "ok" : "FAILED");
    failures += !right;
  };
  for (const unsigned order : {0u, 1u, 2u}) {
    emulation::set_thread_order(order);
    check("block reduction", sums_of_blocks(false));
    check("a forgotten barrier shows", order == 1 || !sums_of_blocks(true));
    check("shuffles", sums_of_warps());
    check("atomics", atomics());
    check("divergent barriers", reports(divergent_barriers, "from thread 40 on they are at the barrier"));
    check("a thread that ended", reports(early_exit, "from thread 7 on they have ended"));
    check("a lane that ended", reports(missing_lane, "from thread 33 on they have ended"));
    check("after an error", sums_of_blocks(false));
  }
  emulation::set_thread_order(0);
  check("sort and sum", sort_and_sum());
  check("a scratch memory that is too small", small_scratch_is_found());
  return failures == 0 ? 0 : 1;
}

}  // namespace
}  // namespace deeplab_crf::cuda

int main() { return deeplab_crf::cuda::run(); }

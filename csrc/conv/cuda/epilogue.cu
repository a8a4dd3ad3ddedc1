#include "conv/cuda/epilogue.h"
#include "support/cuda/half.cuh"
#include "support/cuda/launch.h"

namespace deeplab_crf::cuda {
namespace {

// 16 bytes of elements, which a thread loads and stores at once.
template <class E>
struct alignas(16) Line {
  static constexpr int kSize = 16 / sizeof(E);
  E at[kSize];
};

// Each thread takes 16 bytes of neighbours, in one access if the arrays are aligned and the line is
// whole. One division finds the channel of its first element; the others follow. Each element is
// read and written once, and the residual read once: 3.4 MB (5.2 with a residual) for 512 x 41 x 41
// in bfloat16, at 1 to 3 flops per element. Repeats bit for bit.
template <class E>
__global__ void __launch_bounds__(kThreads) finish_convolution(EpilogueArguments<E> a, bool aligned) {
  constexpr int kSize = Line<E>::kSize;
  const int64_t first = thread_number() * kSize;
  if (first >= a.count) return;
  const int used = static_cast<int>(a.count - first < kSize ? a.count - first : kSize);
  const bool whole = aligned && used == kSize;
  Line<E> values{}, residual{};
  if (whole) {
    values = *reinterpret_cast<const Line<E>*>(a.values + first);
    if (a.residual != nullptr) residual = *reinterpret_cast<const Line<E>*>(a.residual + first);
  } else {
#pragma unroll
    for (int i = 0; i < kSize; ++i) {
      if (i < used) values.at[i] = a.values[first + i];
      if (i < used && a.residual != nullptr) residual.at[i] = a.residual[first + i];
    }
  }
  int64_t channel = first / a.inner % a.channels, place = first % a.inner;
#pragma unroll
  for (int i = 0; i < kSize; ++i) {
    Wide<E> y = widened(values.at[i]);
    if (a.bias != nullptr) y += widened(a.bias[channel]);
    if (a.residual != nullptr) y += widened(residual.at[i]);
    narrow(a.relu && y < 0 ? Wide<E>(0) : y, values.at[i]);
    if (++place == a.inner) {
      place = 0;
      if (++channel == a.channels) channel = 0;
    }
  }
  if (whole) {
    *reinterpret_cast<Line<E>*>(a.values + first) = values;
  } else {
#pragma unroll
    for (int i = 0; i < kSize; ++i) {
      if (i < used) a.values[first + i] = values.at[i];
    }
  }
}

bool is_aligned(const void* address) { return reinterpret_cast<uintptr_t>(address) % 16 == 0; }

}  // namespace

template <class E>
void epilogue(const EpilogueArguments<E>& a, const Queue& queue) {
  const DeviceGuard guard(queue.device);
  const int64_t lines = (a.count + Line<E>::kSize - 1) / Line<E>::kSize;
  launch("finish_convolution", finish_convolution<E>, blocks_for(lines), queue, a, is_aligned(a.values) && is_aligned(a.residual));
}

template void epilogue<float>(const EpilogueArguments<float>&, const Queue&);
template void epilogue<double>(const EpilogueArguments<double>&, const Queue&);
template void epilogue<Float16>(const EpilogueArguments<Float16>&, const Queue&);
template void epilogue<BFloat16>(const EpilogueArguments<BFloat16>&, const Queue&);

}  // namespace deeplab_crf::cuda

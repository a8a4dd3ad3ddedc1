#include "conv/cuda/shifted.h"
#include "support/cuda/half.cuh"
#include "support/cuda/launch.h"

namespace deeplab_crf::cuda {
namespace {

// One thread per output pixel and class. Neighbouring threads have neighbouring classes, so the K
// products of a pixel and tap are read in a row. All threads read the offsets in the same order,
// from the constant cache. Each output reads S products and is written once: 4.8 MB for 41 x 41 x
// 21 and S = 33 floats, less the taps outside the map. At most S flops per output. There are no
// atomics, and each sum follows the order of the offsets: repeats bit for bit.
template <class E>
__global__ void __launch_bounds__(kThreads) gather_taps(GatherArguments<E> a) {
  const int64_t item = thread_number();
  if (item >= a.batch * a.height * a.width * a.classes) return;
  const int64_t k = item % a.classes, pixel = item / a.classes, x = pixel % a.width, y = pixel / a.width % a.height;
  const int64_t image = pixel / a.width / a.height;
  Wide<E> sum = a.bias != nullptr ? a.bias[k] : Wide<E>(0);
  for (int s = 0; s < a.offsets.count; ++s) {
    const int64_t row = y + a.offsets.rows[s], column = x + a.offsets.columns[s];
    if (row < 0 || row >= a.height || column < 0 || column >= a.width) continue;
    sum += widened(a.products[(((image * a.height + row) * a.width + column) * a.offsets.count + s) * a.classes + k]);
  }
  narrow(sum, a.out[image * a.image_stride + (y * a.width + x) * a.pixel_stride + k * a.class_stride]);
}

}  // namespace

template <class E>
void gather_shifted(const GatherArguments<E>& a, const Queue& queue) {
  const DeviceGuard guard(queue.device);
  launch("gather_taps", gather_taps<E>, blocks_for(a.batch * a.height * a.width * a.classes), queue, a);
}

template void gather_shifted<float>(const GatherArguments<float>&, const Queue&);
template void gather_shifted<double>(const GatherArguments<double>&, const Queue&);
template void gather_shifted<Float16>(const GatherArguments<Float16>&, const Queue&);
template void gather_shifted<BFloat16>(const GatherArguments<BFloat16>&, const Queue&);

}  // namespace deeplab_crf::cuda

#include "conv/epilogue.h"

#include <algorithm>

#include "conv/cpu/kernels.h"
#include "support/parallel.h"

namespace deeplab_crf::conv {
namespace {

// Values of one task: 10 us, so that a second thread is worth waking.
constexpr int64_t kChunk = int64_t{1} << 17;

}  // namespace

void add_relu(float* values, const float* residual, int64_t count, int threads) {
  parallel_for(threads, (count + kChunk - 1) / kChunk, [&](int64_t chunk) {
    const int64_t begin = chunk * kChunk, length = std::min(kChunk, count - begin);
    // A row of so many filters; the strides between rows are not used.
    product_kernels().finish(values + begin, 0, 1, length, {nullptr, residual + begin, true}, values + begin, 0);
  });
}

}  // namespace deeplab_crf::conv

#include "conv/cpu/epilogue.h"

#include <algorithm>

#include "conv/cpu/kernels.h"
#include "support/divide_up.h"
#include "support/parallel.h"

namespace deeplab_crf::conv {
namespace {

// Values of one task: 10 us of work, enough to be worth waking a second thread.
constexpr int64_t kChunk = int64_t{1} << 17;

}  // namespace

void add_relu(float* values, const float* residual, int64_t count, int threads) {
  parallel_for(threads, divide_up(count, kChunk), [&](int64_t chunk) {
    const int64_t begin = chunk * kChunk, length = std::min(kChunk, count - begin);
    // One row with `length` filters; the strides between rows are not used.
    product_kernels().finish(values + begin, 0, 1, length, {nullptr, residual + begin, true}, values + begin, 0);
  });
}

}  // namespace deeplab_crf::conv

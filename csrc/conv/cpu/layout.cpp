#include "conv/cpu/layout.h"

#include <algorithm>

#include "conv/cpu/kernels.h"
#include "support/divide_up.h"
#include "support/parallel.h"

namespace deeplab_crf::conv {

void transpose_planes(const float* in, int64_t planes, int64_t rows, int64_t columns, float* out, int threads) {
  constexpr int64_t kColumns = 64;  // columns of one task
  const int64_t blocks = divide_up(columns, kColumns);
  parallel_for(threads, planes * blocks, [&](int64_t task) {
    const int64_t plane = task / blocks * rows * columns, first = task % blocks * kColumns;
    product_kernels().transpose(in + plane + first, rows, std::min(kColumns, columns - first), columns, out + plane + first * rows,
                                rows);
  });
}

}  // namespace deeplab_crf::conv

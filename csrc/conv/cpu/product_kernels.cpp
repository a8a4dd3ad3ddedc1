// Products of a few rows with a panel, epilogue, sums and transposition.
#include <utility>

#include "conv/cpu/kernels.h"
#include "support/simd.h"

namespace deeplab_crf::DEEPLAB_CRF_ISA {
namespace {

using P = Pack<float, kLongLanes<float>>;
constexpr int kLanes = P::kLanes;

// Accumulators of one block of rows: 24 of 32 registers with 512-bit vectors, else 12 of 16.
// Measured on Zen 5 in GFLOP/s: 512 bits 6 x 4 249, 7 x 4 212, 8 x 3 234, 12 x 2 232; 256 bits 6 x
// 2 117, 4 x 3 114.
#if defined(__AVX512F__)
constexpr int kVectors = 4;
#else
constexpr int kVectors = 2;
#endif
constexpr int kRows = 6;
constexpr int64_t kPanelWidth = kVectors * kLanes;

// c (Rows, Vectors packs) = or += a (Rows, depth) b (depth, Vectors packs). Each step takes
// 2 Rows Vectors lanes flops for Vectors + Rows loads. Sums run over the depth in ascending order.
template <int Rows, int Vectors>
void multiply_block(const float* a, int64_t a_stride, const float* b, int64_t depth, float* c, int64_t c_stride, bool accumulate) {
  P sums[Rows][Vectors];
  for (int r = 0; r < Rows; ++r) {
    for (int v = 0; v < Vectors; ++v) sums[r][v] = accumulate ? P::load(c + r * c_stride + v * kLanes) : P::zero();
  }
  for (int64_t k = 0; k < depth; ++k) {
    if (k % 16 == 0) {
      // Fetch the next rows: each is too short for the hardware prefetcher to follow.
      for (int r = 0; r < Rows; ++r) __builtin_prefetch(a + (Rows + r) * a_stride + k);
    }
    P weights[Vectors];
    for (int v = 0; v < Vectors; ++v) weights[v] = P::load(b + k * kPanelWidth + v * kLanes);
    for (int r = 0; r < Rows; ++r) {
      const P value = P::broadcast(a[r * a_stride + k]);
      for (int v = 0; v < Vectors; ++v) sums[r][v] = sums[r][v] + value * weights[v];
    }
  }
  for (int r = 0; r < Rows; ++r) {
    for (int v = 0; v < Vectors; ++v) sums[r][v].store(c + r * c_stride + v * kLanes);
  }
}

template <int Vectors, int... Rows>
auto block_of_rows(int64_t rows, std::integer_sequence<int, Rows...>) {
  using Function = void (*)(const float*, int64_t, const float*, int64_t, float*, int64_t, bool);
  constexpr Function blocks[] = {multiply_block<Rows + 1, Vectors>...};
  return blocks[rows - 1];
}

template <int Vectors>
void multiply_rows(const float* a, int64_t a_stride, int64_t rows, const float* b, int64_t depth, float* c, int64_t c_stride,
                   bool accumulate) {
  // Use blocks of nearly equal size: a last block of one row has too few sums to hide their
  // latency.
  const int64_t blocks = (rows + kRows - 1) / kRows;
  for (int64_t block = 0, row = 0; block < blocks; ++block) {
    const int64_t count = (rows - row + blocks - block - 1) / (blocks - block);
    const auto multiply = block_of_rows<Vectors>(count, std::make_integer_sequence<int, kRows>{});
    multiply(a + row * a_stride, a_stride, b, depth, c + row * c_stride, c_stride, accumulate);
    row += count;
  }
}

void multiply(const float* a, int64_t a_stride, int64_t rows, const float* b, int64_t depth, float* c, int64_t c_stride,
              int vectors, bool accumulate) {
  switch (vectors) {
    case 1:
      return multiply_rows<1>(a, a_stride, rows, b, depth, c, c_stride, accumulate);
    case 2:
      return multiply_rows<2>(a, a_stride, rows, b, depth, c, c_stride, accumulate);
#if defined(__AVX512F__)
    case 3:
      return multiply_rows<3>(a, a_stride, rows, b, depth, c, c_stride, accumulate);
    case 4:
      return multiply_rows<4>(a, a_stride, rows, b, depth, c, c_stride, accumulate);
#endif
    default:
      __builtin_unreachable();
  }
}

void finish(const float* c, int64_t c_stride, int64_t rows, int64_t filters, const conv::Epilogue& epilogue, float* out,
            int64_t out_stride) {
  const float* bias = epilogue.bias;
  const bool relu = epilogue.relu;
  for (int64_t r = 0; r < rows; ++r) {
    const float* from = c + r * c_stride;
    const float* residual = epilogue.residual != nullptr ? epilogue.residual + r * out_stride : nullptr;
    float* to = out + r * out_stride;
    for (int64_t k = 0; k < filters; k += kLanes) {
      const int64_t left = filters - k;
      const auto load = [=](const float* p) { return left < kLanes ? P::load_partial(p + k, left) : P::load(p + k); };
      P y = load(from);
      if (bias != nullptr) y = y + load(bias);
      if (residual != nullptr) y = y + load(residual);
      // NaN stays NaN, as in torch: the comparison is false for it.
      if (relu) y = P{y.v < P::zero().v ? P::zero().v : y.v};
      left < kLanes ? y.store_partial(to + k, left) : y.store(to + k);
    }
  }
}

void add(const float* values, int64_t count, float* sum) {
  for (int64_t k = 0; k < count; k += kLanes) {
    const int64_t left = count - k;
    if (left < kLanes) {
      for (int64_t i = k; i < count; ++i) sum[i] += values[i];
    } else {
      (P::load(sum + k) + P::load(values + k)).store(sum + k);
    }
  }
}

void transpose(const float* in, int64_t rows, int64_t columns, int64_t in_stride, float* out, int64_t out_stride) {
  constexpr int64_t kBlock = 16;
  for (int64_t c = 0; c < columns; c += kBlock) {
    const int64_t width = columns - c < kBlock ? columns - c : kBlock;
    for (int64_t r = 0; r < rows; r += kBlock) {
      const int64_t height = rows - r < kBlock ? rows - r : kBlock;
      if (height == kBlock && width == kBlock) {
        float block[kBlock][kBlock];
        for (int64_t i = 0; i < kBlock; ++i) {
          for (int64_t j = 0; j < kBlock; ++j) block[j][i] = in[(r + i) * in_stride + c + j];
        }
        for (int64_t j = 0; j < kBlock; ++j) __builtin_memcpy(out + (c + j) * out_stride + r, block[j], sizeof(block[j]));
        continue;
      }
      for (int64_t j = 0; j < width; ++j) {
        for (int64_t i = 0; i < height; ++i) out[(c + j) * out_stride + r + i] = in[(r + i) * in_stride + c + j];
      }
    }
  }
}

}  // namespace

extern const conv::ProductKernels product_kernels{kLanes, kPanelWidth, multiply, finish, add, transpose};

}  // namespace deeplab_crf::DEEPLAB_CRF_ISA

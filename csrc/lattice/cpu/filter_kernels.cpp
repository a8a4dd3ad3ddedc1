// Splat, blur and slice on the CPU. Compiled once per instruction set.
//
// One thread per call; a point's channels run over the lanes. Splat and slice move (d+1) rows a point and spend
// 2 (d+1) flops a channel; the blur moves each row on a chain once in and once out per axis, 3 flops a channel.
#include "lattice/cpu/embed.h"
#include "lattice/cpu/kernels.h"
#include "lattice/cpu/rows.h"
#include "lattice/geometry.h"

namespace deeplab_crf::DEEPLAB_CRF_ISA {
namespace {

// Chain entries ahead whose rows are fetched: neighbours lie anywhere in the buffer, where no hardware prefetcher finds them.
constexpr int64_t kBlurPrefetch = 32;

// A missing neighbour.
template <class T>
constexpr T kZeroRow[kMaxPacks * kWideLanes<T>] = {};

template <class T>
int64_t row_stride(int64_t channels) {
  return padded_channels<T>(channels);
}

template <class T>
void splat(const LatticeView<T>& lattice, int64_t begin, int64_t end, const T* in, int64_t channels, const T* norm, T* values) {
  const int corners = lattice.corners();
  const int32_t* rows = lattice.rows;
  const T* weights = lattice.weights;
  const int64_t stride = padded_channels<T>(channels);
  for_row_blocks<T>(stride, [=]<int W, int V>(int64_t first, auto stride) DEEPLAB_CRF_INLINE_LAMBDA {
    for_corners(corners, [=]<int Corners>() DEEPLAB_CRF_INLINE_LAMBDA {
      for (int64_t p = begin; p < end; ++p) {
        Row<T, W, V> row;
        row.load_first(in + p * channels + first, channels - first);
        if (norm != nullptr) row.scale(norm[p]);
        scatter_rows<Corners>(rows + p * corners, weights + p * corners, corners, row, values + first, stride);
      }
    });
  });
}

template <class T>
void slice(const LatticeView<T>& lattice, int64_t begin, int64_t end, const T* values, int64_t channels, const T* norm, T* out) {
  const int corners = lattice.corners();
  const int32_t* rows = lattice.rows;
  const T* weights = lattice.weights;
  const int64_t stride = padded_channels<T>(channels);
  const T scale = geometry::slice_scale<T>(lattice.dims);
  for_row_blocks<T>(stride, [=]<int W, int V>(int64_t first, auto stride) DEEPLAB_CRF_INLINE_LAMBDA {
    for_corners(corners, [=]<int Corners>() DEEPLAB_CRF_INLINE_LAMBDA {
      for (int64_t p = begin; p < end; ++p) {
        Row<T, W, V> sum;
        gather_rows<Corners>(rows + p * corners, weights + p * corners, corners, values + first, stride, sum);
        sum.scale(norm != nullptr ? scale * norm[p] : scale);
        sum.store_first(out + p * channels + first, channels - first);
      }
    });
  });
}

template <class T>
void gather_ghosts(const LatticeView<T>& lattice, int64_t begin, int64_t end, T* values, int64_t stride) {
  for_row_blocks<T>(stride, [&]<int W, int V>(int64_t first, auto stride) DEEPLAB_CRF_INLINE_LAMBDA {
    for (int64_t i = begin; i < end; ++i) {
      const int64_t ghost = lattice.ghost_order[i];
      Row<T, W, V> row;
      row.load(values + (lattice.num_vertices + ghost) * stride + first);
      row.add_to(values + lattice.ghost_owner[ghost] * stride + first, T(1));
    }
  });
}

// Writes current + (previous + next) / 2 to `row`, and steps on: next becomes current.
template <class T, int W, int V>
DEEPLAB_CRF_INLINE void blur_step(Row<T, W, V>& previous, Row<T, W, V>& current, const T* next_row, T* row) {
  Row<T, W, V> next;
  next.load(next_row);
  for (int v = 0; v < V; ++v) (current.packs[v] + (previous.packs[v] + next.packs[v]) * T(0.5)).store(row + v * W);
  // Pack by pack: the compiler copies whole arrays through memory.
  for (int v = 0; v < V; ++v) {
    previous.packs[v] = current.packs[v];
    current.packs[v] = next.packs[v];
  }
}

template <class T>
void blur(const int32_t* chains, int64_t begin, int64_t end, T* values, int64_t stride) {
  for_row_blocks<T>(stride, [=]<int W, int V>(int64_t first, auto stride) DEEPLAB_CRF_INLINE_LAMBDA {
    const T* zeros = kZeroRow<T>;
    Row<T, W, V> previous, current;
    previous.set_zero();
    current.set_zero();
    T* row = nullptr;
    for (int64_t i = begin; i < end; ++i) {
      const int32_t entry = chains[i];
      if (i + kBlurPrefetch < end) prefetch_row(values + (chains[i + kBlurPrefetch] & ~kChainStart) * stride + first, V * W);
      T* next_row = values + (entry & ~kChainStart) * stride + first;
      if (entry < 0) {
        // The last vertex of the chain before this one has no next neighbour.
        if (row != nullptr) blur_step(previous, current, zeros, row);
        previous.set_zero();
        current.load(next_row);
      } else {
        blur_step(previous, current, static_cast<const T*>(next_row), row);
      }
      row = next_row;
    }
    if (row != nullptr) blur_step(previous, current, zeros, row);
  });
}

template <class T>
constexpr LatticeKernels<T> make_table() {
  LatticeKernels<T> table{};
  table.row_stride = row_stride<T>;
  table.embed = embed;
  if constexpr (sizeof(T) == 4) {
    table.embed_wide = embed_wide;
  } else {
    table.embed_wide = embed;
  }
  table.splat = splat<T>;
  table.slice = slice<T>;
  table.gather_ghosts = gather_ghosts<T>;
  table.blur = blur<T>;
  return table;
}

}  // namespace

extern const LatticeKernels<float> lattice_kernels_float = make_table<float>();
extern const LatticeKernels<double> lattice_kernels_double = make_table<double>();

}  // namespace deeplab_crf::DEEPLAB_CRF_ISA

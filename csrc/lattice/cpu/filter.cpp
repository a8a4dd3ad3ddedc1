// Splat, blur and slice on the CPU. Compiled once per instruction set.
//
// One thread per call; a point's channels run over the lanes. Splat and slice move (d+1) rows a point and spend
// 2 (d+1) flops a channel; the blur moves each row on a chain once in and once out per axis, 2 flops a channel.
#include "lattice/cpu/embed.h"
#include "lattice/cpu/kernels.h"
#include "lattice/cpu/rows.h"
#include "lattice/geometry.h"

namespace deeplab_crf::DEEPLAB_CRF_ISA {
namespace {

template <class T>
int64_t row_stride(int64_t channels) {
  return padded_channels<T>(channels);
}

template <class T>
void splat(const LatticeView<T>& lattice, int64_t begin, int64_t end, const T* in, int64_t channels, const T* norm, T* values) {
  const int corners = lattice.corners();
  const int64_t stride = padded_channels<T>(channels);
  for_row_blocks<T>(stride, [&]<int W, int V>(int64_t channel) {
    for (int64_t p = begin; p < end; ++p) {
      Pack<T, W> packs[V];
      const T factor = norm != nullptr ? norm[p] : T(1);
      for (int v = 0; v < V; ++v) {
        const int64_t first = channel + v * W;
        const T* source = in + p * channels + first;
        packs[v] = (first + W <= channels ? Pack<T, W>::load(source)
                                          : Pack<T, W>::load_partial(source, channels - first, T(0))) *
                   factor;
      }
      scatter_rows<T, W, V>(lattice.rows + p * corners, lattice.weights + p * corners, corners, packs, values + channel, stride);
    }
  });
}

template <class T>
void slice(const LatticeView<T>& lattice, int64_t begin, int64_t end, const T* values, int64_t channels, const T* norm, T* out) {
  const int corners = lattice.corners();
  const int64_t stride = padded_channels<T>(channels);
  const T scale = geometry::slice_scale<T>(lattice.dims);
  for_row_blocks<T>(stride, [&]<int W, int V>(int64_t channel) {
    for (int64_t p = begin; p < end; ++p) {
      Pack<T, W> sum[V];
      gather_rows<T, W, V>(lattice.rows + p * corners, lattice.weights + p * corners, corners, values + channel, stride, sum);
      const T factor = norm != nullptr ? scale * norm[p] : scale;
      for (int v = 0; v < V; ++v) {
        const int64_t first = channel + v * W;
        T* target = out + p * channels + first;
        if (first + W <= channels) {
          (sum[v] * factor).store(target);
        } else {
          (sum[v] * factor).store_partial(target, channels - first);
        }
      }
    }
  });
}

template <class T>
void gather_ghosts(const LatticeView<T>& lattice, int64_t begin, int64_t end, T* values, int64_t stride) {
  for_row_blocks<T>(stride, [&]<int W, int V>(int64_t channel) {
    for (int64_t i = begin; i < end; ++i) {
      const int64_t ghost = lattice.ghost_order[i];
      const T* source = values + (lattice.num_vertices + ghost) * stride + channel;
      T* target = values + lattice.ghost_owner[ghost] * stride + channel;
      for (int v = 0; v < V; ++v) {
        (Pack<T, W>::load(target + v * W) + Pack<T, W>::load(source + v * W)).store(target + v * W);
      }
    }
  });
}

template <class T>
void blur(const int32_t* chains, int64_t begin, int64_t end, T* values, int64_t stride) {
  for_row_blocks<T>(stride, [&]<int W, int V>(int64_t channel) {
    using P = Pack<T, W>;
    P previous[V]{}, current[V]{};
    T* row = nullptr;
    for (int64_t i = begin; i < end; ++i) {
      const int32_t entry = chains[i];
      T* next_row = values + (entry & ~kChainStart) * stride + channel;
      if (entry < 0) {
        // Ends the chain before this one: its last vertex has no next neighbour.
        if (row != nullptr) {
          for (int v = 0; v < V; ++v) (current[v] + previous[v] * T(0.5)).store(row + v * W);
        }
        for (int v = 0; v < V; ++v) {
          previous[v] = P::zero();
          current[v] = P::load(next_row + v * W);
        }
      } else {
        for (int v = 0; v < V; ++v) {
          const P next = P::load(next_row + v * W);
          (current[v] + (previous[v] + next) * T(0.5)).store(row + v * W);
          previous[v] = current[v];
          current[v] = next;
        }
      }
      row = next_row;
    }
    if (row != nullptr) {
      for (int v = 0; v < V; ++v) (current[v] + previous[v] * T(0.5)).store(row + v * W);
    }
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

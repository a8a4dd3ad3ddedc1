#include <algorithm>
#include <vector>

#include "lattice/cpu/kernels.h"
#include "lattice/lattice.h"
#include "support/parallel.h"

namespace deeplab_crf {
namespace {

// More chunks keep more threads busy, and cost more ghost rows: 8 chunks for a 500 x 375 image. A multiple of four shares out
// evenly among two and four threads.
constexpr int64_t kPointsPerChunk = 32768;
constexpr int64_t kChunkMultiple = 4;
constexpr int64_t kMaxChunks = 256;
constexpr int64_t kSmallestDivided = 8192;

// Ranges of gather_and_blur that are worth a thread of their own, in elements moved.
constexpr int64_t kElementsPerTask = 32768;

// Calls body(begin, end) for parts of [0, length) that start only where `may_start` allows it, parts side by side.
template <class MayStart, class Body>
void for_ranges(int64_t length, int64_t stride, int threads, const MayStart& may_start, const Body& body) {
  const int64_t step = std::max<int64_t>(1, kElementsPerTask / stride);
  std::vector<int64_t> begins;
  for (int64_t begin = 0; begin < length;) {
    begins.push_back(begin);
    begin = std::min(begin + step, length);
    while (begin < length && !may_start(begin)) ++begin;
  }
  const int64_t parts = static_cast<int64_t>(begins.size());
  begins.push_back(length);
  parallel_for(threads, parts, [&](int64_t part) { body(begins[part], begins[part + 1]); });
}

}  // namespace

int64_t chunk_count(int64_t num_points) {
  if (num_points < kSmallestDivided) return 1;
  const int64_t group = kPointsPerChunk * kChunkMultiple;
  return std::min(kMaxChunks, kChunkMultiple * ((num_points + group - 1) / group));
}

int64_t chunk_begin(int64_t num_points, int64_t chunk) {
  const int64_t chunks = chunk_count(num_points);
  return num_points / chunks * chunk + std::min(chunk, num_points % chunks);
}

template <class T>
int64_t row_stride(int64_t channels) {
  return lattice_kernels<T>().row_stride(channels);
}

template <class T>
void fill_ghosts(const LatticeView<T>& lattice, int64_t chunk, T* values, int64_t stride) {
  for (int64_t g = lattice.ghost_begin[chunk]; g < lattice.ghost_begin[chunk + 1]; ++g) {
    std::copy_n(values + lattice.ghost_owner[g] * stride, stride, values + (lattice.num_vertices + g) * stride);
  }
}

template <class T>
void clear_rows(const LatticeView<T>& lattice, int64_t chunk, T* values, int64_t stride) {
  std::fill(values + lattice.owned_begin[chunk] * stride, values + lattice.owned_begin[chunk + 1] * stride, T(0));
  std::fill(values + (lattice.num_vertices + lattice.ghost_begin[chunk]) * stride,
            values + (lattice.num_vertices + lattice.ghost_begin[chunk + 1]) * stride, T(0));
}

template <class T>
void gather_and_blur(const LatticeView<T>& lattice, T* values, int64_t channels, bool reverse, int threads) {
  const LatticeKernels<T>& kernels = lattice_kernels<T>();
  const int64_t stride = kernels.row_stride(channels);
  const auto owner = [&](int64_t i) { return lattice.ghost_owner[lattice.ghost_order[i]]; };
  for_ranges(
      lattice.num_ghosts, stride, threads, [&](int64_t i) { return owner(i) != owner(i - 1); },
      [&](int64_t begin, int64_t end) { kernels.gather_ghosts(lattice, begin, end, values, stride); });
  for (int pass = 0; pass <= lattice.dims; ++pass) {
    const int axis = reverse ? lattice.dims - pass : pass;
    const int32_t* chains = lattice.chains + axis * lattice.num_vertices;
    for_ranges(
        lattice.chain_lengths[axis], stride, threads, [&](int64_t i) { return chains[i] < 0; },
        [&](int64_t begin, int64_t end) { kernels.blur(chains, begin, end, values, stride); });
  }
}

template <class T>
void splat_and_blur(const SplatArguments<T>& a, int threads) {
  const LatticeView<T>& lattice = *a.lattice;
  const int64_t stride = row_stride<T>(a.channels);
  parallel_for(threads, chunk_count(lattice.num_points), [&](int64_t c) {
    clear_rows(lattice, c, a.values, stride);
    lattice_kernels<T>().splat(lattice, chunk_begin(lattice.num_points, c), chunk_begin(lattice.num_points, c + 1), a.in,
                               a.channels, a.norm, a.values);
  });
  gather_and_blur(lattice, a.values, a.channels, a.reverse, threads);
}

template <class T>
void filter(const FilterArguments<T>& a, int threads) {
  const LatticeView<T>& lattice = *a.lattice;
  splat_and_blur<T>({a.lattice, a.in, a.norm_in, a.channels, a.workspace, a.transpose}, threads);
  const int64_t stride = row_stride<T>(a.channels);
  parallel_for(threads, chunk_count(lattice.num_points), [&](int64_t c) {
    fill_ghosts(lattice, c, a.workspace, stride);
    lattice_kernels<T>().slice(lattice, chunk_begin(lattice.num_points, c), chunk_begin(lattice.num_points, c + 1), a.workspace,
                               a.channels, a.norm_out, a.out);
  });
}

#define DEEPLAB_CRF_INSTANTIATE(T)                                                 \
  template int64_t row_stride<T>(int64_t);                                         \
  template void fill_ghosts<T>(const LatticeView<T>&, int64_t, T*, int64_t);       \
  template void clear_rows<T>(const LatticeView<T>&, int64_t, T*, int64_t);        \
  template void gather_and_blur<T>(const LatticeView<T>&, T*, int64_t, bool, int); \
  template void splat_and_blur<T>(const SplatArguments<T>&, int);                  \
  template void filter<T>(const FilterArguments<T>&, int);
DEEPLAB_CRF_INSTANTIATE(float)
DEEPLAB_CRF_INSTANTIATE(double)
#undef DEEPLAB_CRF_INSTANTIATE

}  // namespace deeplab_crf

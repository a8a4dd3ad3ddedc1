#include "lattice/lattice.h"

#include <algorithm>
#include <vector>

#include "lattice/cpu/kernels.h"
#include "support/parallel.h"

namespace deeplab_crf {
namespace {

constexpr int64_t kPointsPerChunk = 16384;
constexpr int64_t kMaxChunks = 256;

// Ranges of gather_and_blur that are worth a thread of their own, in elements moved.
constexpr int64_t kElementsPerTask = 32768;

// A part of one job's ghosts or of one axis' chains.
struct Range {
  int job;
  int64_t begin;
  int64_t end;
};

// Cuts [0, length) into parts that start only where `may_start` allows it.
template <class MayStart>
void append_ranges(int job, int64_t length, int64_t stride, const MayStart& may_start, std::vector<Range>& ranges) {
  const int64_t step = std::max<int64_t>(1, kElementsPerTask / stride);
  for (int64_t begin = 0; begin < length;) {
    int64_t end = std::min(begin + step, length);
    while (end < length && !may_start(end)) ++end;
    ranges.push_back({job, begin, end});
    begin = end;
  }
}

template <class T>
void gather(const BlurJob<T>* jobs, int num_jobs, int64_t stride, int threads) {
  const LatticeKernels<T>& kernels = lattice_kernels<T>();
  std::vector<Range> ranges;
  for (int j = 0; j < num_jobs; ++j) {
    const LatticeView<T>& lattice = *jobs[j].lattice;
    const auto owner = [&](int64_t i) { return lattice.ghost_owner[lattice.ghost_order[i]]; };
    append_ranges(j, lattice.num_ghosts, stride, [&](int64_t i) { return owner(i) != owner(i - 1); }, ranges);
  }
  parallel_for(threads, static_cast<int64_t>(ranges.size()), [&](int64_t r) {
    const BlurJob<T>& job = jobs[ranges[r].job];
    kernels.gather_ghosts(*job.lattice, ranges[r].begin, ranges[r].end, job.values, stride);
  });
}

}  // namespace

int64_t chunk_count(int64_t num_points) {
  return std::clamp<int64_t>((num_points + kPointsPerChunk - 1) / kPointsPerChunk, 1, kMaxChunks);
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
void gather_and_blur(const BlurJob<T>* jobs, int num_jobs, int64_t channels, bool reverse, int threads) {
  const LatticeKernels<T>& kernels = lattice_kernels<T>();
  const int64_t stride = kernels.row_stride(channels);
  gather(jobs, num_jobs, stride, threads);
  int passes = 0;
  for (int j = 0; j < num_jobs; ++j) passes = std::max(passes, jobs[j].lattice->corners());
  std::vector<Range> ranges;
  for (int pass = 0; pass < passes; ++pass) {
    ranges.clear();
    const auto axis_of = [&](const LatticeView<T>& lattice) { return reverse ? lattice.dims - pass : pass; };
    for (int j = 0; j < num_jobs; ++j) {
      const LatticeView<T>& lattice = *jobs[j].lattice;
      if (pass >= lattice.corners()) continue;
      const int axis = axis_of(lattice);
      const int32_t* chains = lattice.chains + axis * lattice.num_vertices;
      append_ranges(j, lattice.chain_lengths[axis], stride, [&](int64_t i) { return chains[i] < 0; }, ranges);
    }
    parallel_for(threads, static_cast<int64_t>(ranges.size()), [&](int64_t r) {
      const BlurJob<T>& job = jobs[ranges[r].job];
      const int32_t* chains = job.lattice->chains + axis_of(*job.lattice) * job.lattice->num_vertices;
      kernels.blur(chains, ranges[r].begin, ranges[r].end, job.values, stride);
    });
  }
}

template <class T>
void filter(const FilterArguments<T>& a, int threads) {
  const LatticeKernels<T>& kernels = lattice_kernels<T>();
  const LatticeView<T>& lattice = *a.lattice;
  const int64_t stride = kernels.row_stride(a.channels);
  const int64_t chunks = chunk_count(lattice.num_points);
  parallel_for(threads, chunks, [&](int64_t c) {
    clear_rows(lattice, c, a.workspace, stride);
    kernels.splat(lattice, chunk_begin(lattice.num_points, c), chunk_begin(lattice.num_points, c + 1), a.in, a.channels, a.norm_in,
                  a.workspace);
  });
  const BlurJob<T> job{&lattice, a.workspace};
  gather_and_blur(&job, 1, a.channels, a.transpose, threads);
  parallel_for(threads, chunks, [&](int64_t c) {
    fill_ghosts(lattice, c, a.workspace, stride);
    kernels.slice(lattice, chunk_begin(lattice.num_points, c), chunk_begin(lattice.num_points, c + 1), a.workspace, a.channels,
                  a.norm_out, a.out);
  });
}

#define DEEPLAB_CRF_INSTANTIATE(T)                                                       \
  template int64_t row_stride<T>(int64_t);                                               \
  template void fill_ghosts<T>(const LatticeView<T>&, int64_t, T*, int64_t);             \
  template void clear_rows<T>(const LatticeView<T>&, int64_t, T*, int64_t);              \
  template void gather_and_blur<T>(const BlurJob<T>*, int, int64_t, bool, int);          \
  template void filter<T>(const FilterArguments<T>&, int);
DEEPLAB_CRF_INSTANTIATE(float)
DEEPLAB_CRF_INSTANTIATE(double)
#undef DEEPLAB_CRF_INSTANTIATE

}  // namespace deeplab_crf

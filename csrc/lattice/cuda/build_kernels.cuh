// Kernels that build lattices. A contribution c = (b N + p) (d+1) + k is corner k of point p of image b.
//
// The hash table holds contributions, not keys: a slot has the number of the first contribution with its key, and keys lie in an
// array by contribution. So keys may have any width and a slot is 32 bits, taken with one compare-and-swap; and what a slot holds
// in the end, the smallest contribution, does not depend on who came first. The number of the image is no field of the key: it
// follows from the contribution.
#pragma once

#include <type_traits>

#include "lattice/cuda/features.cuh"

namespace deeplab_crf::cuda {

// A number whose unsigned order is that of x.
__device__ inline unsigned long long ordered_bits(double x) {
  unsigned long long bits;
  memcpy(&bits, &x, sizeof bits);
  return bits >> 63 ? ~bits : bits | 1ull << 63;
}
__device__ inline double from_ordered_bits(unsigned long long bits) {
  bits = bits >> 63 ? bits & ~(1ull << 63) : ~bits;
  double x;
  memcpy(&x, &bits, sizeof x);
  return x;
}

// Smallest of the block's values, in thread 0. Every thread of the block must call it.
__device__ inline unsigned long long block_minimum(unsigned long long value) {
  __shared__ unsigned long long of_warp[kThreads / 32];
  for (int distance = 16; distance > 0; distance /= 2) {
    const unsigned long long other = __shfl_xor_sync(~0u, value, distance);
    value = other < value ? other : value;
  }
  if (threadIdx.x % 32 == 0) of_warp[threadIdx.x / 32] = value;
  __syncthreads();
  for (unsigned warp = 1; threadIdx.x == 0 && warp < kThreads / 32; ++warp) value = of_warp[warp] < value ? of_warp[warp] : value;
  __syncthreads();
  return value;
}

constexpr int kPointsPerRangeThread = 8;

__device__ inline void widen_range(unsigned long long* ranges, int64_t at, unsigned long long low, unsigned long long high) {
  atomicMin(ranges + at, low);
  atomicMin(ranges + at + 1, high);
}

// Smallest feature, and smallest negated feature, of every dimension.
//   ranges  (B+1, d, 2) ordered_bits; the last row is for all images together. All ones before.
//   header  kBadElement gets the first element that is not finite; such elements do not count
// blocks_per_image blocks an image, kPointsPerRangeThread points a thread. Bytes: features once, 4 B N d (a stride over d between
// neighbouring threads is served by the cache). Minima: the same bits in any order.
template <class T>
__global__ void __launch_bounds__(kThreads)
    measure_ranges(Features<T> features, int blocks_per_image, unsigned long long* ranges, int32_t* header) {
  const int64_t image = blockIdx.x / blocks_per_image;
  const int64_t first = static_cast<int64_t>(blockIdx.x % blocks_per_image) * kThreads * kPointsPerRangeThread + threadIdx.x;
  for (int i = 0; i < features.dims; ++i) {
    unsigned long long low = ~0ull, high = ~0ull;
    for (int step = 0; step < kPointsPerRangeThread; ++step) {
      const int64_t point = first + step * static_cast<int64_t>(kThreads);
      if (point >= features.num_points) break;
      const T value = feature_at(features, image, point, i);
      if (!is_finite(value)) {
        const int64_t element = (image * features.num_points + point) * features.dims + i;
        atomicMin(reinterpret_cast<unsigned*>(header + kBadElement), static_cast<unsigned>(element));
        continue;
      }
      const unsigned long long bits = ordered_bits(value), negated = ordered_bits(-static_cast<double>(value));
      low = bits < low ? bits : low;
      high = negated < high ? negated : high;
    }
    low = block_minimum(low);
    high = block_minimum(high);
    if (threadIdx.x != 0) continue;
    widen_range(ranges, (image * features.dims + i) * 2, low, high);
    widen_range(ranges, (features.batch * features.dims + i) * 2, low, high);
  }
}

// The bounds of the coordinates of one row of `ranges`. Without a finite feature: those of zero.
__device__ inline CoordinateBounds bounds_of(const unsigned long long* ranges, int64_t row, int dims,
                                             const Scales<double>& scales) {
  double low[geometry::kMaxDimensions], high[geometry::kMaxDimensions];
  for (int i = 0; i < dims; ++i) {
    const unsigned long long* range = ranges + (row * dims + i) * 2;
    low[i] = range[0] == ~0ull ? 0.0 : from_ordered_bits(range[0]);
    high[i] = range[1] == ~0ull ? 0.0 : -from_ordered_bits(range[1]);
  }
  return coordinate_bounds(dims, low, high, scales.scale);
}

// Largest lattice coordinate of every image. One block.
static __global__ void __launch_bounds__(kThreads)
    measure_coordinates(const unsigned long long* ranges, int64_t batch, int dims, Scales<double> scales, double* largest) {
  for (int64_t image = threadIdx.x; image < batch; image += kThreads) {
    largest[image] = bounds_of(ranges, image, dims, scales).largest;
  }
}

constexpr uint32_t kEmptySlot = ~0u;
// With a table at most half full longer searches do not happen; a table that is full because of max_vertices must not be searched
// from end to end.
constexpr int kMaxProbes = 4096;

// In place of the vertex of a corner that has none. Whatever bits of it a sort looks at: it comes behind all vertices.
constexpr int32_t kNoVertex = INT32_MAX;

// The table and all that is known of its contributions.
//   keys    (contributions) of K words each
//   slots   (2^slot_bits)
template <int K>
struct VertexTable {
  const Key<K>* keys;
  uint32_t* slots;
  int slot_bits;
  uint32_t contributions_per_image;

  __device__ inline uint32_t first_slot(const Key<K>& key, uint32_t image) const {
    return static_cast<uint32_t>((key.hash() + image * 0x9e3779b97f4a7c15ull) >> (64 - slot_bits));
  }
  __device__ inline uint32_t slot_after(uint32_t slot) const { return (slot + 1) & ((1u << slot_bits) - 1); }
  __device__ inline bool holds(uint32_t contribution, const Key<K>& key, uint32_t image) const {
    return contribution / contributions_per_image == image && keys[contribution] == key;
  }
};

// Layout of the keys and the header's account of the features. One thread of one block works on the whole batch.
//   ranges      (B+1, d, 2) of measure_ranges
//   largest     (B) of measure_coordinates
//   incomplete  (B) out: 0
template <class T>
__global__ void __launch_bounds__(kThreads)
    choose_layout(Features<T> features, const unsigned long long* ranges, const double* largest, Scales<double> scales,
                  int key_words, KeyLayout* layout, int32_t* incomplete, int32_t* header) {
  for (int64_t image = threadIdx.x; image < features.batch; image += kThreads) incomplete[image] = 0;
  if (threadIdx.x != 0) return;
  const int dims = features.dims;
  header[kMark] = kFormatMark;
  header[kBatch] = static_cast<int32_t>(features.batch);
  header[kNumPoints] = static_cast<int32_t>(features.num_points);
  header[kDims] = dims;
  header[kNumVertices] = header[kCapacity] = header[kLostCorners] = 0;
  header[kKeyWordsGiven] = key_words;
  const auto float_bits = [](float value) {
    int32_t bits;
    memcpy(&bits, &value, sizeof bits);
    return bits;
  };
  if (header[kBadElement] != -1) {
    const uint32_t element = static_cast<uint32_t>(header[kBadElement]), point = element / dims;
    const auto points = static_cast<uint32_t>(features.num_points);
    header[kBadValue] =
        float_bits(static_cast<float>(feature_at(features, point / points, point % points, static_cast<int>(element % dims))));
  }
  const CoordinateBounds bounds = bounds_of(ranges, features.batch, dims, scales);
  if (bounds.largest < kLargestCoordinate) {
    *layout = key_layout(dims, bounds);
    header[kKeyWords] = layout->words;
    return;
  }
  header[kKeyWords] = layout->words = INT32_MAX;  // no build has so many: nothing is built
  for (int64_t image = 0; image < features.batch; ++image) {
    if (!is_refused(largest[image])) continue;
    header[kBadImage] = static_cast<int32_t>(image);
    header[kBadCoordinate] = float_bits(static_cast<float>(largest[image]));
    return;
  }
}

// Weights and keys of the corners of every point: the simplex around it (geometry.h), computed in Real; images that need another
// Real are left alone.
//   layout      of the keys; where it has over K words nothing is built
//   weights     (B, N, d+1) out; NaN for points that cannot be embedded
//   keys        (B, N, d+1) out
//   incomplete  (B) 1 for images with such a point
// A thread a point. Bytes a point: 4 d in, 12 (d+1) out with float and K = 1; about 3 (d+1)^2 + 10 d flops and comparisons:
// memory-bound (17.3 MB for 187,500 points in 5 dimensions: 4 us at 4.3 TB/s). Compiled without contraction: the last bit decides
// which vertices exist.
template <class T, class Real, int D, int K>
__global__ void __launch_bounds__(kThreads) embed_points(Features<T> features, Scales<Real> scales, const double* largest,
                                                         const KeyLayout* layout, T* weights, Key<K>* keys, int32_t* incomplete) {
  const int64_t at = thread_number();
  if (at >= features.batch * features.num_points) return;
  const int dims = D > 0 ? D : features.dims;
  const int64_t image = at / features.num_points;
  if (needs_double<T>(largest[image]) != (sizeof(Real) > sizeof(T))) return;
  const bool fits = layout->words <= K;
  Simplex<T, Real, D> simplex;
  const bool usable = simplex.embed(features, scales, image, at - image * features.num_points, fits && !is_refused(largest[image]));
  if (!usable) incomplete[image] = 1;

  Key<K> key{}, ones{};
  for (int i = 0; i < dims && fits; ++i) {
    const int w = K == 1 ? 0 : layout->word[i];
    key.word[w] += static_cast<uint64_t>(static_cast<int64_t>(simplex.origin[i]) - layout->minimum[i]) << layout->shift[i];
    ones.word[w] += uint64_t{1} << layout->shift[i];
  }
  for (int k = 0; k <= dims; ++k) {
    // Vertex k adds k to every coordinate and takes d + 1 off those of the k highest ranks: one step along an axis at a time.
    if (k > 0) key += ones;
    for (int i = 0; i < dims && k > 0 && fits; ++i) {
      const bool steps = simplex.ranks[i] == static_cast<Real>(dims - k + 1);
      key.word[K == 1 ? 0 : layout->word[i]] -= steps ? static_cast<uint64_t>(dims + 1) << layout->shift[i] : 0;
    }
    keys[at * (dims + 1) + k] = key;
    weights[at * (dims + 1) + k] = usable ? static_cast<T>(simplex.weights[k]) : static_cast<T>(NAN);
  }
}

// Finds or takes the slot of every contribution's key.
//   slot_of  (contributions) out; -1 if there was no place
// A thread a contribution. Bytes: 8 K + 4 in order; a slot and a key, 4 + 8 K, at random, mostly in the cache, since neighbouring
// points share vertices. Slots are taken in any order, but what they hold in the end is not a matter of order.
template <int K>
__global__ void __launch_bounds__(kThreads)
    insert_keys(VertexTable<K> table, uint32_t contributions, int32_t* slot_of, int32_t* header) {
  const int64_t number = thread_number();
  if (number >= contributions) return;
  const auto mine = static_cast<uint32_t>(number);
  // Wide keys stay in memory: registers are too few.
  std::conditional_t<K == kNarrowKey, const Key<K>, const Key<K>&> key = table.keys[mine];
  const uint32_t image = mine / table.contributions_per_image;
  uint32_t slot = table.first_slot(key, image);
  for (int probe = 0; probe < kMaxProbes; ++probe) {
    uint32_t found = *static_cast<volatile uint32_t*>(table.slots + slot);
    if (found == kEmptySlot) found = atomicCAS(table.slots + slot, kEmptySlot, mine);
    if (found == kEmptySlot || table.holds(found, key, image)) {
      if (mine < found) atomicMin(table.slots + slot, mine);
      slot_of[mine] = static_cast<int32_t>(slot);
      return;
    }
    slot = table.slot_after(slot);
  }
  slot_of[mine] = -1;
  atomicAdd(header + kLostCorners, 1);
}

// first[c] = 1 if contribution c is the first of its vertex, else 0. A thread a contribution; 8 bytes in order, 4 at random.
static __global__ void __launch_bounds__(kThreads)
    mark_first(const int32_t* slot_of, const uint32_t* slots, uint32_t contributions, int32_t* first) {
  const int64_t c = thread_number();
  if (c < contributions) first[c] = slot_of[c] >= 0 && slots[slot_of[c]] == static_cast<uint32_t>(c) ? 1 : 0;
}

// From slots to vertices.
//   numbers     (contributions) exclusive sum of what mark_first wrote: vertices in the order of first touch
//   places      (contributions) in: slots; out: vertices, kNoVertex where there is none, or one over the bound
//   rows        (contributions) out: vertices, and 0 where there is none
//   first_of    (bound) out: first contribution of each vertex
//   incomplete  (B) 1 for images that have a corner without a vertex
//   header      kNumVertices out
// A thread a contribution. Bytes: 16 in order, 8 at random.
struct Numbering {
  const uint32_t* slots;
  const int32_t* numbers;
  uint32_t contributions;
  uint32_t contributions_per_image;
  int64_t bound;
};
static __global__ void __launch_bounds__(kThreads)
    number_rows(Numbering by, int32_t* places, int32_t* rows, int32_t* first_of, int32_t* incomplete, int32_t* header) {
  const int64_t number = thread_number();
  if (number >= by.contributions) return;
  const auto c = static_cast<uint32_t>(number);
  const int32_t slot = places[c];
  const bool is_first = slot >= 0 && by.slots[slot] == c;
  if (c == by.contributions - 1) header[kNumVertices] = by.numbers[c] + is_first;
  const int32_t vertex = slot >= 0 ? by.numbers[by.slots[slot]] : kNoVertex;
  const bool exists = vertex < by.bound;
  places[c] = exists ? vertex : kNoVertex;
  rows[c] = exists ? vertex : 0;
  if (!exists) incomplete[c / by.contributions_per_image] = 1;
  if (exists && is_first) first_of[vertex] = static_cast<int32_t>(c);
}

// NaN for all weights of images from which a corner or a point is missing: points that kept theirs would get what looks right and
// is not, since their neighbours' share is lost. A thread a contribution; nothing to read but the flags where all is well.
template <class T>
__global__ void __launch_bounds__(kThreads)
    invalidate_images(const int32_t* incomplete, uint32_t contributions, uint32_t contributions_per_image, T* weights) {
  const int64_t c = thread_number();
  if (c >= contributions || incomplete[static_cast<uint32_t>(c) / contributions_per_image] == 0) return;
  weights[c] = static_cast<T>(NAN);
}

// The header's copy in the structure, and the first vertex of each image. Threads: B + 1, at least kHeaderSize.
//   numbers  (contributions) vertices whose first touch comes before each
static __global__ void __launch_bounds__(kThreads)
    begin_structure(LatticeSizes sizes, const int32_t* header, const int32_t* numbers, int32_t* structure) {
  const int64_t i = thread_number();
  if (i < kHeaderSize) structure[i] = i == kCapacity ? static_cast<int32_t>(sizes.capacity) : header[i];
  if (i > sizes.batch) return;
  const int32_t first = i == sizes.batch ? header[kNumVertices] : numbers[i * sizes.num_points * sizes.corners()];
  structure[sizes.image_begin_at() + i] = first < sizes.capacity ? first : static_cast<int32_t>(sizes.capacity);
}

// Next and previous vertex on every axis: a look-up of the key one step on, which tells both ends.
//   neighbours  (d+1, capacity, 2), all -1 before
// A thread a vertex and axis; threads of an axis follow one another. Bytes: a key in order by first touch, a slot and a key at
// random, 16 out at random.
template <int K>
__global__ void __launch_bounds__(kThreads)
    find_neighbours(VertexTable<K> table, LatticeSizes sizes, const KeyLayout* layout, const int32_t* header,
                    const int32_t* first_of, const int32_t* rows, int32_t* neighbours) {
  const int64_t thread = thread_number();
  const int axis = static_cast<int>(thread / sizes.capacity);
  const int64_t vertex = thread - axis * sizes.capacity;
  if (axis > sizes.dims || vertex >= header[kNumVertices] || layout->words > K) return;
  const auto first = static_cast<uint32_t>(first_of[vertex]);
  const uint32_t image = first / table.contributions_per_image;
  // A step adds 1 to all coordinates and takes d + 1 off the axis' own.
  Key<K> key = table.keys[first];
  for (int i = 0; i < sizes.dims; ++i) {
    const uint64_t one = uint64_t{1} << layout->shift[i];
    key.word[K == 1 ? 0 : layout->word[i]] += one - (i == axis ? one * static_cast<uint64_t>(sizes.corners()) : 0);
  }
  uint32_t slot = table.first_slot(key, image);
  for (int probe = 0; probe < kMaxProbes; ++probe, slot = table.slot_after(slot)) {
    const uint32_t found = table.slots[slot];
    if (found == kEmptySlot) return;
    if (!table.holds(found, key, image)) continue;
    const int32_t next = rows[found];
    if (first_of[next] != static_cast<int32_t>(found)) return;  // beyond the bound
    neighbours[(axis * sizes.capacity + vertex) * 2 + 1] = next;
    neighbours[(axis * sizes.capacity + next) * 2] = static_cast<int32_t>(vertex);
    return;
  }
}

static __global__ void __launch_bounds__(kThreads) write_indices(int32_t* numbers, int64_t count) {
  const int64_t i = thread_number();
  if (i < count) numbers[i] = static_cast<int32_t>(i);
}

// Where each vertex' contributions begin in the sorted list, and where the last one's end: those without a vertex lie behind and
// belong to no list. A thread a contribution; 4 bytes in.
//   sorted  (contributions) vertices, then kNoVertex
static __global__ void __launch_bounds__(kThreads) mark_lists(const int32_t* sorted, int64_t contributions, int32_t* list_begin) {
  const int64_t i = thread_number();
  if (i >= contributions) return;
  const int32_t vertex = sorted[i];
  if (vertex == kNoVertex) return;
  if (i == 0 || sorted[i - 1] != vertex) list_begin[vertex] = static_cast<int32_t>(i);
  if (i == contributions - 1 || sorted[i + 1] == kNoVertex) list_begin[vertex + 1] = static_cast<int32_t>(i + 1);
}

// Number of pieces of each vertex' list, 0 behind the last vertex. A thread a vertex, and one more.
static __global__ void __launch_bounds__(kThreads)
    count_pieces(const int32_t* header, const int32_t* list_begin, int64_t capacity, int32_t* counts) {
  const int64_t vertex = thread_number();
  if (vertex > capacity) return;
  const bool exists = vertex < capacity && vertex < header[kNumVertices];
  counts[vertex] = exists ? (list_begin[vertex + 1] - list_begin[vertex] + kPieceLength - 1) / kPieceLength : 0;
}

// The vertex of every piece. A thread a contribution; the first of each piece writes.
static __global__ void __launch_bounds__(kThreads)
    list_pieces(const int32_t* sorted, int64_t contributions, const int32_t* list_begin, const int32_t* piece_begin,
                int32_t* piece_vertex) {
  const int64_t i = thread_number();
  if (i >= contributions) return;
  const int32_t vertex = sorted[i];
  if (vertex == kNoVertex) return;
  const auto place = static_cast<int32_t>(i) - list_begin[vertex];
  if (place % kPieceLength == 0) piece_vertex[piece_begin[vertex] + place / kPieceLength] = vertex;
}

}  // namespace deeplab_crf::cuda

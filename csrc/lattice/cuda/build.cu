#include <algorithm>

#include "lattice/cuda/build.h"
#include "lattice/cuda/build_kernels.cuh"
#include "support/cuda/arena.h"
#include "support/cuda/device_algorithms.h"

namespace deeplab_crf::cuda {
namespace {

// The parts of a build's workspace. V: bound of the number of vertices, contributions or max_vertices.
struct Workspace {
  int32_t* header;             // (kHeaderSize)
  unsigned long long* ranges;  // (B+1, d, 2)
  double* largest;             // (B)
  KeyLayout* layout;
  int32_t* incomplete;  // (B)
  uint64_t* keys;       // (contributions, key_words); once neighbours are found, `places` sorted, an int32 each
  uint32_t* slots;      // (2^slot_bits), twice V
  int32_t* numbers;     // (contributions) which are first; their sums; then 0, 1, 2, ...
  int32_t* first_of;    // (V)
  int32_t* places;      // (contributions) slots, then vertices or kNoVertex
  Scratch scratch;
  int slot_bits;
  int64_t vertex_bound;
  int64_t size;

  template <class T>
  Workspace(const BuildArguments<T>& a, const Queue& queue) {
    const LatticeSizes sizes = sizes_of(a);
    const int64_t contributions = sizes.contributions();
    vertex_bound = a.max_vertices > 0 ? std::min(a.max_vertices, contributions) : contributions;
    for (slot_bits = 6; (int64_t{1} << slot_bits) < 2 * vertex_bound;) ++slot_bits;
    Arena arena(a.workspace);
    header = arena.allocate<int32_t>(kHeaderSize);
    ranges = arena.allocate<unsigned long long>((sizes.batch + 1) * sizes.dims * 2);
    largest = arena.allocate<double>(sizes.batch);
    incomplete = arena.allocate<int32_t>(sizes.batch);
    layout = arena.allocate<KeyLayout>(1);
    keys = arena.allocate<uint64_t>(contributions * a.key_words);
    slots = arena.allocate<uint32_t>(int64_t{1} << slot_bits);
    numbers = arena.allocate<int32_t>(contributions);
    first_of = arena.allocate<int32_t>(vertex_bound);
    places = arena.allocate<int32_t>(contributions);
    // Vertices are counted up to the capacity, which may be a bound that is more than there can be.
    scratch.size = algorithms_scratch_size(std::max(contributions, a.max_vertices) + 1, queue);
    scratch.memory = arena.allocate<char>(scratch.size);
    size = arena.used();
  }

  template <class T>
  static LatticeSizes sizes_of(const BuildArguments<T>& a) {
    return {a.features.batch, a.features.num_points, a.features.dims, 0};
  }
  template <int K>
  VertexTable<K> table(const LatticeSizes& sizes) const {
    return {reinterpret_cast<const Key<K>*>(keys), slots, slot_bits, static_cast<uint32_t>(sizes.num_points * sizes.corners())};
  }
};

// Calls body.template operator()<K>() for the width of the keys.
template <class Body>
void for_key_words(int key_words, const Body& body) {
  if (key_words == kNarrowKey) return body.template operator()<kNarrowKey>();
  if (key_words == kMediumKey) return body.template operator()<kMediumKey>();
  return body.template operator()<kWideKey>();
}

template <class T, class Real, int K>
void embed_in(const BuildArguments<T>& a, const Workspace& at, const Queue& queue) {
  const int dims = a.features.dims;
  const auto launch_for = [&]<int D>() {
    launch("embed_points", embed_points<T, Real, D, K>, blocks_for(a.features.batch * a.features.num_points), queue, a.features,
           Scales<Real>(dims), at.largest, at.layout, a.weights, reinterpret_cast<Key<K>*>(at.keys), at.incomplete);
  };
  if (K == kNarrowKey && dims == 2) return launch_for.template operator()<K == kNarrowKey ? 2 : 0>();
  if (K == kNarrowKey && dims == 3) return launch_for.template operator()<K == kNarrowKey ? 3 : 0>();
  if (K == kNarrowKey && dims == 5) return launch_for.template operator()<K == kNarrowKey ? 5 : 0>();
  launch_for.template operator()<0>();
}

template <class T>
void number_vertices(const BuildArguments<T>& a, const Workspace& at, const LatticeSizes& sizes, const Queue& queue) {
  const int64_t contributions = sizes.contributions();
  const unsigned blocks = blocks_for(contributions);
  const auto count = static_cast<uint32_t>(contributions);
  for_key_words(a.key_words, [&]<int K>() {
    launch("insert_keys", insert_keys<K>, blocks, queue, at.table<K>(sizes), count, at.places, at.header);
  });
  launch("mark_first", mark_first, blocks, queue, at.places, at.slots, count, at.numbers);
  device_exclusive_sum(at.numbers, at.numbers, contributions, at.scratch, queue);
  const auto per_image = static_cast<uint32_t>(sizes.num_points * sizes.corners());
  launch("number_rows", number_rows, blocks, queue, Numbering{at.slots, at.numbers, count, per_image, at.vertex_bound}, at.places,
         a.rows, at.first_of, at.incomplete, at.header);
  // Without a bound nobody goes on before the header has been looked at.
  if (a.max_vertices == 0) return;
  launch("invalidate_images", invalidate_images<T>, blocks, queue, at.incomplete, count, per_image, a.weights);
}

int bits_for(int64_t values) {
  int bits = 1;
  while (bits < 31 && (int64_t{1} << bits) < values) ++bits;
  return bits;
}

// Contributions sorted by vertex, and the lists and pieces of the vertices.
void sort_contributions(const Workspace& at, const LatticeSizes& sizes, int32_t* structure, const Queue& queue) {
  const int64_t contributions = sizes.contributions();
  const unsigned blocks = blocks_for(contributions);
  int32_t* list_begin = structure + sizes.list_begin_at();
  int32_t* piece_begin = structure + sizes.piece_begin_at();
  auto* sorted = reinterpret_cast<int32_t*>(at.keys);
  launch("write_indices", write_indices, blocks, queue, at.numbers, contributions);
  device_sort_pairs(at.places, sorted, at.numbers, structure + sizes.contributions_at(), contributions,
                    bits_for(sizes.capacity + 1), at.scratch, queue);
  launch("mark_lists", mark_lists, blocks, queue, sorted, contributions, list_begin);
  launch("count_pieces", count_pieces, blocks_for(sizes.capacity + 1), queue, at.header, list_begin, sizes.capacity, piece_begin);
  device_exclusive_sum(piece_begin, piece_begin, sizes.capacity + 1, at.scratch, queue);
  launch("list_pieces", list_pieces, blocks, queue, sorted, contributions, list_begin, piece_begin,
         structure + sizes.piece_vertex_at());
}

}  // namespace

template <class T>
void measure_features(const Features<T>& features, unsigned long long* ranges, double* largest, int32_t* header,
                      const Queue& queue) {
  const int dims = features.dims;
  const auto blocks_per_image =
      static_cast<int>(blocks_for((features.num_points + kPointsPerRangeThread - 1) / kPointsPerRangeThread));
  fill_bytes(header, 0xFF, kHeaderSize * sizeof(int32_t), queue);
  fill_bytes(ranges, 0xFF, ranges_size(features.batch, dims), queue);
  launch("measure_ranges", measure_ranges<T>, static_cast<unsigned>(features.batch * blocks_per_image), queue, features,
         blocks_per_image, ranges, header);
  launch("measure_coordinates", measure_coordinates, 1, queue, ranges, features.batch, dims, Scales<double>(dims), largest);
}

template <class T>
int64_t build_workspace_size(const BuildArguments<T>& a, const Queue& queue) {
  const DeviceGuard guard(queue.device);
  return Workspace(a, queue).size;
}

template <class T>
void embed(const BuildArguments<T>& a, const Queue& queue) {
  const DeviceGuard guard(queue.device);
  const Workspace at(a, queue);
  const LatticeSizes sizes = Workspace::sizes_of(a);
  measure_features(a.features, at.ranges, at.largest, at.header, queue);
  launch("choose_layout", choose_layout<T>, 1, queue, a.features, at.ranges, at.largest, Scales<double>(sizes.dims), a.key_words,
         at.layout, at.incomplete, at.header);
  fill_bytes(at.slots, 0xFF, (int64_t{1} << at.slot_bits) * sizeof(uint32_t), queue);
  for_key_words(a.key_words, [&]<int K>() {
    embed_in<T, T, K>(a, at, queue);
    // Leaves at once where no image needs it.
    if constexpr (sizeof(T) == 4) embed_in<T, double, K>(a, at, queue);
  });
  number_vertices(a, at, sizes, queue);
}

template <class T>
void connect(const BuildArguments<T>& a, int32_t* structure, int64_t capacity, const Queue& queue) {
  const DeviceGuard guard(queue.device);
  const Workspace at(a, queue);
  LatticeSizes sizes = Workspace::sizes_of(a);
  check_capacity(capacity, a.max_vertices);
  sizes.capacity = capacity;
  // What capacity leaves unused must not differ from run to run.
  fill_bytes(structure, 0xFF, sizes.contributions_at() * sizeof(int32_t), queue);
  launch("begin_structure", begin_structure, blocks_for(std::max<int64_t>(sizes.batch + 1, kHeaderSize)), queue, sizes, at.header,
         at.numbers, structure);
  int32_t* neighbours = structure + sizes.neighbours_at();
  const int64_t pairs = sizes.corners() * capacity;
  for_key_words(a.key_words, [&]<int K>() {
    launch("find_neighbours", find_neighbours<K>, blocks_for(pairs), queue, at.table<K>(sizes), sizes, at.layout, at.header,
           at.first_of, a.rows, neighbours);
  });
  sort_contributions(at, sizes, structure, queue);
}

#define DEEPLAB_CRF_INSTANTIATE(T)                                                                             \
  template void measure_features<T>(const Features<T>&, unsigned long long*, double*, int32_t*, const Queue&); \
  template int64_t build_workspace_size<T>(const BuildArguments<T>&, const Queue&);                            \
  template void embed<T>(const BuildArguments<T>&, const Queue&);                                              \
  template void connect<T>(const BuildArguments<T>&, int32_t*, int64_t, const Queue&);
DEEPLAB_CRF_INSTANTIATE(float)
DEEPLAB_CRF_INSTANTIATE(double)
#undef DEEPLAB_CRF_INSTANTIATE

}  // namespace deeplab_crf::cuda

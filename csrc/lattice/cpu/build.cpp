#include "lattice/cpu/build.h"

#include <algorithm>
#include <cmath>
#include <sstream>
#include <vector>

#include "lattice/coordinate_bounds.h"
#include "lattice/geometry.h"
#include "lattice/keys.h"
#include "support/errors.h"
#include "support/parallel.h"

namespace deeplab_crf {
namespace {

constexpr int64_t kPrefetchDistance = 8;

template <class T>
[[noreturn]] void throw_not_finite(const FeatureView<T>& features, int dim) {
  for (int64_t p = 0; p < features.num_points; ++p) {
    const T value = features.data[p * features.point_stride + dim * features.dim_stride];
    if (std::isfinite(value)) continue;
    std::ostringstream text;
    text << "features must be finite; got " << value << " at point " << p << ", dimension " << dim
         << ". Check the image for NaN or inf, and the standard deviations that divide it";
    throw InvalidArgument(text.str());
  }
  throw InvalidArgument("features must not change while the lattice is built; one that was NaN or inf is no more");
}

// Smallest and largest feature of one dimension. Throws if one is not finite.
template <class T>
void feature_range(const FeatureView<T>& features, int dim, double* low, double* high) {
  // Lanes of their own, so that the compiler may use vectors without reordering a sum.
  constexpr int kLanes = 16;
  const T* data = features.data + dim * features.dim_stride;
  T least[kLanes], most[kLanes], poison[kLanes];
  for (int lane = 0; lane < kLanes; ++lane) {
    least[lane] = most[lane] = data[0];
    poison[lane] = 0;
  }
  const auto visit = [&](T value, int lane) {
    least[lane] = value < least[lane] ? value : least[lane];
    most[lane] = value > most[lane] ? value : most[lane];
    poison[lane] += value * T(0);  // NaN as soon as one value is NaN or inf
  };
  int64_t p = 0;
  if (features.point_stride == 1) {
    for (; p + kLanes <= features.num_points; p += kLanes) {
      for (int lane = 0; lane < kLanes; ++lane) visit(data[p + lane], lane);
    }
  }
  for (; p < features.num_points; ++p) visit(data[p * features.point_stride], static_cast<int>(p % kLanes));
  T poisoned = 0;
  for (T lane : poison) poisoned += lane;
  if (poisoned != T(0)) throw_not_finite(features, dim);
  *low = static_cast<double>(*std::min_element(least, least + kLanes));
  *high = static_cast<double>(*std::max_element(most, most + kLanes));
}

template <class T>
CoordinateBounds feature_bounds(const FeatureView<T>& features, bool touch_origin, int threads) {
  const int dims = features.dims;
  std::vector<double> low(dims), high(dims), scales(dims);
  parallel_for(features.num_points > 65536 ? threads : 1, dims,
               [&](int64_t i) { feature_range(features, static_cast<int>(i), &low[i], &high[i]); });
  for (int i = 0; touch_origin && i < dims; ++i) {
    low[i] = std::min(low[i], 0.0);
    high[i] = std::max(high[i], 0.0);
  }
  geometry::elevation_scales(dims, scales.data());
  return coordinate_bounds(dims, low.data(), high.data(), scales.data());
}

void check_features(int dims, int64_t num_points) {
  if (num_points <= 0) throw InvalidArgument("features must hold at least one point; got none");
  if (dims < 1 || dims > geometry::kMaxDimensions) {
    throw InvalidArgument("features must have 1 to " + std::to_string(geometry::kMaxDimensions) + " dimensions; got " +
                          std::to_string(dims) + ". Project them to fewer, for example by PCA");
  }
}

// Vertices that one chunk touches, in the order of first touch.
template <int K>
struct ChunkVertices {
  std::vector<Key<K>> keys;
  std::vector<int32_t> rows;  // the chunk's own number -> row; ghosts as ~ghost until all vertices are known
};

template <class T, int K>
class Steps final : public BuilderSteps<T> {
 public:
  Steps(const FeatureView<T>& features, const KeyLayout& layout, bool wide, bool touch_origin, int threads)
      : features_(features),
        layout_(layout),
        wide_(wide),
        touch_origin_(touch_origin),
        threads_(threads),
        chunks_(chunk_count(features.num_points)) {
    Key<K> ones{};
    for (int i = 0; i < layout_.dims; ++i) ones += layout_.unit<K>(i);
    for (int axis = 0; axis <= layout_.dims; ++axis) {
      step_[axis] = ones;
      for (int n = 0; axis < layout_.dims && n <= layout_.dims; ++n) step_[axis] -= layout_.unit<K>(axis);
    }
  }

  void embed(int32_t* rows, T* weights) override {
    parallel_for(threads_, static_cast<int64_t>(chunks_.size()), [&](int64_t c) { embed_chunk(c, rows, weights); });
    number_vertices();
  }

  void connect(const LatticeArrays& arrays) override {
    std::copy(owned_begin_.begin(), owned_begin_.end(), arrays.owned_begin);
    std::copy(ghost_begin_.begin(), ghost_begin_.end(), arrays.ghost_begin);
    std::copy(ghost_owner_.begin(), ghost_owner_.end(), arrays.ghost_owner);
    order_ghosts(arrays.ghost_order);
    parallel_for(threads_, static_cast<int64_t>(chunks_.size()), [&](int64_t c) { renumber_chunk(c, arrays.rows); });
    const SortedKeys<K> sorted(vertex_keys_);
    const int64_t vertices = num_vertices();
    parallel_for(vertices > 2048 ? threads_ : 1, layout_.dims + 1, [&](int64_t axis) {
      arrays.chain_lengths[axis] = list_chains(sorted, static_cast<int>(axis), arrays.chains + axis * vertices);
    });
  }

  int64_t num_vertices() const override { return owned_begin_.back(); }
  int64_t num_ghosts() const override { return ghost_begin_.back(); }

 private:
  static constexpr int kRankMask = 63;
  static_assert(geometry::kMaxDimensions <= kRankMask);

  // The simplex of the point before. Neighbours share it, or most of its vertices: each keeps its remainder, and its row serves
  // again without a look into the table. In the plane that is worth a branch a vertex; in five dimensions the branches cost more
  // (measured).
  struct PreviousSimplex {
    // By rank, the coordinate that has it. Where another thread writes to the features during the build, ranks may be any integers:
    // the mask keeps them within the array, and a rank that no coordinate has keeps one from before, or 0.
    int coordinate_of_rank[kRankMask + 1]{};
    uint64_t ranks = 0;
    const int32_t* rows = nullptr;
    Key<K> keys[geometry::kMaxDimensions + 1]{};
  };

  void embed_chunk(int64_t c, int32_t* rows, T* weights) {
    if (layout_.dims == 5) return embed_chunk_of<5>(c, rows, weights);
    if (layout_.dims == 2) return embed_chunk_of<2>(c, rows, weights);
    return embed_chunk_of<0>(c, rows, weights);
  }

  // D: the dimension where it is known when compiling, else 0.
  template <int D>
  void embed_chunk_of(int64_t c, int32_t* rows, T* weights) {
    const LatticeKernels<T>& kernels = lattice_kernels<T>();
    const int dims = D > 0 ? D : layout_.dims, corners = dims + 1;
    // On cache lines of their own: where an allocator happened to put them, a build took up to 17 % longer.
    constexpr int kLongest = (D > 0 ? D : geometry::kMaxDimensions) + 1;
    alignas(64) int32_t origin[kLongest * kEmbedBlock], ranks[kLongest * kEmbedBlock];
    alignas(64) T block_weights[kLongest * kEmbedBlock];
    const SimplexBlock<T> block{origin, ranks, block_weights};
    const int64_t begin = chunk_begin(features_.num_points, c), end = chunk_begin(features_.num_points, c + 1);
    KeyTable<K> table((end - begin) / 4);
    PreviousSimplex previous;
    for (int64_t first = begin; first < end; first += kEmbedBlock) {
      const int count = static_cast<int>(std::min<int64_t>(kEmbedBlock, end - first));
      (wide_ ? kernels.embed_wide : kernels.embed)(features_, first, count, block);
      for (int p = 0; p < count; ++p) {
        const int64_t at = (first + p) * corners;
        insert_simplex<D>(block, p, table, previous, rows + at);
        for (int k = 0; k < corners; ++k) weights[at + k] = block_weights[k * kEmbedBlock + p];
      }
    }
    if (touch_origin_ && end == features_.num_points) {
      const T zeros[geometry::kMaxDimensions]{};
      int32_t unused_rows[geometry::kMaxDimensions + 1];
      (wide_ ? kernels.embed_wide : kernels.embed)(FeatureView<T>{zeros, 1, dims, dims, 1}, 0, 1, block);
      insert_simplex<D>(block, 0, table, previous, unused_rows);
    }
    chunks_[c].keys = table.take_keys();
  }

  template <int D>
  void insert_simplex(const SimplexBlock<T>& block, int p, KeyTable<K>& table, PreviousSimplex& previous, int32_t* rows) {
    const int dims = D > 0 ? D : layout_.dims;
    Key<K> key{};
    uint64_t ranks = 0;
    for (int i = 0; i < dims; ++i) {
      const uint64_t offset = static_cast<uint64_t>(block.origin[i * kEmbedBlock + p]) - static_cast<uint64_t>(layout_.minimum[i]);
      key.word[K == 1 ? 0 : layout_.word[i]] += offset << layout_.shift[i];
      const int rank = block.ranks[i * kEmbedBlock + p];
      previous.coordinate_of_rank[rank & kRankMask] = i;
      ranks = ranks * static_cast<uint64_t>(dims + 1) + static_cast<uint64_t>(rank);
    }
    previous.coordinate_of_rank[block.ranks[dims * kEmbedBlock + p] & kRankMask] = dims;
    // The ranks of d coordinates fit one word up to d = 15 (16^15 < 2^64).
    if (dims <= 15 && previous.rows != nullptr && key == previous.keys[0] && ranks == previous.ranks) {
      for (int k = 0; k <= dims; ++k) rows[k] = previous.rows[k];
      previous.rows = rows;
      return;
    }
    // Vertex k adds k to every coordinate and takes d + 1 off those of the k highest ranks: one step along an axis at a time.
    for (int k = 0; k <= dims; ++k) {
      if (k > 0) key += step_[previous.coordinate_of_rank[dims - k + 1]];
      rows[k] = D == 2 && previous.rows != nullptr && key == previous.keys[k] ? previous.rows[k] : table.insert(key);
      if (k == 0 || D == 2) previous.keys[k] = key;
    }
    previous.ranks = ranks;
    previous.rows = rows;
  }

  // Numbers the vertices over all chunks in the order of first touch and tells owned from ghost.
  void number_vertices() {
    int64_t touched = 0;
    for (const ChunkVertices<K>& chunk : chunks_) touched += static_cast<int64_t>(chunk.keys.size());
    if (touched >= INT32_MAX) {
      throw InvalidArgument(
          "the lattice of these features has over 2^31 vertices; use larger standard deviations or process the "
          "image in tiles");
    }
    KeyTable<K> table(touched / 2);
    owned_begin_.assign(1, 0);
    ghost_begin_.assign(1, 0);
    for (ChunkVertices<K>& chunk : chunks_) {
      const int64_t size = static_cast<int64_t>(chunk.keys.size());
      const int32_t known = static_cast<int32_t>(table.keys().size());
      chunk.rows.resize(size);
      for (int64_t i = 0; i < size; ++i) {
        if (i + kPrefetchDistance < size) table.prefetch(chunk.keys[i + kPrefetchDistance]);
        const int32_t vertex = table.insert(chunk.keys[i]);
        if (vertex >= known) {
          chunk.rows[i] = vertex;
        } else {
          chunk.rows[i] = ~static_cast<int32_t>(ghost_owner_.size());
          ghost_owner_.push_back(vertex);
        }
      }
      std::vector<Key<K>>().swap(chunk.keys);
      owned_begin_.push_back(static_cast<int32_t>(table.keys().size()));
      ghost_begin_.push_back(static_cast<int32_t>(ghost_owner_.size()));
    }
    vertex_keys_ = table.take_keys();
  }

  // The numbers of a chunk's own table become rows.
  void renumber_chunk(int64_t c, int32_t* rows) {
    const int corners = layout_.dims + 1;
    const int32_t vertices = static_cast<int32_t>(num_vertices());
    std::vector<int32_t>& row_of = chunks_[c].rows;
    for (int32_t& row : row_of) row = row < 0 ? vertices + ~row : row;
    const int64_t end = chunk_begin(features_.num_points, c + 1) * corners;
    for (int64_t i = chunk_begin(features_.num_points, c) * corners; i < end; ++i) rows[i] = row_of[rows[i]];
  }

  // Counting sort of the ghosts by owner; ghosts of one owner keep the order of their chunks.
  void order_ghosts(int32_t* order) const {
    std::vector<int32_t> place(num_vertices() + 1, 0);
    for (int32_t owner : ghost_owner_) ++place[owner + 1];
    for (int64_t v = 0; v < num_vertices(); ++v) place[v + 1] += place[v];
    for (size_t ghost = 0; ghost < ghost_owner_.size(); ++ghost) order[place[ghost_owner_[ghost]]++] = static_cast<int32_t>(ghost);
  }

  // Finds the next neighbour of every vertex along an axis and writes the chains of neighbours one after the other, each from its
  // first vertex on. Vertices alone on the axis are left out. Returns the length.
  int64_t list_chains(const SortedKeys<K>& sorted, int axis, int32_t* chains) const {
    const int64_t vertices = num_vertices();
    std::vector<int32_t> next(vertices, -1);
    std::vector<char> has_previous(vertices, 0);
    // A step keeps the order of keys: fields have room for it, so nothing carries from one word to the next. No branch depends on
    // a key: each of them would be a coin toss to the processor.
    for (int64_t from = 0, to = 0; from < vertices && to < vertices;) {
      const Key<K> wanted = sorted.keys[from] + step_[axis];
      const bool below = wanted < sorted.keys[to], equal = wanted == sorted.keys[to];
      next[sorted.ids[from]] = equal ? sorted.ids[to] : -1;
      has_previous[sorted.ids[to]] |= static_cast<char>(equal);
      from += below | equal;
      to += !below;
    }
    int64_t length = 0;
    for (int64_t v = 0; v < vertices; ++v) {
      if (has_previous[v] || next[v] < 0) continue;
      chains[length++] = static_cast<int32_t>(v) | kChainStart;
      for (int32_t w = next[v]; w >= 0; w = next[w]) chains[length++] = w;
    }
    return length;
  }

  FeatureView<T> features_;
  KeyLayout layout_;
  bool wide_;
  bool touch_origin_;
  int threads_;
  // From a vertex to its next neighbour along an axis: all coordinates + 1, the axis' own - d.
  Key<K> step_[geometry::kMaxDimensions + 1]{};
  std::vector<ChunkVertices<K>> chunks_;
  std::vector<Key<K>> vertex_keys_;
  std::vector<int32_t> owned_begin_{0}, ghost_begin_{0}, ghost_owner_;
};

template <class T>
std::unique_ptr<BuilderSteps<T>> make_steps(const FeatureView<T>& features, bool touch_origin, int threads) {
  check_features(features.dims, features.num_points);
  const CoordinateBounds bounds = feature_bounds(features, touch_origin, threads);
  if (!(bounds.largest < kLargestCoordinate)) {
    std::ostringstream text;
    text << "features must keep lattice coordinates below 2^30; got " << bounds.largest
         << ". Use larger standard deviations, or shift the features towards zero";
    throw InvalidArgument(text.str());
  }
  const KeyLayout layout = key_layout(features.dims, bounds);
  const bool wide = bounds.largest > kLargestNarrowCoordinate;
  if (layout.words == 1) return std::make_unique<Steps<T, 1>>(features, layout, wide, touch_origin, threads);
  if (layout.words == 2) return std::make_unique<Steps<T, 2>>(features, layout, wide, touch_origin, threads);
  if (layout.words <= 4) return std::make_unique<Steps<T, 4>>(features, layout, wide, touch_origin, threads);
  return std::make_unique<Steps<T, 16>>(features, layout, wide, touch_origin, threads);
}

}  // namespace

template <class T>
LatticeBuilder<T>::LatticeBuilder(const FeatureView<T>& features, bool touch_origin, int threads)
    : steps_(make_steps(features, touch_origin, threads)) {}

template <class T>
bool needs_wide_embedding(const FeatureView<T>& features, int threads) {
  return feature_bounds(features, false, threads).largest > kLargestNarrowCoordinate;
}

template class LatticeBuilder<float>;
template class LatticeBuilder<double>;
template bool needs_wide_embedding<float>(const FeatureView<float>&, int);
template bool needs_wide_embedding<double>(const FeatureView<double>&, int);

}  // namespace deeplab_crf

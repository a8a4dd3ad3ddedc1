#include "lattice/cpu/batch.h"

#include <algorithm>
#include <string>

#include "lattice/geometry.h"
#include "support/errors.h"

namespace deeplab_crf {
namespace {

// "DCRF": tells a structure from any other integers.
constexpr int32_t kFormatMark = 0x44435246;
constexpr int64_t kHeaderSize = 4;

// Where the tables of one image lie in a structure, and where the next image's begin.
struct TablePlaces {
  int64_t owned_begin, ghost_begin, ghost_owner, ghost_order, chain_lengths, chains, end;
};

TablePlaces table_places(int64_t begin, const BatchSizes& sizes, int64_t image) {
  const int64_t chunks = chunk_count(sizes.num_points), ghosts = sizes.num_ghosts[image];
  TablePlaces places;
  places.owned_begin = begin;
  places.ghost_begin = places.owned_begin + chunks + 1;
  places.ghost_owner = places.ghost_begin + chunks + 1;
  places.ghost_order = places.ghost_owner + ghosts;
  places.chain_lengths = places.ghost_order + ghosts;
  places.chains = places.chain_lengths + sizes.dims + 1;
  places.end = places.chains + (sizes.dims + 1) * sizes.num_vertices[image];
  return places;
}

std::vector<TablePlaces> table_places(const BatchSizes& sizes) {
  std::vector<TablePlaces> places;
  int64_t begin = kHeaderSize + 2 * sizes.batch;
  for (int64_t image = 0; image < sizes.batch; ++image) {
    places.push_back(table_places(begin, sizes, image));
    begin = places.back().end;
  }
  return places;
}

[[noreturn]] void throw_no_structure(int64_t length) {
  throw InvalidArgument("structure must be what lattice_build returned, whole; got another array of " + std::to_string(length) +
                        " integers");
}

// Whether all of `count` numbers, and-ed with `mask`, lie in [0, end).
bool all_below(const int32_t* numbers, int64_t count, int64_t end, int32_t mask = -1) {
  // The sign of the number and of last - number, or-ed: quicker than a minimum and a maximum where vectors have none.
  const uint32_t last = static_cast<uint32_t>(end - 1);
  uint32_t outside = count > 0 && end <= 0 ? 1u << 31 : 0;
  for (int64_t i = 0; i < count; ++i) {
    const uint32_t number = static_cast<uint32_t>(numbers[i] & mask);
    outside |= number | (last - number);
  }
  return outside >> 31 == 0;
}

// Whether `count` numbers rise, or stay, from 0 to `end`.
bool rises(const int32_t* numbers, int64_t count, int64_t end) {
  return numbers[0] == 0 && numbers[count - 1] == end && std::is_sorted(numbers, numbers + count);
}

// Whether the tables of one image keep the kernels within the buffers that its sizes ask for.
bool are_tables(const int32_t* structure, const TablePlaces& at, const BatchSizes& sizes, int64_t image) {
  const int64_t chunks = chunk_count(sizes.num_points), vertices = sizes.num_vertices[image], ghosts = sizes.num_ghosts[image];
  bool good = rises(structure + at.owned_begin, chunks + 1, vertices) && rises(structure + at.ghost_begin, chunks + 1, ghosts) &&
              all_below(structure + at.ghost_owner, ghosts, vertices) && all_below(structure + at.ghost_order, ghosts, ghosts) &&
              all_below(structure + at.chain_lengths, sizes.dims + 1, vertices + 1);
  for (int64_t axis = 0; good && axis <= sizes.dims; ++axis) {
    const int32_t* chains = structure + at.chains + axis * vertices;
    const int64_t length = structure[at.chain_lengths + axis];
    good = all_below(chains, length, vertices, ~kChainStart) && (length == 0 || chains[0] < 0);
  }
  return good;
}

// Rows copied at a time: they stay in the first-level cache for the check.
constexpr int64_t kRowsAtOnce = 4096;

// Copies rows. Those of another lattice would have the kernels write outside their buffers.
void copy_rows(const int32_t* from, int64_t count, int64_t num_rows, int32_t* to) {
  bool good = true;
  for (int64_t begin = 0; begin < count; begin += kRowsAtOnce) {
    const int64_t part = std::min(kRowsAtOnce, count - begin);
    std::copy_n(from + begin, part, to + begin);
    good &= all_below(to + begin, part, num_rows);
  }
  if (good) return;
  const int64_t last = num_rows - 1;
  const int32_t *rows = to, *wrong = std::find_if(rows, rows + count, [=](int32_t row) { return row < 0 || row > last; });
  throw InvalidArgument("rows must be those that lattice_build returned with the structure, from 0 to " + std::to_string(last) +
                        "; got " + std::to_string(*wrong));
}

}  // namespace

int64_t BatchSizes::max_rows() const {
  int64_t rows = 0;
  for (int64_t image = 0; image < batch; ++image) rows = std::max(rows, num_vertices[image] + num_ghosts[image]);
  return rows;
}

int64_t BatchSizes::structure_size() const { return batch > 0 ? table_places(*this).back().end : kHeaderSize; }

BatchSizes read_sizes(const int32_t* structure, int64_t length) {
  if (length < kHeaderSize) throw_no_structure(length);
  int32_t header[kHeaderSize];
  std::copy_n(structure, kHeaderSize, header);
  if (header[0] != kFormatMark || header[1] < 0 || length < kHeaderSize + 2 * int64_t{header[1]}) throw_no_structure(length);
  BatchSizes sizes{header[1], header[2], header[3], {}, {}};
  bool good = sizes.num_points > 0 && sizes.dims > 0 && sizes.dims <= geometry::kMaxDimensions;
  for (int64_t image = 0; image < sizes.batch; ++image) {
    sizes.num_vertices.push_back(structure[kHeaderSize + 2 * image]);
    sizes.num_ghosts.push_back(structure[kHeaderSize + 2 * image + 1]);
    good = good && sizes.num_vertices.back() > 0 && sizes.num_ghosts.back() >= 0;
  }
  if (!good || sizes.structure_size() != length) throw_no_structure(length);
  return sizes;
}

template <class T>
LatticeBatch<T>::LatticeBatch(const int32_t* rows, int64_t num_rows, const T* weights, const int32_t* structure, int64_t length)
    : rows_(rows), weights_(weights), structure_(length) {
  std::copy_n(structure, length, structure_.get());
  structure = structure_.get();
  sizes_ = read_sizes(structure, length);
  if (sizes_.batch * sizes_.num_points * (sizes_.dims + 1) != num_rows) {
    throw InvalidArgument("rows and structure must come from one lattice_build; got " + std::to_string(num_rows) +
                          " rows, and a structure for " + std::to_string(sizes_.batch * sizes_.num_points * (sizes_.dims + 1)));
  }
  const int64_t corners = sizes_.dims + 1, batch = sizes_.batch;
  chain_lengths_.resize(batch * corners);
  const std::vector<TablePlaces> places = table_places(sizes_);
  for (int64_t image = 0; image < batch; ++image) {
    const TablePlaces& at = places[image];
    if (!are_tables(structure, at, sizes_, image)) throw_no_structure(length);
    std::copy_n(structure + at.chain_lengths, corners, chain_lengths_.begin() + image * corners);
    LatticeView<T> view;
    view.dims = sizes_.dims;
    view.num_points = sizes_.num_points;
    view.num_vertices = sizes_.num_vertices[image];
    view.num_ghosts = sizes_.num_ghosts[image];
    view.weights = weights_ + image * sizes_.num_points * corners;
    view.owned_begin = structure + at.owned_begin;
    view.ghost_begin = structure + at.ghost_begin;
    view.ghost_owner = structure + at.ghost_owner;
    view.ghost_order = structure + at.ghost_order;
    view.chains = structure + at.chains;
    view.chain_lengths = chain_lengths_.data() + image * corners;
    views_.push_back(view);
  }
}

template <class T>
ImageLattice<T> LatticeBatch<T>::image(int64_t image, int threads) const {
  const int64_t corners = sizes_.dims + 1, points = sizes_.num_points;
  ImageLattice<T> own{SpareBuffer(points * corners), views_[image]};
  parallel_for(threads, chunk_count(points), [&](int64_t c) {
    const int64_t begin = chunk_begin(points, c) * corners, end = chunk_begin(points, c + 1) * corners;
    copy_rows(rows_ + image * points * corners + begin, end - begin, own.view.num_rows(), own.rows.get() + begin);
  });
  own.view.rows = own.rows.get();
  return own;
}

template <class T>
LatticeBatchBuilder<T>::LatticeBatchBuilder(const FeatureBatch<T>& features, int threads)
    : features_(features), threads_(threads), builders_(features.batch) {
  for_images(features.batch, threads, [&](int64_t image, int own_threads, int) {
    try {
      builders_[image] = std::make_unique<LatticeBuilder<T>>(features.image(image), false, own_threads);
    } catch (const InvalidArgument& error) {
      throw InvalidArgument("image " + std::to_string(image) + ": " + error.what());
    }
  });
}

template <class T>
void LatticeBatchBuilder<T>::embed(int32_t* rows, T* weights) {
  const int64_t simplices = features_.num_points * (features_.dims + 1);
  for_images(features_.batch, threads_,
             [&](int64_t image, int, int) { builders_[image]->embed(rows + image * simplices, weights + image * simplices); });
}

template <class T>
BatchSizes LatticeBatchBuilder<T>::sizes() const {
  BatchSizes sizes{features_.batch, features_.num_points, features_.dims, {}, {}};
  for (const auto& builder : builders_) {
    sizes.num_vertices.push_back(builder->num_vertices());
    sizes.num_ghosts.push_back(builder->num_ghosts());
  }
  return sizes;
}

template <class T>
void LatticeBatchBuilder<T>::connect(int32_t* rows, int32_t* structure) {
  const BatchSizes sizes = this->sizes();
  structure[0] = kFormatMark;
  structure[1] = static_cast<int32_t>(sizes.batch);
  structure[2] = static_cast<int32_t>(sizes.num_points);
  structure[3] = sizes.dims;
  const std::vector<TablePlaces> places = table_places(sizes);
  const int64_t corners = sizes.dims + 1;
  for_images(sizes.batch, threads_, [&](int64_t image, int, int) {
    structure[kHeaderSize + 2 * image] = static_cast<int32_t>(sizes.num_vertices[image]);
    structure[kHeaderSize + 2 * image + 1] = static_cast<int32_t>(sizes.num_ghosts[image]);
    const TablePlaces& at = places[image];
    int64_t chain_lengths[geometry::kMaxDimensions + 1];
    int32_t* chains = structure + at.chains;
    builders_[image]->connect({rows + image * sizes.num_points * corners, structure + at.owned_begin, structure + at.ghost_begin,
                               structure + at.ghost_owner, structure + at.ghost_order, chains, chain_lengths});
    std::copy_n(chain_lengths, corners, structure + at.chain_lengths);
    // Behind the used length of an axis nothing is read; set, so that equal lattices are equal arrays.
    for (int64_t axis = 0; axis < corners; ++axis) {
      std::fill(chains + axis * sizes.num_vertices[image] + chain_lengths[axis], chains + (axis + 1) * sizes.num_vertices[image],
                0);
    }
  });
}

template <class T>
void filter(const BatchFilterArguments<T>& a, int threads) {
  const BatchSizes& sizes = a.lattice->sizes();
  const int64_t values = sizes.num_points * a.channels, buffer = sizes.max_rows() * row_stride<T>(a.channels);
  for_images(sizes.batch, threads, [&](int64_t image, int own_threads, int slot) {
    const ImageLattice<T> lattice = a.lattice->image(image, own_threads);
    const FilterArguments<T> arguments{
        &lattice.view, a.in + image * values, a.out + image * values, a.channels, nullptr, nullptr, a.workspace + slot * buffer,
        a.transpose};
    filter(arguments, own_threads);
  });
}

#define DEEPLAB_CRF_INSTANTIATE(T)       \
  template struct ImageLattice<T>;       \
  template class LatticeBatch<T>;        \
  template class LatticeBatchBuilder<T>; \
  template void filter<T>(const BatchFilterArguments<T>&, int);
DEEPLAB_CRF_INSTANTIATE(float)
DEEPLAB_CRF_INSTANTIATE(double)
#undef DEEPLAB_CRF_INSTANTIATE

}  // namespace deeplab_crf

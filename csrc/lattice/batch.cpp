#include "lattice/batch.h"

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

// Rows of another lattice would have the kernels write outside their buffers.
void check_rows(const int32_t* rows, int64_t count, int64_t num_rows) {
  // The sign of row and of last - row, or-ed: quicker than a minimum and a maximum where vectors have none.
  const int32_t last = static_cast<int32_t>(num_rows - 1);
  uint32_t outside = 0;
  for (int64_t i = 0; i < count; ++i) {
    const uint32_t row = static_cast<uint32_t>(rows[i]);
    outside |= row | (static_cast<uint32_t>(last) - row);
  }
  if (outside >> 31 == 0) return;
  const int32_t* wrong = std::find_if(rows, rows + count, [=](int32_t row) { return row < 0 || row > last; });
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

BatchSizes read_sizes(const int32_t* structure) {
  if (structure[0] != kFormatMark) throw InvalidArgument("structure must be what lattice_build returned; got other integers");
  BatchSizes sizes{structure[1], structure[2], structure[3], {}, {}};
  for (int64_t image = 0; image < sizes.batch; ++image) {
    sizes.num_vertices.push_back(structure[kHeaderSize + 2 * image]);
    sizes.num_ghosts.push_back(structure[kHeaderSize + 2 * image + 1]);
  }
  return sizes;
}

BatchSizes read_sizes(const int32_t* structure, int64_t length) {
  if (length < kHeaderSize || structure[0] != kFormatMark || structure[1] < 0 || length < kHeaderSize + 2 * int64_t{structure[1]}) {
    throw_no_structure(length);
  }
  const BatchSizes sizes = read_sizes(structure);
  if (sizes.structure_size() != length) throw_no_structure(length);
  return sizes;
}

template <class T>
LatticeBatch<T>::LatticeBatch(const int32_t* rows, const T* weights, const int32_t* structure) : sizes_(read_sizes(structure)) {
  const int64_t corners = sizes_.dims + 1, batch = sizes_.batch;
  chain_lengths_.resize(batch * corners);
  const std::vector<TablePlaces> places = table_places(sizes_);
  for (int64_t image = 0; image < batch; ++image) {
    const TablePlaces& at = places[image];
    std::copy_n(structure + at.chain_lengths, corners, chain_lengths_.begin() + image * corners);
    LatticeView<T> view;
    view.dims = sizes_.dims;
    view.num_points = sizes_.num_points;
    view.num_vertices = sizes_.num_vertices[image];
    view.num_ghosts = sizes_.num_ghosts[image];
    view.rows = rows + image * sizes_.num_points * corners;
    view.weights = weights + image * sizes_.num_points * corners;
    check_rows(view.rows, sizes_.num_points * corners, view.num_rows());
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
    const FilterArguments<T> arguments{&(*a.lattice)[image],
                                       a.in + image * values,
                                       a.out + image * values,
                                       a.channels,
                                       nullptr,
                                       nullptr,
                                       a.workspace + slot * buffer,
                                       a.transpose};
    filter(arguments, own_threads);
  });
}

#define DEEPLAB_CRF_INSTANTIATE(T)       \
  template class LatticeBatch<T>;        \
  template class LatticeBatchBuilder<T>; \
  template void filter<T>(const BatchFilterArguments<T>&, int);
DEEPLAB_CRF_INSTANTIATE(float)
DEEPLAB_CRF_INSTANTIATE(double)
#undef DEEPLAB_CRF_INSTANTIATE

}  // namespace deeplab_crf

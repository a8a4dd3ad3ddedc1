// Stages over a block of points that the forward and the backward pass of mean field share. For kernel sources only.
#pragma once

#include "lattice/cpu/rows.h"
#include "mean_field/cpu/kernels.h"

namespace deeplab_crf::DEEPLAB_CRF_ISA {

// A block of points and its rows in scratch.
template <class T>
struct Block {
  int64_t begin;
  int count;
  const int64_t* at;  // (kPassBlock) where each point's row of unary and q begins
  T* energy;          // (kPassBlock, stride), later Q * scale; in the backward pass the gradient in them
  T* message;         // (kPassBlock, stride) messages of a matrix, later exponents
  T* scale;           // (kPassBlock) what makes Q of a row
};

// Where the rows of `count` points from `begin` on lie in an (N, labels) array.
template <class T>
void locate_rows(const PassArguments<T>& a, int64_t begin, int count, int64_t* at) {
  for (int p = 0; p < count; ++p) at[p] = (a.order != nullptr ? a.order[begin + p] : begin + p) * a.num_labels;
}

// The block's rows of an (N, labels) array, padded with zeros. Nothing outside the rows is read: another thread may be writing
// there.
template <class T>
void load_rows(const PassArguments<T>& a, const T* array, const Block<T>& block) {
  const int64_t labels = a.num_labels;
  const int count = block.count;
  const int64_t* at = block.at;
  T* target = block.energy;
  for_row_blocks<T>(a.stride, [=]<int W, int V>(int64_t first, auto stride) DEEPLAB_CRF_INLINE_LAMBDA {
    for (int p = 0; p < count; ++p) {
      Row<T, W, V> row;
      row.load_first(array + at[p] + first, labels - first);
      row.store(target + p * stride + first);
    }
  });
  for (int p = 0; p < count; ++p) block.scale[p] = T(1);
}

// The block's rows, scaled, into an (N, labels) array.
template <class T>
void store_rows(const PassArguments<T>& a, const Block<T>& block, T* array) {
  const int64_t labels = a.num_labels;
  const int count = block.count;
  const T* source = block.energy;
  const T* scale = block.scale;
  const int64_t* at = block.at;
  for_row_blocks<T>(a.stride, [=]<int W, int V>(int64_t first, auto stride) DEEPLAB_CRF_INLINE_LAMBDA {
    for (int p = 0; p < count; ++p) {
      Row<T, W, V> row;
      row.load(source + p * stride + first);
      row.scale(scale[p]);
      row.store_first(array + at[p] + first, labels - first);
    }
  });
}

// Rows of a large lattice wait in the last cache or in memory: the slice fetches those of a few points ahead. The splat finds them
// cleared just before, and so in the cache.
constexpr int kRowsAhead = 6;

// Corners of the lattice of positions and of the bilateral lattice of an RGB image: the pair that loops are made for, with all
// that they read and write in registers.
constexpr int kPositionCorners = 3, kBilateralCorners = 6;

template <class T>
bool is_image_pair(const PassArguments<T>& a) {
  return a.num_terms == 2 && a.terms[0].corners == kPositionCorners && a.terms[1].corners == kBilateralCorners;
}

// The splat of one kernel at the points of a block.
template <class T, int Corners>
struct Splat {
  int corners;
  const int32_t* rows;
  const T* weights;
  const T* norms;
  T* values;

  Splat(const PassTerm<T>& term, const Block<T>& block)
      : corners(Corners > 0 ? Corners : term.corners),
        rows(term.rows + block.begin * corners),
        weights(term.weights + block.begin * corners),
        norms(term.norm_in != nullptr ? term.norm_in + block.begin : nullptr),
        values(term.write) {}

  template <int W, int V>
  DEEPLAB_CRF_INLINE void add(int p, int64_t first, int64_t stride, Row<T, W, V> q) const {
    const int count = Corners > 0 ? Corners : corners;
    if (norms != nullptr) q.scale(norms[p]);
    scatter_rows<Corners>(rows + p * count, weights + p * count, count, q, values + first, stride);
  }
};

template <class T, class... Splats>
void splat_rows(const PassArguments<T>& a, const Block<T>& block, Splats... splats) {
  const int count = block.count;
  const T* beliefs = block.energy;
  const T* scale = block.scale;
  for_row_blocks<T>(a.stride, [=]<int W, int V>(int64_t first, auto stride) DEEPLAB_CRF_INLINE_LAMBDA {
    for (int p = 0; p < count; ++p) {
      Row<T, W, V> q;
      q.load(beliefs + p * stride + first);
      // Scaled first, as if Q had been stored: a start from a stored Q takes the same steps bit for bit.
      q.scale(scale[p]);
      (splats.add(p, first, stride, q), ...);
    }
  });
}

template <class T>
void splat_beliefs(const PassArguments<T>& a, const Block<T>& block) {
  if (is_image_pair(a)) {
    return splat_rows(a, block, Splat<T, kPositionCorners>(a.terms[0], block), Splat<T, kBilateralCorners>(a.terms[1], block));
  }
  for (int m = 0; m < a.num_terms; ++m) {
    for_corners(a.terms[m].corners, [&]<int Corners>() { splat_rows(a, block, Splat<T, Corners>(a.terms[m], block)); });
  }
}

// Points whose rows are made ready at once.
constexpr int64_t kPreparedPoints = 4 * kPassBlock;

// Makes the rows ready that `count` points from `begin` on are the first of the chunk to touch.
template <class T>
void prepare_rows(const PassArguments<T>& a, PassTerm<T>& term, int64_t begin, int64_t count) {
  const LatticeView<T>& lattice = *term.lattice;
  const int32_t vertices = static_cast<int32_t>(lattice.num_vertices);
  const int32_t* rows = term.rows + begin * term.corners;
  int32_t last_owned = -1, last = -1;
  for (int64_t i = 0; i < count * term.corners; ++i) {
    const int32_t owned = rows[i] < vertices ? rows[i] : -1;
    last_owned = owned > last_owned ? owned : last_owned;
    last = rows[i] > last ? rows[i] : last;
  }
  const auto clear = [&](int64_t from, int64_t to) {
    if (a.splat) __builtin_memset(term.write + from * a.stride, 0, (to - from) * a.stride * sizeof(T));
  };
  if (last_owned >= term.next_owned) {
    clear(term.next_owned, last_owned + 1);
    term.next_owned = last_owned + 1;
  }
  if (last >= term.next_ghost) {
    clear(term.next_ghost, last + 1);
    if (a.slice) {
      const int64_t from = term.next_ghost, stride = a.stride;
      for_row_blocks<T>(stride, [=, &lattice, &term]<int W, int V>(int64_t first, auto stride) DEEPLAB_CRF_INLINE_LAMBDA {
        for (int64_t row = from; row <= last; ++row) {
          Row<T, W, V> values;
          values.load(term.read + lattice.ghost_owner[row - vertices] * stride + first);
          values.store(term.read + row * stride + first);
        }
      });
    }
    term.next_ghost = last + 1;
  }
}

}  // namespace deeplab_crf::DEEPLAB_CRF_ISA

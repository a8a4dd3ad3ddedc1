// The fused pass over the points: slice, normalise, compatibility, softmax, next splat. Compiled once per instruction set.
//
//   e_l = U_l + sum_m sum_l' C_m[l, l'] norm_out_m scale_m sum_k b_k values_m[row_k, l'];  Q_l = exp(-e_l) / sum exp(-e)
//   write_m[row_k, l] += b_k norm_in_m Q_l
//
// One thread per call. The points go in blocks of kPassBlock; a block's energies (kPassBlock, stride) stay in the first-level cache
// between the stages, so that each stage is a short loop whose points do not wait for one another. Labels over the lanes.
// Per point and kernel: 2 (d+1) rows of L values and 8 (d+1) bytes of weights and rows; per label 4 (d+1) + about 30 flops.
#include "lattice/cpu/rows.h"
#include "mean_field/cpu/kernels.h"

namespace deeplab_crf::DEEPLAB_CRF_ISA {
namespace {

// A block of points and its rows in scratch.
template <class T>
struct Block {
  int64_t begin;
  int count;
  const int64_t* at;  // (kPassBlock) where each point's row of unary and q begins
  T* energy;          // (kPassBlock, stride), later Q * scale
  T* message;         // (kPassBlock, stride)
  T* scale;           // (kPassBlock) what makes Q of a row
};

// Rows of an (N, labels) array into a block's rows, padded with `fill`. Nothing outside the rows is read: another thread may be
// writing there.
template <class T>
void load_rows(const PassArguments<T>& a, const T* array, const Block<T>& block, T fill) {
  const int64_t labels = a.num_labels, stride = a.stride;
  const int count = block.count;
  const int64_t* at = block.at;
  T* target = block.energy;
  for_row_blocks<T>(stride, [=]<int W, int V>(int64_t first, auto stride) DEEPLAB_CRF_INLINE_LAMBDA {
    T lanes[W];
    for (int l = 0; l < W; ++l) lanes[l] = first + (V - 1) * W + l < labels ? T(0) : fill;
    const Pack<T, W> padding = Pack<T, W>::load(lanes);
    for (int p = 0; p < count; ++p) {
      Row<T, W, V> row;
      row.load_first(array + at[p] + first, labels - first);
      if (first + V * W > labels) row.packs[V - 1] = row.packs[V - 1] + padding;
      row.store(target + p * stride + first);
    }
  });
}

// Where the rows of `count` points from `begin` on lie in an (N, labels) array.
template <class T>
void locate_rows(const PassArguments<T>& a, int64_t begin, int count, int64_t* at) {
  for (int p = 0; p < count; ++p) at[p] = (a.order != nullptr ? a.order[begin + p] : begin + p) * a.num_labels;
}

// Fetches rows that the next block will load.
template <class T>
void prefetch_unary(const T* array, const int64_t* at, int count, int64_t labels) {
  constexpr int64_t kLine = 64 / sizeof(T);
  for (int p = 0; p < count; ++p) {
    for (int64_t l = 0; l < labels; l += kLine) __builtin_prefetch(array + at[p] + l);
  }
}

// Q of the block into an (N, labels) array.
template <class T>
void store_rows(const PassArguments<T>& a, const Block<T>& block, T* array) {
  const int64_t labels = a.num_labels, stride = a.stride;
  const int count = block.count;
  const T* source = block.energy;
  const T* scale = block.scale;
  const int64_t* at = block.at;
  for_row_blocks<T>(stride, [=]<int W, int V>(int64_t first, auto stride) DEEPLAB_CRF_INLINE_LAMBDA {
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
constexpr int64_t kLargeLattice = 4 << 20;

// Up to which point of the block there are points kRowsAhead behind it; 0 where fetching does not pay.
template <class T>
int64_t points_to_fetch(const PassArguments<T>& a, const PassTerm<T>& term, const Block<T>& block) {
  const int64_t bytes = term.lattice->num_vertices * a.stride * static_cast<int64_t>(sizeof(T));
  return bytes > kLargeLattice ? a.num_points - block.begin - kRowsAhead : 0;
}

// energy += compatibility * norm * slice, for compatibilities that keep labels apart.
template <class T>
void add_sliced(const PassArguments<T>& a, const PassTerm<T>& term, const Block<T>& block) {
  // Copies, not references: the compiler must assume that a stored row overlaps whatever it can reach.
  const int corners = term.lattice->corners(), count = block.count;
  const int32_t* rows = term.lattice->rows + block.begin * corners;
  const T* weights = term.lattice->weights + block.begin * corners;
  const T* norms = term.norm_out != nullptr ? term.norm_out + block.begin : nullptr;
  const T* values = term.read;
  T* energies = block.energy;
  const int64_t stride = a.stride;
  const T* diagonal = term.kind == Compatibility::kDiagonal ? term.coefficients : nullptr;
  const T potts = term.coefficients[0];
  const int64_t ahead = points_to_fetch(a, term, block);
  for_row_blocks<T>(stride, [=]<int W, int V>(int64_t first, auto stride) DEEPLAB_CRF_INLINE_LAMBDA {
    for_corners(corners, [=]<int Corners>() DEEPLAB_CRF_INLINE_LAMBDA {
      for (int p = 0; p < count; ++p) {
        if (p < ahead) prefetch_rows<Corners>(rows + (p + kRowsAhead) * corners, corners, values + first, stride, V * W);
        Row<T, W, V> sum;
        gather_rows<Corners>(rows + p * corners, weights + p * corners, corners, values + first, stride, sum);
        const T norm = norms != nullptr ? norms[p] : T(1);
        T* energy = energies + p * stride + first;
        if (diagonal == nullptr) {
          sum.add_to(energy, potts * norm);
        } else {
          for (int v = 0; v < V; ++v) sum.packs[v] = sum.packs[v] * Pack<T, W>::load(diagonal + first + v * W);
          sum.add_to(energy, norm);
        }
      }
    });
  });
}

// The same for a matrix: first the messages of all labels, then energy += compat * message.
template <class T>
void add_mixed(const PassArguments<T>& a, const PassTerm<T>& term, const Block<T>& block) {
  const LatticeView<T>& lattice = *term.lattice;
  const int corners = lattice.corners();
  for_row_blocks<T>(a.stride, [&]<int W, int V>(int64_t first, auto stride) DEEPLAB_CRF_INLINE_LAMBDA {
    for (int p = 0; p < block.count; ++p) {
      const int64_t at = (block.begin + p) * corners;
      Row<T, W, V> sum;
      gather_rows<0>(lattice.rows + at, lattice.weights + at, corners, term.read + first, stride, sum);
      if (term.norm_out != nullptr) sum.scale(term.norm_out[block.begin + p]);
      sum.store(block.message + p * stride + first);
    }
  });
  for_row_blocks<T>(a.stride, [&]<int W, int V>(int64_t first, auto stride) DEEPLAB_CRF_INLINE_LAMBDA {
    for (int p = 0; p < block.count; ++p) {
      T* target = block.energy + p * stride + first;
      Row<T, W, V> energy;
      energy.load(target);
      for (int64_t l = 0; l < a.num_labels; ++l)
        energy.add(term.coefficients + l * stride + first, block.message[p * stride + l]);
      energy.store(target);
    }
  });
}

// Each row minus its minimum, negated: what exp takes.
template <class T, int W, int V>
DEEPLAB_CRF_INLINE void shift_rows(T* energies, int64_t stride, int count) {
  for (int p = 0; p < count; ++p) {
    T* energy = energies + p * stride;
    if constexpr (V > 0) {
      Row<T, W, V> row;
      row.load(energy);
      const T lowest = row.reduce(Minimum{});
      for (int v = 0; v < V; ++v) row.packs[v] = lowest - row.packs[v];
      row.store(energy);
    } else {
      using P = Pack<T, W>;
      P least = P::load(energy);
      for (int64_t l = W; l < stride; l += W) least = minimum(least, P::load(energy + l));
      least = across_lanes<W / 2>(least, Minimum{});
      for (int64_t l = 0; l < stride; l += W) (least - P::load(energy + l)).store(energy + l);
    }
  }
}

// scale = 1 / sum of each row.
template <class T, int W, int V>
DEEPLAB_CRF_INLINE void sum_rows(const T* beliefs, int64_t stride, int count, T* scale) {
  for (int p = 0; p < count; ++p) {
    if constexpr (V > 0) {
      Row<T, W, V> row;
      row.load(beliefs + p * stride);
      scale[p] = T(1) / row.reduce(Sum{});
    } else {
      using P = Pack<T, W>;
      P total = P::zero();
      for (int64_t l = 0; l < stride; l += W) total = total + P::load(beliefs + p * stride + l);
      scale[p] = T(1) / first_lane(across_lanes<W / 2>(total, Sum{}));
    }
  }
}

// Rows become exp(lowest - energy), and scale what makes softmax(-energy) of them.
template <class T>
void softmax(const PassArguments<T>& a, const Block<T>& block) {
  T* energies = block.energy;
  T* scale = block.scale;
  const int64_t stride = a.stride;
  const int count = block.count;
  // Any number of packs for rows that do not fit the registers.
  const auto rows = [=](const auto& body) {
    if (stride > kMaxPacks * kWideLanes<T>) return body.template operator()<kWideLanes<T>, 0>(0, stride);
    for_row_blocks<T>(stride, body);
  };
  rows([=]<int W, int V>(int64_t, auto stride) DEEPLAB_CRF_INLINE_LAMBDA { shift_rows<T, W, V>(energies, stride, count); });
  // All rows of the block as one run of lanes: its length is a multiple of every pack's.
  constexpr int kLanes = kLongLanes<T>;
  static_assert(kPassBlock % kLanes == 0);
  for (int64_t l = 0; l < kPassBlock * stride; l += kLanes) {
    exp_nonpositive(Pack<T, kLanes>::load(energies + l)).store(energies + l);
  }
  rows([=]<int W, int V>(int64_t, auto stride) DEEPLAB_CRF_INLINE_LAMBDA { sum_rows<T, W, V>(energies, stride, count, scale); });
}

// q <- (1 - damping) q + damping old, with scale applied. Returns the largest move.
template <class T>
T blend(const PassArguments<T>& a, const Block<T>& block) {
  T change = 0;
  for (int p = 0; p < block.count; ++p) {
    const T* old = a.q + block.at[p];
    T* q = block.energy + p * a.stride;
    for (int64_t l = 0; l < a.num_labels; ++l) {
      q[l] = q[l] * block.scale[p] * (T(1) - a.damping) + old[l] * a.damping;
      const T move = q[l] > old[l] ? q[l] - old[l] : old[l] - q[l];
      change = move > change ? move : change;
    }
    block.scale[p] = T(1);
  }
  return change;
}

template <class T>
void splat_rows(const PassArguments<T>& a, const PassTerm<T>& term, const Block<T>& block) {
  const int corners = term.lattice->corners(), count = block.count;
  const int32_t* rows = term.lattice->rows + block.begin * corners;
  const T* weights = term.lattice->weights + block.begin * corners;
  const T* norms = term.norm_in != nullptr ? term.norm_in + block.begin : nullptr;
  const T* beliefs = block.energy;
  const T* scale = block.scale;
  T* values = term.write;
  const int64_t stride = a.stride;
  for_row_blocks<T>(stride, [=]<int W, int V>(int64_t first, auto stride) DEEPLAB_CRF_INLINE_LAMBDA {
    for_corners(corners, [=]<int Corners>() DEEPLAB_CRF_INLINE_LAMBDA {
      for (int p = 0; p < count; ++p) {
        Row<T, W, V> q;
        q.load(beliefs + p * stride + first);
        // Scaled first, as if Q had been stored: a start from a stored Q takes the same steps bit for bit.
        q.scale(scale[p]);
        if (norms != nullptr) q.scale(norms[p]);
        scatter_rows<Corners>(rows + p * corners, weights + p * corners, corners, q, values + first, stride);
      }
    });
  });
}

// Makes the rows ready that points of this block are the first of the chunk to touch.
template <class T>
void prepare_rows(const PassArguments<T>& a, PassTerm<T>& term, const Block<T>& block) {
  const LatticeView<T>& lattice = *term.lattice;
  const int32_t vertices = static_cast<int32_t>(lattice.num_vertices);
  const int32_t* rows = lattice.rows + block.begin * lattice.corners();
  int32_t last_owned = -1, last = -1;
  for (int i = 0; i < block.count * lattice.corners(); ++i) {
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

template <class T>
T pass(const PassArguments<T>& a, int64_t begin, int64_t end) {
  const auto count_at = [=](int64_t first) { return static_cast<int>(end - first < kPassBlock ? end - first : kPassBlock); };
  T change = 0;
  T scale[kPassBlock];
  int64_t at[2][kPassBlock];
  locate_rows(a, begin, count_at(begin), at[0]);
  for (int64_t first = begin, turn = 0; first < end; first += kPassBlock, turn ^= 1) {
    const Block<T> block{first, count_at(first), at[turn], a.scratch, a.scratch + kPassBlock * a.stride, scale};
    const int next_count = first + kPassBlock < end ? count_at(first + kPassBlock) : 0;
    locate_rows(a, first + kPassBlock, next_count, at[turn ^ 1]);
    prefetch_unary(a.from_q ? a.q : a.unary, at[turn ^ 1], next_count, a.num_labels);
    for (int m = 0; m < a.num_terms; ++m) prepare_rows(a, a.terms[m], block);
    if (a.from_q) {
      load_rows(a, static_cast<const T*>(a.q), block, T(0));
      for (T& factor : scale) factor = T(1);
    } else {
      load_rows(a, a.unary, block, static_cast<T>(__builtin_inf()));
      for (int m = 0; a.slice && m < a.num_terms; ++m) {
        const PassTerm<T>& term = a.terms[m];
        term.kind == Compatibility::kMatrix ? add_mixed(a, term, block) : add_sliced(a, term, block);
      }
      softmax(a, block);
    }
    if (a.watch) {
      const T moved = blend(a, block);
      change = moved > change ? moved : change;
    }
    if (a.keep) store_rows(a, block, a.q);
    for (int m = 0; a.splat && m < a.num_terms; ++m) splat_rows(a, a.terms[m], block);
  }
  return change;
}

}  // namespace

extern const MeanFieldKernels<float> mean_field_kernels_float{pass<float>};
extern const MeanFieldKernels<double> mean_field_kernels_double{pass<double>};

}  // namespace deeplab_crf::DEEPLAB_CRF_ISA

// The fused pass over the points: slice, normalise, compatibility, softmax, next splat. Compiled once per instruction set.
//
//   e_l = U_l + sum_m sum_l' C_m[l, l'] norm_out_m scale_m sum_k b_k values_m[row_k, l'];  Q_l = exp(-e_l) / sum exp(-e)
//   write_m[row_k, l] += b_k norm_in_m Q_l
//
// One thread per call. The points go in blocks of kPassBlock; a block's energies (kPassBlock, stride) stay in the first-level cache
// between the stages, so that each stage is a short loop whose points do not wait for one another. All kernels share a stage:
// one loop of stores to two lattices waits less than two loops. Labels over the lanes.
// Per point and kernel: 2 (d+1) rows of L values and 8 (d+1) bytes of weights and rows; per label 4 (d+1) + about 30 flops.
#include "mean_field/cpu/stages.h"

namespace deeplab_crf::DEEPLAB_CRF_ISA {
namespace {

// log Q = (lowest - e) - log sum exp(lowest - e): exact where Q itself is too small for a number.
template <class T>
void store_logarithms(const PassArguments<T>& a, const Block<T>& block) {
  constexpr int kLanes = kLongLanes<T>;
  T shifts[kPassBlock];
  for (int p = block.count; p < kPassBlock; ++p) block.scale[p] = T(1);
  for (int p = 0; p < kPassBlock; p += kLanes) natural_log(Pack<T, kLanes>::load(block.scale + p)).store(shifts + p);
  const int64_t labels = a.num_labels;
  const int count = block.count;
  const T *source = block.message, *shift = shifts;
  const int64_t* at = block.at;
  T* out = a.q;
  for_row_blocks<T>(a.stride, [=]<int W, int V>(int64_t first, auto stride) DEEPLAB_CRF_INLINE_LAMBDA {
    for (int p = 0; p < count; ++p) {
      Row<T, W, V> row;
      row.load(source + p * stride + first);
      for (int v = 0; v < V; ++v) row.packs[v] = row.packs[v] + shift[p];
      row.store_first(out + at[p] + first, labels - first);
    }
  });
}

// The slice of one kernel at the points of a block, for a compatibility that keeps labels apart. Corners: 0 if not known when
// compiling.
template <class T, int Corners>
struct Slice {
  int corners;
  const int32_t* rows;
  const T* weights;
  const T* norms;
  const T* values;
  const T* diagonal;
  T potts;
  int64_t ahead;  // up to which point of the block there are points kRowsAhead behind it; 0 where fetching does not pay

  Slice(const PassArguments<T>& a, const PassTerm<T>& term, const Block<T>& block)
      : corners(Corners > 0 ? Corners : term.corners),
        rows(term.rows + block.begin * corners),
        weights(term.weights + block.begin * corners),
        norms(term.norm_out != nullptr ? term.norm_out + block.begin : nullptr),
        values(term.read),
        diagonal(term.kind == Compatibility::kDiagonal ? term.coefficients : nullptr),
        potts(term.coefficients[0]),
        ahead(term.large ? a.num_points - block.begin - kRowsAhead : 0) {}

  // energy += compatibility * norm * slice at point p.
  template <int W, int V>
  DEEPLAB_CRF_INLINE void add(int p, int64_t first, int64_t stride, Row<T, W, V>& energy) const {
    const int count = Corners > 0 ? Corners : corners;
    if (p < ahead) prefetch_rows<Corners>(rows + (p + kRowsAhead) * count, count, values + first, stride, V * W);
    Row<T, W, V> sum;
    gather_rows<Corners>(rows + p * count, weights + p * count, count, values + first, stride, sum);
    const T norm = norms != nullptr ? norms[p] : T(1);
    if (diagonal == nullptr) {
      const T factor = potts * norm;
      for (int v = 0; v < V; ++v) energy.packs[v] = energy.packs[v] + sum.packs[v] * factor;
    } else {
      for (int v = 0; v < V; ++v)
        energy.packs[v] = energy.packs[v] + sum.packs[v] * Pack<T, W>::load(diagonal + first + v * W) * norm;
    }
  }
};

// energy = unary + the slices. Rows that fit the registers become lowest - energy at once if `shift`; returns whether they did.
template <class T, class... Slices>
bool load_unary(const PassArguments<T>& a, const Block<T>& block, bool shift, Slices... slices) {
  // Copies, not references: the compiler must assume that a stored row overlaps whatever it can reach.
  const int64_t labels = a.num_labels;
  const int count = block.count;
  const T* unary = a.unary;
  const int64_t* at = block.at;
  T* energies = block.energy;
  const bool shift_now = shift && a.stride <= kWidestRow<T>;
  for_row_blocks<T>(a.stride, [=]<int W, int V>(int64_t first, auto stride) DEEPLAB_CRF_INLINE_LAMBDA {
    T lanes[W];
    for (int l = 0; l < W; ++l) lanes[l] = first + (V - 1) * W + l < labels ? T(0) : static_cast<T>(__builtin_inf());
    const Pack<T, W> padding = Pack<T, W>::load(lanes);
    for (int p = 0; p < count; ++p) {
      Row<T, W, V> energy;
      energy.load_first(unary + at[p] + first, labels - first);
      if (first + V * W > labels) energy.packs[V - 1] = energy.packs[V - 1] + padding;
      (slices.add(p, first, stride, energy), ...);
      if (shift_now) {
        const T lowest = energy.reduce(Minimum{});
        for (int v = 0; v < V; ++v) energy.packs[v] = lowest - energy.packs[v];
      }
      energy.store(energies + p * stride + first);
    }
  });
  return shift_now;
}

// energy += slice.
template <class T, int Corners>
void add_slice(const PassArguments<T>& a, const Block<T>& block, Slice<T, Corners> slice) {
  const int count = block.count;
  T* energies = block.energy;
  for_row_blocks<T>(a.stride, [=]<int W, int V>(int64_t first, auto stride) DEEPLAB_CRF_INLINE_LAMBDA {
    for (int p = 0; p < count; ++p) {
      Row<T, W, V> energy;
      energy.load(energies + p * stride + first);
      slice.add(p, first, stride, energy);
      energy.store(energies + p * stride + first);
    }
  });
}

// The same for a matrix: first the messages of all labels, then energy += compat * message.
template <class T>
void add_mixed(const PassArguments<T>& a, const PassTerm<T>& term, const Block<T>& block) {
  const int corners = term.corners;
  for_row_blocks<T>(a.stride, [&]<int W, int V>(int64_t first, auto stride) DEEPLAB_CRF_INLINE_LAMBDA {
    for (int p = 0; p < block.count; ++p) {
      const int64_t at = (block.begin + p) * corners;
      Row<T, W, V> sum;
      gather_rows<0>(term.rows + at, term.weights + at, corners, term.read + first, stride, sum);
      if (term.norm_out != nullptr) sum.scale(term.norm_out[block.begin + p]);
      sum.store(block.message + p * stride + first);
    }
  });
  for_row_blocks<T>(a.stride, [&]<int W, int V>(int64_t first, auto stride) DEEPLAB_CRF_INLINE_LAMBDA {
    for (int p = 0; p < block.count; ++p) {
      T* target = block.energy + p * stride + first;
      Row<T, W, V> energy;
      energy.load(target);
      for (int64_t l = 0; l < a.num_labels; ++l) energy.add(term.coefficients + l * stride + first, block.message[p * stride + l]);
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

// Rows become exp(lowest - energy), and scale what makes softmax(-energy) of them. `shifted`: they are lowest - energy already.
template <class T>
void softmax(const PassArguments<T>& a, const Block<T>& block, bool shifted) {
  T* energies = block.energy;
  T* scale = block.scale;
  const int64_t stride = a.stride;
  const int count = block.count;
  // Any number of packs for rows that do not fit the registers.
  const auto rows = [=](const auto& body) {
    if (stride > kWidestRow<T>) return body.template operator()<kWideLanes<T>, 0>(0, stride);
    for_row_blocks<T>(stride, body);
  };
  if (!shifted) {
    rows([=]<int W, int V>(int64_t, auto stride) DEEPLAB_CRF_INLINE_LAMBDA { shift_rows<T, W, V>(energies, stride, count); });
  }
  if (a.keep && a.log_output) {
    // The exponents: what the logarithm of Q is made of.
    for (int64_t l = 0; l < count * stride; ++l) block.message[l] = energies[l];
  }
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
    const T* old = a.old_q + block.at[p];
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

// Q of the block from the unary and the messages: rows that `scale` makes sum to one.
template <class T>
void update_beliefs(const PassArguments<T>& a, const Block<T>& block) {
  const int num_terms = a.slice ? a.num_terms : 0;
  bool mixed = false;
  for (int m = 0; m < num_terms; ++m) mixed |= a.terms[m].kind == Compatibility::kMatrix;
  bool shifted = false;
  if (num_terms > 0 && !mixed && is_image_pair(a)) {
    shifted = load_unary(a, block, true, Slice<T, kPositionCorners>(a, a.terms[0], block),
                         Slice<T, kBilateralCorners>(a, a.terms[1], block));
  } else {
    shifted = load_unary(a, block, num_terms == 0);
    for (int m = 0; m < num_terms; ++m) {
      const PassTerm<T>& term = a.terms[m];
      if (term.kind == Compatibility::kMatrix) {
        add_mixed(a, term, block);
      } else {
        for_corners(term.corners, [&]<int Corners>() { add_slice(a, block, Slice<T, Corners>(a, term, block)); });
      }
    }
  }
  softmax(a, block, shifted);
}

template <class T>
T pass(const PassArguments<T>& a, int64_t begin, int64_t end) {
  T change = 0;
  T scale[kPassBlock];
  int64_t at[kPassBlock];
  for (int64_t first = begin; first < end; first += kPassBlock) {
    const int count = static_cast<int>(end - first < kPassBlock ? end - first : kPassBlock);
    locate_rows(a, first, count, at);
    const Block<T> block{first, count, at, a.scratch, a.scratch + kPassBlock * a.stride, scale};
    if ((first - begin) % kPreparedPoints == 0) {
      const int64_t prepared = end - first < kPreparedPoints ? end - first : kPreparedPoints;
      for (int m = 0; m < a.num_terms; ++m) prepare_rows(a, a.terms[m], first, prepared);
    }
    a.from_q ? load_rows(a, a.old_q, block) : update_beliefs(a, block);
    // Before damping: the exponents give log Q as long as Q is the softmax.
    if (a.keep && a.log_output) store_logarithms(a, block);
    if (a.watch) {
      const T moved = blend(a, block);
      change = moved > change ? moved : change;
    }
    if (a.keep && !a.log_output) store_rows(a, block, a.q);
    if (a.trace != nullptr) store_rows(a, block, a.trace);
    if (a.splat) splat_beliefs(a, block);
  }
  return change;
}

}  // namespace

extern const MeanFieldKernels<float> mean_field_kernels_float{pass<float>};
extern const MeanFieldKernels<double> mean_field_kernels_double{pass<double>};

}  // namespace deeplab_crf::DEEPLAB_CRF_ISA

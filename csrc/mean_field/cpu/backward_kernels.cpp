// The backward pass over the points: slice, compatibility, softmax, splat, each transposed, and the gradients of what they depend
// on. Compiled once per instruction set. One thread per call, kPassBlock points at a time through short stages, as in
// forward_kernels.cpp.
//
//   r = sum_k b_k read_m[row_k];  dQ = sum_m norm_in_m C_m^T r;  g = -Q (dQ - <dQ, Q>);  write_m[row_k] += b_k norm_out_m g
//
// Norms and compatibilities as in the forward direction: terms[m] is the transposed kernel, so its norm_out is norm_in_m.
// The coefficients have the slice scale in them.
// Per point and kernel: 2 (d+1) rows of L values as in the forward pass; with weight gradients 4 (d+1).
#include "mean_field/cpu/backward_kernels.h"

#include "lattice/cpu/dots.h"
#include "lattice/geometry.h"
#include "mean_field/cpu/stages.h"

namespace deeplab_crf::DEEPLAB_CRF_ISA {
namespace {

// Rows (kPassBlock, stride) of a block.
template <class T>
struct Rows {
  T* beliefs;  // Q_t
  T* adjoint;  // the gradient in Q_t, then in e_t
  T* slices;
  T* mixed;  // rows that went through a compatibility
};

// One kernel at the points of a block.
template <class T>
struct TermBlock {
  int corners;
  int count;
  const int32_t* rows;
  const T* weights;
  const T* norms;        // of the transposed kernel's output: norm_in
  const T* other_norms;  // norm_out
  int64_t ahead;         // as in Slice of forward_kernels.cpp

  TermBlock(const PassArguments<T>& a, const PassTerm<T>& term, const Block<T>& block)
      : corners(term.corners),
        count(block.count),
        rows(term.rows + block.begin * corners),
        weights(term.weights + block.begin * corners),
        norms(term.norm_out != nullptr ? term.norm_out + block.begin : nullptr),
        other_norms(term.norm_in != nullptr ? term.norm_in + block.begin : nullptr),
        ahead(term.large ? a.num_points - block.begin - kRowsAhead : 0) {}
};

// sums[i] += lanes[i]
template <class T, int W, int V>
DEEPLAB_CRF_INLINE void add_to_sums(const Row<T, W, V>& row, double* sums) {
  T lanes[W * V];
  row.store(lanes);
  for (int i = 0; i < W * V; ++i) sums[i] += static_cast<double>(lanes[i]);
}

// adjoint += norm_in C^T r for a compatibility that keeps labels apart, and its gradient and that of norm_in.
template <class T>
void add_sliced(const PassArguments<T>& a, const PassTerm<T>& term, const GradientPassTerm<T>& gradient, const Block<T>& block,
                const Rows<T>& rows) {
  const TermBlock<T> at(a, term, block);
  const T *values = term.read, *coefficients = term.coefficients, *beliefs = rows.beliefs;
  T *adjoint = rows.adjoint, *norm_gradient = gradient.norm_in_gradient;
  if (norm_gradient != nullptr) norm_gradient += block.begin;
  double* sums = gradient.compat_sums;
  for_row_blocks<T>(a.stride, [=]<int W, int V>(int64_t first, auto stride) DEEPLAB_CRF_INLINE_LAMBDA {
    Row<T, W, V> coefficient, products;
    coefficient.load(coefficients + first);
    products.set_zero();
    for_corners(at.corners, [=, &products]<int Corners>() DEEPLAB_CRF_INLINE_LAMBDA {
      const int corners = Corners > 0 ? Corners : at.corners;
      for (int p = 0; p < at.count; ++p) {
        if (p < at.ahead) prefetch_rows<Corners>(at.rows + (p + kRowsAhead) * corners, corners, values + first, stride, V * W);
        Row<T, W, V> slice, q;
        gather_rows<Corners>(at.rows + p * corners, at.weights + p * corners, corners, values + first, stride, slice);
        q.load(beliefs + p * stride + first);
        const T norm = at.norms != nullptr ? at.norms[p] : T(1);
        for (int v = 0; v < V; ++v) {
          products.packs[v] = products.packs[v] + slice.packs[v] * norm * q.packs[v];
          slice.packs[v] = slice.packs[v] * coefficient.packs[v];
        }
        slice.add_to(adjoint + p * stride + first, norm);
        if (norm_gradient != nullptr) {
          for (int v = 0; v < V; ++v) q.packs[v] = q.packs[v] * slice.packs[v];
          norm_gradient[p] += q.reduce(Sum{});
        }
      }
    });
    if (sums != nullptr) add_to_sums(products, sums + first);
  });
}

// out = matrix^T in: sum over labels l of in[l] * row l of the matrix.
template <class T>
void multiply(const PassArguments<T>& a, const T* matrix, const T* in, int count, T* out) {
  const int64_t labels = a.num_labels;
  for_row_blocks<T>(a.stride, [=]<int W, int V>(int64_t first, auto stride) DEEPLAB_CRF_INLINE_LAMBDA {
    for (int p = 0; p < count; ++p) {
      Row<T, W, V> sum;
      sum.set_zero();
      for (int64_t l = 0; l < labels; ++l) sum.add(matrix + l * stride + first, in[p * stride + l]);
      sum.store(out + p * stride + first);
    }
  });
}

// sums += sum over the points of norm * left right^T, (L, stride).
template <class T>
void add_outer_products(const PassArguments<T>& a, const TermBlock<T>& at, const T* left, const T* right, double* sums) {
  const int64_t labels = a.num_labels;
  for_row_blocks<T>(a.stride, [=]<int W, int V>(int64_t first, auto stride) DEEPLAB_CRF_INLINE_LAMBDA {
    for (int64_t l = 0; l < labels; ++l) {
      Row<T, W, V> sum;
      sum.set_zero();
      for (int p = 0; p < at.count; ++p) {
        const T factor = left[p * stride + l] * (at.norms != nullptr ? at.norms[p] : T(1));
        sum.add(right + p * stride + first, factor);
      }
      add_to_sums(sum, sums + l * stride + first);
    }
  });
}

// add_sliced for a matrix: first r of all labels.
template <class T>
void add_mixed(const PassArguments<T>& a, const PassTerm<T>& term, const GradientPassTerm<T>& gradient, const Block<T>& block,
               const Rows<T>& rows) {
  const TermBlock<T> at(a, term, block);
  for_row_blocks<T>(a.stride, [&]<int W, int V>(int64_t first, auto stride) DEEPLAB_CRF_INLINE_LAMBDA {
    for (int p = 0; p < at.count; ++p) {
      Row<T, W, V> slice;
      gather_rows<0>(at.rows + p * at.corners, at.weights + p * at.corners, at.corners, term.read + first, stride, slice);
      slice.store(rows.slices + p * stride + first);
    }
  });
  multiply(a, term.coefficients, rows.slices, at.count, rows.mixed);
  if (gradient.compat_sums != nullptr) add_outer_products(a, at, rows.slices, rows.beliefs, gradient.compat_sums);
  for_row_blocks<T>(a.stride, [&]<int W, int V>(int64_t first, auto stride) DEEPLAB_CRF_INLINE_LAMBDA {
    for (int p = 0; p < at.count; ++p) {
      Row<T, W, V> mixed;
      mixed.load(rows.mixed + p * stride + first);
      if (gradient.norm_in_gradient != nullptr) {
        gradient.norm_in_gradient[block.begin + p] += dot(mixed, static_cast<const T*>(rows.beliefs + p * stride + first));
      }
      mixed.add_to(rows.adjoint + p * stride + first, at.norms != nullptr ? at.norms[p] : T(1));
    }
  });
}

// Gradient in the energies from that in Q = softmax(-e), or in log Q, in place. Padding stays zero.
template <class T>
void softmax_gradient(const PassArguments<T>& a, const Rows<T>& rows, int count, bool log_output) {
  const T* beliefs = rows.beliefs;
  T* adjoint = rows.adjoint;
  T totals[kPassBlock] = {};
  T* total = totals;
  for_row_blocks<T>(a.stride, [=]<int W, int V>(int64_t first, auto stride) DEEPLAB_CRF_INLINE_LAMBDA {
    for (int p = 0; p < count; ++p) {
      Row<T, W, V> gradient;
      gradient.load(adjoint + p * stride + first);
      total[p] += log_output ? gradient.reduce(Sum{}) : dot(gradient, beliefs + p * stride + first);
    }
  });
  for_row_blocks<T>(a.stride, [=]<int W, int V>(int64_t first, auto stride) DEEPLAB_CRF_INLINE_LAMBDA {
    for (int p = 0; p < count; ++p) {
      Row<T, W, V> gradient, q;
      gradient.load(adjoint + p * stride + first);
      q.load(beliefs + p * stride + first);
      for (int v = 0; v < V; ++v) {
        gradient.packs[v] = log_output ? q.packs[v] * total[p] - gradient.packs[v]
                                       : q.packs[v] * (Pack<T, W>::broadcast(total[p]) - gradient.packs[v]);
      }
      gradient.store(adjoint + p * stride + first);
    }
  });
}

// grad_unary += the block's rows.
template <class T>
void add_rows(const PassArguments<T>& a, const Block<T>& block, T* array) {
  const int64_t labels = a.num_labels;
  const int count = block.count;
  const T* source = block.energy;
  const int64_t* at = block.at;
  for_row_blocks<T>(a.stride, [=]<int W, int V>(int64_t first, auto stride) DEEPLAB_CRF_INLINE_LAMBDA {
    for (int p = 0; p < count; ++p) {
      Row<T, W, V> sum, row;
      sum.load_first(array + at[p] + first, labels - first);
      row.load(source + p * stride + first);
      for (int v = 0; v < V; ++v) sum.packs[v] = sum.packs[v] + row.packs[v];
      sum.store_first(array + at[p] + first, labels - first);
    }
  });
}

template <class T>
T largest_entry(const T* rows, int64_t count) {
  T largest = 0;
  for (int64_t i = 0; i < count; ++i) {
    const T size = rows[i] < T(0) ? -rows[i] : rows[i];
    largest = size > largest ? size : largest;
  }
  return largest;
}

// Gradients that are dot products with the rows of a point: with vectors x = compatibility * in and dots_k = <x, values[row_k]>,
// weight gradient += norm * dots_k, norm gradient += sum_k b_k dots_k. Either may be null.
template <class T>
void add_dots(const PassArguments<T>& a, const TermBlock<T>& at, const T* vectors, const T* values, const T* norms,
              T* weight_gradient, T* norm_gradient) {
  T dots[kPassBlock * (geometry::kMaxDimensions + 1)];
  T* all_dots = dots;
  for (int i = 0; i < at.count * at.corners; ++i) dots[i] = T(0);
  for_row_blocks<T>(a.stride, [=]<int W, int V>(int64_t first, auto stride) DEEPLAB_CRF_INLINE_LAMBDA {
    for_corners(at.corners, [=]<int Corners>() DEEPLAB_CRF_INLINE_LAMBDA {
      const int corners = Corners > 0 ? Corners : at.corners;
      for (int p = 0; p < at.count; ++p) {
        Row<T, W, V> vector;
        vector.load(vectors + p * stride + first);
        add_dots<Corners>(at.rows + p * corners, corners, vector, values + first, stride, T(1), all_dots + p * corners);
      }
    });
  });
  for (int p = 0; p < at.count; ++p) {
    for (int k = 0; k < at.corners; ++k) {
      const int i = p * at.corners + k;
      if (norm_gradient != nullptr) norm_gradient[p] += at.weights[i] * dots[i];
      if (weight_gradient != nullptr) weight_gradient[i] += norms != nullptr ? norms[p] * dots[i] : dots[i];
    }
  }
}

// mixed = compatibility * in, with `matrix` for a matrix.
template <class T>
void mix(const PassArguments<T>& a, const PassTerm<T>& term, const T* matrix, const T* in, int count, T* mixed) {
  if (term.kind == Compatibility::kMatrix) return multiply(a, matrix, in, count, mixed);
  for (int p = 0; p < count; ++p) {
    for (int64_t l = 0; l < a.stride; ++l) mixed[p * a.stride + l] = matrix[l] * in[p * a.stride + l];
  }
}

// What the weights of the splat of norm_in Q_t get.
template <class T>
void add_splat_gradient(const PassArguments<T>& a, const PassTerm<T>& term, const GradientPassTerm<T>& gradient,
                        const Block<T>& block, const Rows<T>& rows) {
  const TermBlock<T> at(a, term, block);
  mix(a, term, gradient.columns, rows.beliefs, at.count, rows.mixed);
  add_dots<T>(a, at, rows.mixed, term.read, at.norms, gradient.weight_gradient + block.begin * at.corners, nullptr);
}

// What the weights of the slice of the messages, and norm_out, get.
template <class T>
void add_slice_gradient(const PassArguments<T>& a, const PassTerm<T>& term, const GradientPassTerm<T>& gradient,
                        const Block<T>& block, const Rows<T>& rows) {
  const TermBlock<T> at(a, term, block);
  mix(a, term, term.coefficients, rows.adjoint, at.count, rows.mixed);
  add_dots<T>(a, at, rows.mixed, gradient.messages, at.other_norms,
              gradient.weight_gradient != nullptr ? gradient.weight_gradient + block.begin * at.corners : nullptr,
              gradient.norm_out_gradient != nullptr ? gradient.norm_out_gradient + block.begin : nullptr);
}

// Q_t of the block, from its logarithm if that is what there is.
template <class T>
void load_beliefs(const GradientPassArguments<T>& a, const Block<T>& block) {
  load_rows(a.pass, a.pass.old_q, block);
  if (!a.log_output) return;
  constexpr int kLanes = kLongLanes<T>;
  for (int64_t l = 0; l < kPassBlock * a.pass.stride; l += kLanes) {
    exp_nonpositive(Pack<T, kLanes>::load(block.energy + l)).store(block.energy + l);
  }
  for (int p = 0; p < block.count; ++p) {
    for (int64_t l = a.pass.num_labels; l < a.pass.stride; ++l) block.energy[p * a.pass.stride + l] = T(0);
  }
}

// The gradient in Q_t, or log Q_t.
template <class T>
void gather_adjoint(const GradientPassArguments<T>& a, const Block<T>& block, const Rows<T>& rows) {
  const PassArguments<T>& pass = a.pass;
  if (a.grad_output != nullptr) return load_rows(pass, a.grad_output, block);
  for (int64_t l = 0; l < block.count * pass.stride; ++l) rows.adjoint[l] = T(0);
  for (int m = 0; m < pass.num_terms; ++m) {
    const PassTerm<T>& term = pass.terms[m];
    const GradientPassTerm<T>& gradient = a.gradients[m];
    if (term.kind == Compatibility::kMatrix) {
      add_mixed(pass, term, gradient, block, rows);
    } else {
      add_sliced(pass, term, gradient, block, rows);
    }
    if (gradient.weight_gradient != nullptr) add_splat_gradient(pass, term, gradient, block, rows);
  }
}

// g_t of the block, from the gradient in Q_t, to where it goes.
template <class T>
T spread_adjoint(const GradientPassArguments<T>& a, const Block<T>& block, const Rows<T>& rows) {
  const PassArguments<T>& pass = a.pass;
  softmax_gradient(pass, rows, block.count, a.log_output);
  if (a.grad_output != nullptr) {
    store_rows(pass, block, a.grad_unary);
  } else {
    add_rows(pass, block, a.grad_unary);
  }
  for (int m = 0; pass.splat && m < pass.num_terms; ++m) {
    if (a.gradients[m].messages != nullptr) add_slice_gradient(pass, pass.terms[m], a.gradients[m], block, rows);
  }
  if (pass.splat) splat_beliefs(pass, block);
  return pass.watch ? largest_entry(rows.adjoint, block.count * pass.stride) : T(0);
}

template <class T>
T backward_pass(const GradientPassArguments<T>& a, int64_t begin, int64_t end) {
  const PassArguments<T>& pass = a.pass;
  const int64_t size = kPassBlock * pass.stride;
  const Rows<T> rows{pass.scratch, pass.scratch + size, pass.scratch + 2 * size, pass.scratch + 3 * size};
  T largest = 0;
  T scale[kPassBlock];
  for (T& factor : scale) factor = T(1);
  int64_t at[kPassBlock];
  for (int64_t first = begin; first < end; first += kPassBlock) {
    const int count = static_cast<int>(end - first < kPassBlock ? end - first : kPassBlock);
    locate_rows(pass, first, count, at);
    if ((first - begin) % kPreparedPoints == 0) {
      const int64_t prepared = end - first < kPreparedPoints ? end - first : kPreparedPoints;
      for (int m = 0; m < pass.num_terms; ++m) prepare_rows(pass, pass.terms[m], first, prepared);
    }
    load_beliefs(a, Block<T>{first, count, at, rows.beliefs, nullptr, scale});
    const Block<T> adjoint{first, count, at, rows.adjoint, nullptr, scale};
    gather_adjoint(a, adjoint, rows);
    if (a.grad_start != nullptr) {
      store_rows(pass, adjoint, a.grad_start);
      continue;
    }
    const T entry = spread_adjoint(a, adjoint, rows);
    largest = entry > largest ? entry : largest;
  }
  return largest;
}

}  // namespace

extern const GradientKernels<float> gradient_kernels_float{backward_pass<float>};
extern const GradientKernels<double> gradient_kernels_double{backward_pass<double>};

}  // namespace deeplab_crf::DEEPLAB_CRF_ISA

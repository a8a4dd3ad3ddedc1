// The fused pass over the points: slice, normalise, compatibility, softmax, next splat. Compiled once per instruction set.
//
//   e_l = U_l + sum_m sum_l' C_m[l, l'] norm_out_m scale_m sum_k b_k values_m[row_k, l'];  Q_l = exp(-e_l) / sum exp(-e)
//   write_m[row_k, l] += b_k norm_in_m Q_l
//
// One thread per call, labels over the lanes, the rows of a point in registers where they fit (up to kMaxPacks packs).
// Per point and kernel: 2 (d+1) rows of L values and 8 (d+1) bytes of weights and rows; per label 4 (d+1) + about 30 flops.
#include "lattice/cpu/rows.h"
#include "mean_field/cpu/kernels.h"

namespace deeplab_crf::DEEPLAB_CRF_ISA {
namespace {

// Below e^kNegligible a probability is 0: products with barycentric weights stay clear of slow denormal numbers. So is that of
// the padding, whose energy is infinite.
template <class T>
constexpr T kNegligible = sizeof(T) == 4 ? T(-69) : T(-650);

template <class T, int W>
DEEPLAB_CRF_INLINE Pack<T, W> exp_or_zero(Pack<T, W> x) {
  using P = Pack<T, W>;
  return {x.v < P::broadcast(kNegligible<T>).v ? P::zero().v : exp_nonpositive(x).v};
}

// V packs of row `p` of an (N, labels) array from label `first` on, padded with `fill`. Nothing behind the row is read: another
// thread may be writing there.
template <class T, int W, int V>
DEEPLAB_CRF_INLINE void load_row(const T* array, int64_t p, int64_t labels, int64_t first, T fill, Pack<T, W> (&row)[V]) {
  const T* source = array + p * labels + first;
  for (int v = 0; v + 1 < V; ++v) row[v] = Pack<T, W>::load(source + v * W);
  const int64_t rest = labels - first - (V - 1) * W;
  const T* last = source + (V - 1) * W;
  row[V - 1] = rest >= W ? Pack<T, W>::load(last) : Pack<T, W>::load_partial(last, rest, fill);
}

template <class T, int W, int V>
DEEPLAB_CRF_INLINE void store_row(T* array, int64_t p, int64_t labels, int64_t first, const Pack<T, W> (&row)[V]) {
  T* target = array + p * labels + first;
  for (int v = 0; v + 1 < V; ++v) row[v].store(target + v * W);
  const int64_t rest = labels - first - (V - 1) * W;
  if (rest >= W) {
    row[V - 1].store(target + (V - 1) * W);
  } else {
    row[V - 1].store_partial(target + (V - 1) * W, rest);
  }
}

// energy += compatibility * message for labels `first`...; `message` is the whole row (needed by a matrix), `part` its packs.
template <class T, int W, int V>
DEEPLAB_CRF_INLINE void add_message(const PassTerm<T>& term, int64_t labels, int64_t stride, int64_t first, T norm, const T* message,
                                    const Pack<T, W> (&part)[V], Pack<T, W> (&energy)[V]) {
  using P = Pack<T, W>;
  if (term.kind == Compatibility::kPotts) {
    const T factor = term.coefficients[0] * norm;
    for (int v = 0; v < V; ++v) energy[v] = energy[v] + part[v] * factor;
  } else if (term.kind == Compatibility::kDiagonal) {
    const T* diagonal = term.coefficients + first;
    for (int v = 0; v < V; ++v) energy[v] = energy[v] + part[v] * P::load(diagonal + v * W) * norm;
  } else {
    for (int64_t l = 0; l < labels; ++l) {
      const T* column = term.coefficients + l * stride + first;
      const T factor = message[l] * norm;
      for (int v = 0; v < V; ++v) energy[v] = energy[v] + P::load(column + v * W) * factor;
    }
  }
}

// q <- (1 - damping) q + damping old; returns max(change, |q - old|).
template <class T, int W, int V>
DEEPLAB_CRF_INLINE Pack<T, W> blend(const Pack<T, W> (&old)[V], T damping, Pack<T, W> (&q)[V], Pack<T, W> change) {
  using P = Pack<T, W>;
  for (int v = 0; v < V; ++v) {
    q[v] = q[v] * (T(1) - damping) + old[v] * damping;
    const P move = q[v] - old[v];
    change = maximum(change, maximum(move, P::zero() - move));
  }
  return change;
}

template <class T, int W>
DEEPLAB_CRF_INLINE T horizontal_maximum(Pack<T, W> x) {
  return -horizontal_minimum(Pack<T, W>::zero() - x);
}

// Rows of V packs: everything of a point in registers.
template <class T, int W, int V>
T pass_in_registers(const PassArguments<T>& a, int64_t begin, int64_t end) {
  using P = Pack<T, W>;
  const T infinity = __builtin_inf();
  P change = P::zero();
  for (int64_t p = begin; p < end; ++p) {
    P q[V];
    if (a.from_q) {
      load_row<T, W, V>(a.q, p, a.num_labels, 0, T(0), q);
    } else {
      P energy[V];
      load_row<T, W, V>(a.unary, p, a.num_labels, 0, infinity, energy);
      for (int m = 0; a.slice && m < a.num_terms; ++m) {
        const PassTerm<T>& term = a.terms[m];
        const int corners = term.lattice->corners();
        P sum[V];
        gather_rows<T, W, V>(term.lattice->rows + p * corners, term.lattice->weights + p * corners, corners, term.read, a.stride, sum);
        T message[V * W];
        if (term.kind == Compatibility::kMatrix) {
          for (int v = 0; v < V; ++v) sum[v].store(message + v * W);
        }
        const T norm = term.norm_out != nullptr ? term.norm_out[p] : T(1);
        add_message<T, W, V>(term, a.num_labels, a.stride, 0, norm, message, sum, energy);
      }
      P least = energy[0];
      for (int v = 1; v < V; ++v) least = minimum(least, energy[v]);
      const P lowest = P::broadcast(horizontal_minimum(least));
      P total = P::zero();
      for (int v = 0; v < V; ++v) {
        q[v] = exp_or_zero<T, W>(lowest - energy[v]);
        total = total + q[v];
      }
      const T inverse = T(1) / horizontal_sum(total);
      for (int v = 0; v < V; ++v) q[v] = q[v] * inverse;
    }
    if (a.watch) {
      P old[V];
      load_row<T, W, V>(a.q, p, a.num_labels, 0, T(0), old);
      change = blend<T, W, V>(old, a.damping, q, change);
    }
    if (a.keep) store_row<T, W, V>(a.q, p, a.num_labels, 0, q);
    for (int m = 0; a.splat && m < a.num_terms; ++m) {
      const PassTerm<T>& term = a.terms[m];
      const int corners = term.lattice->corners();
      P scaled[V];
      const T norm = term.norm_in != nullptr ? term.norm_in[p] : T(1);
      for (int v = 0; v < V; ++v) scaled[v] = q[v] * norm;
      scatter_rows<T, W, V>(term.lattice->rows + p * corners, term.lattice->weights + p * corners, corners, scaled, term.write, a.stride);
    }
  }
  return horizontal_maximum(change);
}

// Many labels: the energies (then Q) of a point wait in scratch, block by block in registers.
template <class T>
void softmax_in_scratch(const PassArguments<T>& a, int64_t p, T* energy, T* message) {
  const T infinity = __builtin_inf();
  for (int64_t l = 0; l < a.stride; ++l) energy[l] = l < a.num_labels ? a.unary[p * a.num_labels + l] : infinity;
  for (int m = 0; a.slice && m < a.num_terms; ++m) {
    const PassTerm<T>& term = a.terms[m];
    const int corners = term.lattice->corners();
    const T norm = term.norm_out != nullptr ? term.norm_out[p] : T(1);
    for_row_blocks<T>(a.stride, [&]<int W, int V>(int64_t first) {
      Pack<T, W> sum[V];
      gather_rows<T, W, V>(term.lattice->rows + p * corners, term.lattice->weights + p * corners, corners, term.read + first, a.stride,
                           sum);
      for (int v = 0; v < V; ++v) sum[v].store(message + first + v * W);
    });
    for_row_blocks<T>(a.stride, [&]<int W, int V>(int64_t first) {
      Pack<T, W> part[V], row[V];
      for (int v = 0; v < V; ++v) {
        part[v] = Pack<T, W>::load(message + first + v * W);
        row[v] = Pack<T, W>::load(energy + first + v * W);
      }
      add_message<T, W, V>(term, a.num_labels, a.stride, first, norm, message, part, row);
      for (int v = 0; v < V; ++v) row[v].store(energy + first + v * W);
    });
  }
  constexpr int W = kWideLanes<T>;
  using P = Pack<T, W>;
  P least = P::load(energy);
  for (int64_t l = W; l < a.stride; l += W) least = minimum(least, P::load(energy + l));
  const P lowest = P::broadcast(horizontal_minimum(least));
  P total = P::zero();
  for (int64_t l = 0; l < a.stride; l += W) {
    const P q = exp_or_zero<T, W>(lowest - P::load(energy + l));
    q.store(energy + l);
    total = total + q;
  }
  const T inverse = T(1) / horizontal_sum(total);
  for (int64_t l = 0; l < a.stride; l += W) (P::load(energy + l) * inverse).store(energy + l);
}

template <class T>
T pass_in_scratch(const PassArguments<T>& a, int64_t begin, int64_t end) {
  T* q = a.scratch;
  T change = 0;
  for (int64_t p = begin; p < end; ++p) {
    if (a.from_q) {
      for (int64_t l = 0; l < a.stride; ++l) q[l] = l < a.num_labels ? a.q[p * a.num_labels + l] : T(0);
    } else {
      softmax_in_scratch(a, p, q, a.scratch + a.stride);
    }
    if (a.watch) {
      for (int64_t l = 0; l < a.num_labels; ++l) {
        const T old = a.q[p * a.num_labels + l];
        q[l] = q[l] * (T(1) - a.damping) + old * a.damping;
        const T move = q[l] > old ? q[l] - old : old - q[l];
        change = move > change ? move : change;
      }
    }
    if (a.keep) {
      for (int64_t l = 0; l < a.num_labels; ++l) a.q[p * a.num_labels + l] = q[l];
    }
    for (int m = 0; a.splat && m < a.num_terms; ++m) {
      const PassTerm<T>& term = a.terms[m];
      const int corners = term.lattice->corners();
      const T norm = term.norm_in != nullptr ? term.norm_in[p] : T(1);
      for_row_blocks<T>(a.stride, [&]<int W, int V>(int64_t first) {
        Pack<T, W> scaled[V];
        for (int v = 0; v < V; ++v) scaled[v] = Pack<T, W>::load(q + first + v * W) * norm;
        scatter_rows<T, W, V>(term.lattice->rows + p * corners, term.lattice->weights + p * corners, corners, scaled, term.write + first,
                              a.stride);
      });
    }
  }
  return change;
}

template <class T>
T pass(const PassArguments<T>& a, int64_t begin, int64_t end) {
  constexpr int W = kWideLanes<T>;
  if (a.stride > kMaxPacks * W) return pass_in_scratch(a, begin, end);
  T change = 0;
  for_row_blocks<T>(a.stride, [&]<int Lanes, int V>(int64_t) { change = pass_in_registers<T, Lanes, V>(a, begin, end); });
  return change;
}

}  // namespace

extern const MeanFieldKernels<float> mean_field_kernels_float{pass<float>};
extern const MeanFieldKernels<double> mean_field_kernels_double{pass<double>};

}  // namespace deeplab_crf::DEEPLAB_CRF_ISA

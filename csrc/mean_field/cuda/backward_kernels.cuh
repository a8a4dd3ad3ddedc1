// The backward pass over the points, fused as the forward one: slice, compatibility, softmax, each transposed. And the gradients of
// compatibilities and barycentric weights, which are sums of products of what the passes have.
//
// A term here is the transposed kernel: values are blur^T splat(norm_out g_{t+1}), its norm is norm_in, and a matrix C has been
// applied to the values as C^T.
#pragma once

#include <cmath>

#include "mean_field/cuda/pass.cuh"

namespace deeplab_crf::cuda {

// A term of the fused pass. With r the slice, C^T applied, without norm:
//   norm_gradient  (B, N) or null: += <r, Q>, scale and compatibility included
//   dots           (B, N) or null: += norm <r, Q>, of a Potts weight, which is left out as is the scale
template <class T>
struct AdjointTerm {
  DevicePassTerm<T> kernel;
  T* norm_gradient;
  T* dots;
};

//   beliefs      (B, N, L) Q_t, or its logarithm if `logarithm`
//   grad_output  (B, N, L), the gradient in what `beliefs` is, in the first pass; else null
//   grad_unary   (B, N, L): = g_t in the first pass, then += g_t
//   grad_start   (B, N, L): the gradient in Q_t goes here, and there is no g_t; or null
//   adjoint      (B N, V) out: g_t by position, padded with zeros; or null
//   changes      (B) bits of the largest entries of g_t, zero before; null: not wanted
template <class T>
struct AdjointArguments {
  PointGrid grid;
  const T* beliefs;
  bool logarithm;
  const T* grad_output;
  T* grad_unary;
  T* grad_start;
  Vector<T>* adjoint;
  T* changes;
  int num_terms;
  AdjointTerm<T> terms[kMaxTerms];
};

template <class T>
__device__ __forceinline__ T sum_of(const Vector<T>& a) {
  T sum = 0;
  for (int i = 0; i < Vector<T>::kLanes; ++i) sum += a.lane[i];
  return sum;
}
template <class T>
__device__ __forceinline__ T dot(const Vector<T>& a, const Vector<T>& b) {
  T sum = 0;
  for (int i = 0; i < Vector<T>::kLanes; ++i) sum += a.lane[i] * b.lane[i];
  return sum;
}

template <class T>
__device__ __forceinline__ T norm_of(const T* norm, int64_t point) {
  return norm != nullptr ? norm[point] : T(1);
}

// Vector v of Q_t of a row; 0 behind the last label.
template <class T>
__device__ __forceinline__ Vector<T> belief_of(const AdjointArguments<T>& a, int64_t row, int64_t v) {
  const int64_t labels = a.grid.num_labels;
  Vector<T> q = load_row(a.beliefs + row * labels, labels, v);
  if (!a.logarithm) return q;
  for (int i = 0; i < Vector<T>::kLanes; ++i) q.lane[i] = v * Vector<T>::kLanes + i < labels ? std::exp(q.lane[i]) : T(0);
  return q;
}

// Vector v of the gradient in Q_t, or log Q_t.
template <class T>
__device__ Vector<T> belief_gradient(const AdjointArguments<T>& a, const PointLane& at, int64_t vectors, int64_t v) {
  const int64_t labels = a.grid.num_labels;
  if (a.grad_output != nullptr) return load_row(a.grad_output + at.row * labels, labels, v);
  Vector<T> gradient{};
  for (int m = 0; m < a.num_terms; ++m) {
    const DevicePassTerm<T>& term = a.terms[m].kernel;
    const T factor = factor_of(term) * norm_of(term.norm, at.point);
    add_scaled(gradient, factor, by_label(term, labels, v, slice_of(term, at.point, vectors, v)));
  }
  return gradient;
}

// r_m = scale C_m^T sum_k b_k values_m[row_k];  dQ = sum_m norm_m r_m, or grad_output;  g = -Q (dQ - <dQ, Q>), of log Q: Q sum dQ -
// dQ. R: vectors a lane, whose Q and dQ stay in registers. R = 0: any number; they are computed each time that they are needed.
// Bytes a point: 4 L of Q in, 8 L of grad_unary in and out, 8 (d+1) of corners a term, 4 (L padded) of g out; (d+1) rows a term
// from the cache. For 500 x 375 x 21 with d = 2 and 5: 47.3 + 13.5 + 18 = 79 MB, 18 us at 4.3 TB/s. Flops a label: 2 (d+1) a term
// and about 10. Repeats bit for bit.
template <class T, int R>
__global__ void __launch_bounds__(kThreads, 1) propagate_gradient(AdjointArguments<T> a) {
  constexpr int kLanes = Vector<T>::kLanes, kKept = R > 0 ? R : 1;
  const int64_t labels = a.grid.num_labels, vectors = vectors_of<T>(labels);
  const PointLane at(a.grid);
  const auto for_own_vectors = [&](const auto& body) { for_vectors<R>(at, a.grid.group, vectors, body); };

  Vector<T> beliefs[kKept]{}, gradients[kKept]{};
  if constexpr (R > 0) for_own_vectors([&](int r, int64_t v) { beliefs[r] = belief_of(a, at.row, v); });
  const auto belief = [&](int r, int64_t v) {
    if constexpr (R > 0) return beliefs[r];
    return belief_of(a, at.row, v);
  };
  const auto gradient = [&](int r, int64_t v) {
    if constexpr (R > 0) return gradients[r];
    return belief_gradient(a, at, vectors, v);
  };

  T total = 0;
  if (a.grad_output != nullptr) {
    for_own_vectors([&](int r, int64_t v) {
      const Vector<T> given = load_row(a.grad_output + at.row * labels, labels, v);
      if constexpr (R > 0) gradients[r] = given;
      total += a.logarithm ? sum_of(given) : dot(given, belief(r, v));
    });
  }
  for (int m = 0; m < a.num_terms; ++m) {
    const AdjointTerm<T>& term = a.terms[m];
    const T factor = factor_of(term.kernel), norm = norm_of(term.kernel.norm, at.point);
    T along = 0;
    for_own_vectors([&](int r, int64_t v) {
      const Vector<T> slice = by_label(term.kernel, labels, v, slice_of(term.kernel, at.point, vectors, v));
      if constexpr (R > 0) add_scaled(gradients[r], factor * norm, slice);
      along += dot(slice, belief(r, v));
    });
    total += factor * norm * along;
    if (term.norm_gradient == nullptr && term.dots == nullptr) continue;
    along = across_group(along, a.grid.group, Sum());
    if (at.lane != 0 || !at.writes) continue;
    if (term.norm_gradient != nullptr) term.norm_gradient[at.point] += factor * along;
    if (term.dots != nullptr) term.dots[at.point] += norm * along;
  }
  total = across_group(total, a.grid.group, Sum());

  T change = 0;
  for_own_vectors([&](int r, int64_t v) {
    Vector<T> g = gradient(r, v);
    if (a.grad_start != nullptr) {
      if (at.writes) store_row(a.grad_start + at.row * labels, labels, v, g);
      return;
    }
    const Vector<T> q = belief(r, v);
    for (int i = 0; i < kLanes; ++i) {
      g.lane[i] = a.logarithm ? q.lane[i] * total - g.lane[i] : q.lane[i] * (total - g.lane[i]);
      const T size = std::fabs(g.lane[i]);
      change = size > change ? size : change;
    }
    if (!at.writes) return;
    if (a.adjoint != nullptr) a.adjoint[at.point * vectors + v] = g;
    if (a.grad_output == nullptr) add_scaled(g, T(1), load_row(a.grad_unary + at.row * labels, labels, v));
    store_row(a.grad_unary + at.row * labels, labels, v, g);
  });
  if (a.changes == nullptr) return;
  change = across_group(change, a.grid.group, Largest());
  if (at.lane == 0 && at.writes) raise_to(a.changes + at.image, change);
}

// Q by position, padded, from rows.
//   beliefs  (B, N, L)
//   out      (B N, V)
// A point and vector a thread. Bytes a point: 4 L in, 4 (L padded) out.
template <class T>
__global__ void __launch_bounds__(kThreads) gather_beliefs(PointGrid grid, const T* beliefs, Vector<T>* out) {
  const int64_t vectors = vectors_of<T>(grid.num_labels), thread = thread_number(), point = thread / vectors;
  if (point >= grid.points) return;
  const int64_t image = point / grid.num_points, row = PointLane::row_of(grid, image, point - image * grid.num_points);
  out[thread] = load_row(beliefs + row * grid.num_labels, grid.num_labels, thread - point * vectors);
}

// What the weights of the splat of norm_in Q_t and of the slice of the messages get, and norm_out.
//   term      as in the fused pass; values null: the splat's part is not wanted
//   messages  (capacity, V) blur splat(norm_in Q_{t-1}), a matrix applied; or null: the slice's part is not wanted
//   norm_out  (B, N) or null
//   beliefs   (B, N, L) Q_t
//   adjoint   (B N, V) g_t by position
template <class T>
struct CornerArguments {
  PointGrid grid;
  DevicePassTerm<T> term;
  const Vector<T>* messages;
  const T* norm_out;
  const T* beliefs;
  const Vector<T>* adjoint;
  T* weight_gradient;
  T* norm_out_gradient;
};

// With x = scale C Q_t and y = scale C^T g_t:
//   weight_gradient[p, k] += norm_in <x, values[row_k]> + norm_out <y, messages[row_k]>
//   norm_out_gradient[p]  += sum_k b_k <y, messages[row_k]>
// R = 1: a vector a lane, read once; R = 0: any number, read for each corner. Bytes a point: 4 L + 4 (L padded) of Q and g in, 16
// (d+1) of corners and gradients; 2 (d+1) rows from the cache; 4 (d+1) flops a label. Repeats bit for bit.
template <class T, int R>
__global__ void __launch_bounds__(kThreads) add_corner_gradients(CornerArguments<T> a) {
  const int64_t labels = a.grid.num_labels, vectors = vectors_of<T>(labels);
  const int group = a.grid.group, corners = a.term.corners;
  const PointLane at(a.grid);
  const auto weighted_belief = [&](int64_t v) {
    return by_label(a.term, labels, v, load_row(a.beliefs + at.row * labels, labels, v));
  };
  const auto weighted_adjoint = [&](int64_t v) { return by_label(a.term, labels, v, a.adjoint[at.point * vectors + v]); };
  Vector<T> belief{}, adjoint{};
  if constexpr (R > 0) {
    if (at.lane < vectors && a.term.values != nullptr) belief = weighted_belief(at.lane);
    if (at.lane < vectors && a.messages != nullptr) adjoint = weighted_adjoint(at.lane);
  }
  const T factor = factor_of(a.term);
  const T in = factor * norm_of(a.term.norm, at.point), out = factor * norm_of(a.norm_out, at.point);
  T along = 0;
  for (int k = 0; k < corners; ++k) {
    const int64_t corner = at.point * corners + k, row = a.term.rows[corner] * vectors;
    T splat = 0, slice = 0;
    for_vectors<R>(at, group, vectors, [&](int, int64_t v) {
      if constexpr (R == 0) {
        if (a.term.values != nullptr) belief = weighted_belief(v);
        if (a.messages != nullptr) adjoint = weighted_adjoint(v);
      }
      if (a.term.values != nullptr) splat += dot(belief, a.term.values[row + v]);
      if (a.messages != nullptr) slice += dot(adjoint, a.messages[row + v]);
    });
    splat = across_group(splat, group, Sum());
    slice = across_group(slice, group, Sum());
    along += a.term.weights[corner] * slice;
    if (at.lane == 0 && at.writes && a.weight_gradient != nullptr) a.weight_gradient[corner] += in * splat + out * slice;
  }
  if (at.lane == 0 && at.writes && a.norm_out_gradient != nullptr) a.norm_out_gradient[at.point] += factor * along;
}

// Sums over the points of an image are taken by chunks of them, side by side, in double; then over the chunks in their order. How
// an image is cut depends on N and on the size of the sum alone.
struct Chunks {
  int64_t count;  // of an image
  int64_t points;

  static constexpr int64_t kFewestPoints = 256, kMostSums = int64_t{1} << 20;
  Chunks(int64_t num_points, int64_t size) {
    const int64_t room = kMostSums / size > 0 ? kMostSums / size : 1;
    count = (num_points + kFewestPoints - 1) / kFewestPoints;
    count = count < room ? count : room;
    points = (num_points + count - 1) / count;
  }
};

// The points of a block: a chunk of an image, `parts` blocks a chunk.
struct BlockChunk {
  int64_t part;
  int64_t chunk;  // over all images
  int64_t image;
  int64_t begin;  // positions in the image
  int64_t end;

  __device__ __forceinline__ BlockChunk(const Chunks& chunks, int64_t parts, int64_t num_points) {
    chunk = blockIdx.x / parts;
    part = blockIdx.x - chunk * parts;
    image = chunk / chunks.count;
    begin = (chunk - image * chunks.count) * chunks.points;
    end = begin + chunks.points < num_points ? begin + chunks.points : num_points;
  }
};

// Points, labels and vectors of labels that a block of outer products has at once.
constexpr int kTilePoints = 32, kTileLabels = 32, kTileVectors = 8;
static_assert(kTileLabels * kTileVectors == kThreads);

//   term     as in the fused pass, but for the values: without a matrix
//   beliefs  (B, N, L) Q_t
//   sums     (B, chunks, L), or (B, chunks, L, L) for a matrix
template <class T>
struct ProductArguments {
  PointGrid grid;
  Chunks chunks;
  DevicePassTerm<T> term;
  const T* beliefs;
  double* sums;

  __device__ __forceinline__ Vector<T> slice_at(const BlockChunk& at, int64_t position, int64_t vectors, int64_t v) const {
    const int64_t point = at.image * grid.num_points + position;
    Vector<T> slice = slice_of(term, point, vectors, v);
    const T norm = norm_of(term.norm, point);
    for (int i = 0; i < Vector<T>::kLanes; ++i) slice.lane[i] *= norm;
    return slice;
  }
  __device__ __forceinline__ Vector<T> belief_at(const BlockChunk& at, int64_t position, int64_t v) const {
    return load_row(beliefs + PointLane::row_of(grid, at.image, position) * grid.num_labels, grid.num_labels, v);
  }
};

// sums[l] += sum of norm r_l Q_l over the points of each chunk, r the slice of the values. A block has kTileVectors vectors of a
// chunk, a thread one of them and every 32nd point; these are added in their order. Bytes a point: 4 L of Q in, 8 (d+1) of corners;
// (d+1) rows from the cache; 2 (d+1) + 2 flops a label. Repeats bit for bit.
template <class T>
__global__ void __launch_bounds__(kThreads) add_label_products(ProductArguments<T> a) {
  constexpr int kLanes = Vector<T>::kLanes, kWays = kThreads / kTileVectors, kWidth = kTileVectors * kLanes;
  __shared__ double sums[kWays][kWidth];
  const int64_t labels = a.grid.num_labels, vectors = vectors_of<T>(labels);
  const BlockChunk at(a.chunks, (vectors + kTileVectors - 1) / kTileVectors, a.grid.num_points);
  if (PointLane::is_left_alone(a.grid, at.image)) return;
  const int own = static_cast<int>(threadIdx.x) % kTileVectors, way = static_cast<int>(threadIdx.x) / kTileVectors;
  const int64_t v = at.part * kTileVectors + own;
  double sum[kLanes] = {};
  for (int64_t position = at.begin + way; position < at.end && v < vectors; position += kWays) {
    const Vector<T> slice = a.slice_at(at, position, vectors, v), q = a.belief_at(at, position, v);
    for (int i = 0; i < kLanes; ++i) sum[i] += static_cast<double>(slice.lane[i] * q.lane[i]);
  }
  for (int i = 0; i < kLanes; ++i) sums[way][own * kLanes + i] = sum[i];
  __syncthreads();
  const int64_t label = at.part * kWidth + threadIdx.x;
  if (threadIdx.x >= kWidth || label >= labels) return;
  double total = 0;
  for (int from = 0; from < kWays; ++from) total += sums[from][threadIdx.x];
  a.sums[at.chunk * labels + label] += total;
}

// sums[l, l'] += sum of norm r_l Q_l' over the points of each chunk. A block has a tile of kTileLabels labels l by kTileVectors
// vectors of labels l', a thread one label and one vector; r and Q of kTilePoints points at a time lie in shared memory. Bytes a
// point and tile: 128 of Q, 8 (d+1) of corners; (d+1) times 128 from the cache; 2 L flops a label. Repeats bit for bit.
template <class T>
__global__ void __launch_bounds__(kThreads) add_outer_products(ProductArguments<T> a) {
  constexpr int kLanes = Vector<T>::kLanes, kSliceVectors = kTileLabels / kLanes;
  __shared__ Vector<T> slices[kTilePoints][kSliceVectors], beliefs[kTilePoints][kTileVectors];
  const int64_t labels = a.grid.num_labels, vectors = vectors_of<T>(labels);
  const int64_t across = (vectors + kTileVectors - 1) / kTileVectors, down = (labels + kTileLabels - 1) / kTileLabels;
  const BlockChunk at(a.chunks, across * down, a.grid.num_points);
  if (PointLane::is_left_alone(a.grid, at.image)) return;
  const int64_t first_slice = at.part / across * kSliceVectors, first_belief = at.part % across * kTileVectors;
  const int own_label = static_cast<int>(threadIdx.x) / kTileVectors, own_vector = static_cast<int>(threadIdx.x) % kTileVectors;
  double sum[kLanes] = {};
  for (int64_t first = at.begin; first < at.end; first += kTilePoints) {
    __syncthreads();
    for (int i = static_cast<int>(threadIdx.x); i < kTilePoints * kSliceVectors; i += kThreads) {
      const int p = i / kSliceVectors, s = i % kSliceVectors;
      const bool there = first + p < at.end && first_slice + s < vectors;
      slices[p][s] = there ? a.slice_at(at, first + p, vectors, first_slice + s) : Vector<T>{};
    }
    for (int i = static_cast<int>(threadIdx.x); i < kTilePoints * kTileVectors; i += kThreads) {
      const int p = i / kTileVectors, s = i % kTileVectors;
      const bool there = first + p < at.end && first_belief + s < vectors;
      beliefs[p][s] = there ? a.belief_at(at, first + p, first_belief + s) : Vector<T>{};
    }
    __syncthreads();
    Vector<T> part{};
    for (int p = 0; p < kTilePoints; ++p) {
      add_scaled(part, slices[p][own_label / kLanes].lane[own_label % kLanes], beliefs[p][own_vector]);
    }
    for (int i = 0; i < kLanes; ++i) sum[i] += static_cast<double>(part.lane[i]);
  }
  const int64_t label = first_slice * kLanes + own_label, column = (first_belief + own_vector) * kLanes;
  for (int i = 0; i < kLanes; ++i) {
    if (label < labels && column + i < labels) a.sums[(at.chunk * labels + label) * labels + column + i] += sum[i];
  }
}

// sums[chunk] = sum of the dots of the points of each chunk. A block a chunk; its threads' sums are added in an order of their own.
template <class T>
__global__ void __launch_bounds__(kThreads) sum_dots(const T* dots, int64_t num_points, Chunks chunks, double* sums) {
  __shared__ double of_warp[kThreads / kWarp];
  const BlockChunk at(chunks, 1, num_points);
  double sum = 0;
  for (int64_t position = at.begin + threadIdx.x; position < at.end; position += kThreads) {
    sum += static_cast<double>(dots[at.image * num_points + position]);
  }
  sum = across_group(sum, kWarp, Sum());
  if (threadIdx.x % kWarp == 0) of_warp[threadIdx.x / kWarp] = sum;
  __syncthreads();
  if (threadIdx.x != 0) return;
  for (int warp = 1; warp < static_cast<int>(kThreads) / kWarp; ++warp) sum += of_warp[warp];
  sums[at.chunk] = sum;
}

// Lanes that add the chunks of an element: as many as there are chunks, up to a warp.
inline int lanes_for(int64_t chunks) {
  int lanes = 1;
  while (lanes < kWarp && lanes < chunks) lanes *= 2;
  return lanes;
}

// out[e] = factor * sum over the images, in their order, of the sums of their chunks.
//   sums  (B, chunks, size)
//   out   (size)
// `lanes` lanes of a warp an element, which take the chunks in turn. Bytes: the sums, once. Repeats bit for bit.
template <class T>
__global__ void __launch_bounds__(kThreads)
    add_chunks(const double* sums, int64_t batch, int64_t chunks, int64_t size, int lanes, double factor, T* out) {
  const int64_t wanted = thread_number() / lanes, element = wanted < size ? wanted : size - 1;
  const int lane = static_cast<int>(threadIdx.x) % lanes;
  double total = 0;
  for (int64_t image = 0; image < batch; ++image) {
    double sum = 0;
    for (int64_t chunk = lane; chunk < chunks; chunk += lanes) sum += sums[(image * chunks + chunk) * size + element];
    total += factor * across_group(sum, lanes, Sum());
  }
  if (lane == 0 && wanted < size) out[element] = static_cast<T>(total);
}

}  // namespace deeplab_crf::cuda

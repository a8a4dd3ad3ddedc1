// Packs of W values that the compiler keeps in vector registers (GCC and Clang vector extensions, so one source serves every
// instruction set). For kernel sources only, which are compiled once per set with DEEPLAB_CRF_ISA naming the namespace.
//
// Everything here lives in that namespace and is inlined: a function that the linker could share between sets might be taken
// from the AVX-512 objects on a machine that has none.
#pragma once

#include <cstdint>
#include <utility>
#if defined(__AVX2__)
#include <immintrin.h>
#endif

#ifndef DEEPLAB_CRF_ISA
#error "DEEPLAB_CRF_ISA must name the instruction set's namespace (baseline, avx2 or avx512)"
#endif

#define DEEPLAB_CRF_INLINE inline __attribute__((always_inline))
// For lambdas: inlined, their captures are values in registers. Called, they would be memory that every stored row may overlap.
#define DEEPLAB_CRF_INLINE_LAMBDA __attribute__((always_inline))

namespace deeplab_crf::DEEPLAB_CRF_ISA {

template <class T>
struct IntegerOf;
template <>
struct IntegerOf<float> {
  using type = int32_t;
};
template <>
struct IntegerOf<double> {
  using type = int64_t;
};

template <class T, int W>
struct VectorOf {
  typedef T type __attribute__((vector_size(W * sizeof(T))));
  // What memory holds: any alignment of a single element.
  typedef T unaligned __attribute__((vector_size(W * sizeof(T)), aligned(sizeof(T)), may_alias));
};
template <class T>
struct VectorOf<T, 1> {
  using type = T;
  using unaligned = T;
};

// Lanes of the pack that rows are made of, of the narrow pack for rows of few channels, and of the widest pack. Rows stay with 256
// bits where registers have 512: rows of 21 labels then are 96 bytes and no load straddles a cache line. The splat of a bilateral
// kernel, alone, took 8.2 ns a pixel so and 10.0 with 512-bit packs on rows padded to 128 bytes.
#if defined(__AVX512F__)
template <class T>
constexpr int kLongLanes = 64 / sizeof(T);
#elif defined(__AVX2__)
template <class T>
constexpr int kLongLanes = 32 / sizeof(T);
#else
template <class T>
constexpr int kLongLanes = 16 / sizeof(T);
#endif
#if defined(__AVX2__)
template <class T>
constexpr int kWideLanes = 32 / sizeof(T);
#else
template <class T>
constexpr int kWideLanes = 16 / sizeof(T);
#endif
template <class T>
constexpr int kNarrowLanes = 16 / sizeof(T);

#if defined(__AVX2__)
// All bits set in the first `count` of the 32 / sizeof(T) lanes.
template <class T>
DEEPLAB_CRF_INLINE __m256i lane_mask(int64_t count) {
  if constexpr (sizeof(T) == 4) {
    return _mm256_cmpgt_epi32(_mm256_set1_epi32(static_cast<int32_t>(count)), _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7));
  } else {
    return _mm256_cmpgt_epi64(_mm256_set1_epi64x(count), _mm256_setr_epi64x(0, 1, 2, 3));
  }
}
#endif

template <class T, int W>
struct Pack {
  using Vector = typename VectorOf<T, W>::type;
  using Unaligned = typename VectorOf<T, W>::unaligned;
  static constexpr int kLanes = W;
  Vector v;

  static DEEPLAB_CRF_INLINE Pack load(const T* p) { return {*reinterpret_cast<const Unaligned*>(p)}; }
  DEEPLAB_CRF_INLINE void store(T* p) const { *reinterpret_cast<Unaligned*>(p) = v; }
  static DEEPLAB_CRF_INLINE Pack broadcast(T x) { return {Vector{} + x}; }
  static DEEPLAB_CRF_INLINE Pack zero() { return {Vector{}}; }

  // The first `count` lanes (0 < count <= W); the others are zero when loading and left alone when storing.
  static DEEPLAB_CRF_INLINE Pack load_partial(const T* p, int64_t count) {
#if defined(__AVX512F__)
    if constexpr (W == 16) return {Vector(_mm512_maskz_loadu_ps(static_cast<__mmask16>((1u << count) - 1), p))};
#endif
#if defined(__AVX2__)
    if constexpr (W * sizeof(T) == 32) {
      const __m256i mask = lane_mask<T>(count);
      if constexpr (sizeof(T) == 4) {
        return {Vector(_mm256_maskload_ps(p, mask))};
      } else {
        return {Vector(_mm256_maskload_pd(p, mask))};
      }
    }
#endif
    T lanes[W] = {};
    for (int i = 0; i < W; ++i) {
      if (i < count) lanes[i] = p[i];
    }
    return load(lanes);
  }
  DEEPLAB_CRF_INLINE void store_partial(T* p, int64_t count) const {
#if defined(__AVX512F__)
    if constexpr (W == 16) return _mm512_mask_storeu_ps(p, static_cast<__mmask16>((1u << count) - 1), __m512(v));
#endif
#if defined(__AVX2__)
    if constexpr (W * sizeof(T) == 32) {
      const __m256i mask = lane_mask<T>(count);
      if constexpr (sizeof(T) == 4) {
        _mm256_maskstore_ps(p, mask, __m256(v));
      } else {
        _mm256_maskstore_pd(p, mask, __m256d(v));
      }
      return;
    }
#endif
    T lanes[W];
    store(lanes);
    for (int i = 0; i < W; ++i) {
      if (i < count) p[i] = lanes[i];
    }
  }
};

template <class T, int W>
DEEPLAB_CRF_INLINE Pack<T, W> operator+(Pack<T, W> a, Pack<T, W> b) {
  return {a.v + b.v};
}
template <class T, int W>
DEEPLAB_CRF_INLINE Pack<T, W> operator-(Pack<T, W> a, Pack<T, W> b) {
  return {a.v - b.v};
}
template <class T, int W>
DEEPLAB_CRF_INLINE Pack<T, W> operator*(Pack<T, W> a, Pack<T, W> b) {
  return {a.v * b.v};
}
template <class T, int W>
DEEPLAB_CRF_INLINE Pack<T, W> operator/(Pack<T, W> a, Pack<T, W> b) {
  return {a.v / b.v};
}
template <class T, int W>
DEEPLAB_CRF_INLINE Pack<T, W> operator+(Pack<T, W> a, T b) {
  return {a.v + b};
}
template <class T, int W>
DEEPLAB_CRF_INLINE Pack<T, W> operator*(Pack<T, W> a, T b) {
  return {a.v * b};
}
template <class T, int W>
DEEPLAB_CRF_INLINE Pack<T, W> operator-(T a, Pack<T, W> b) {
  return {a - b.v};
}

template <class T, int W>
DEEPLAB_CRF_INLINE Pack<T, W> minimum(Pack<T, W> a, Pack<T, W> b) {
  return {a.v < b.v ? a.v : b.v};
}
template <class T, int W>
DEEPLAB_CRF_INLINE Pack<T, W> maximum(Pack<T, W> a, Pack<T, W> b) {
  return {a.v > b.v ? a.v : b.v};
}

// Found by geometry::enclosing_simplex through the pack's namespace.
template <class T, int W>
DEEPLAB_CRF_INLINE Pack<T, W> round_half_even(Pack<T, W> x) {
  constexpr T shift = sizeof(T) == 4 ? T(12582912.0) : T(6755399441055744.0);
  return {(x.v + shift) - shift};
}
template <class T, int W>
DEEPLAB_CRF_INLINE Pack<T, W> one_if_less(Pack<T, W> a, Pack<T, W> b) {
  return {a.v < b.v ? Pack<T, W>::broadcast(T(1)).v : typename Pack<T, W>::Vector{}};
}
template <class T, int W>
DEEPLAB_CRF_INLINE Pack<T, W> value_if_equal(Pack<T, W> a, Pack<T, W> b, Pack<T, W> value) {
  return {a.v == b.v ? value.v : typename Pack<T, W>::Vector{}};
}

template <class T, int W>
DEEPLAB_CRF_INLINE T first_lane(Pack<T, W> x) {
  if constexpr (W == 1) {
    return x.v;
  } else {
    return x.v[0];
  }
}

// Lane i of the result is lane i ^ Distance of x.
template <int Distance, class T, int W, int... Lane>
DEEPLAB_CRF_INLINE Pack<T, W> swap_lanes(Pack<T, W> x, std::integer_sequence<int, Lane...>) {
#if defined(__clang__) || __GNUC__ >= 12
  return {__builtin_shufflevector(x.v, x.v, (Lane ^ Distance)...)};
#else
  using Mask = typename VectorOf<typename IntegerOf<T>::type, W>::type;
  return {__builtin_shuffle(x.v, Mask{(Lane ^ Distance)...})};
#endif
}

// Combines all lanes by `combine(a, b)`; every lane of the result holds the outcome.
template <int Distance, class T, int W, class Combine>
DEEPLAB_CRF_INLINE Pack<T, W> across_lanes(Pack<T, W> x, const Combine& combine) {
  if constexpr (Distance == 0) {
    return x;
  } else {
    return across_lanes<Distance / 2>(combine(x, swap_lanes<Distance>(x, std::make_integer_sequence<int, W>{})), combine);
  }
}

struct Sum {
  template <class P>
  DEEPLAB_CRF_INLINE P operator()(P a, P b) const {
    return a + b;
  }
};
struct Minimum {
  template <class P>
  DEEPLAB_CRF_INLINE P operator()(P a, P b) const {
    return minimum(a, b);
  }
};

// exp(x) for x <= 0, and 0 below e^-69 (float) or e^-650 (double), so that products with barycentric weights stay clear of slow
// denormal numbers. Float: reduction by ln 2, then the minimax polynomial of Cephes' expf; the error is below 1e-7 of exp(0) and
// 3e-6 of exp(x): the reduction takes ln 2 as one float, since what it loses for large -x is lost among values of 1. x may be
// -inf.
template <int W>
DEEPLAB_CRF_INLINE Pack<float, W> exp_nonpositive(Pack<float, W> x) {
  using P = Pack<float, W>;
  // Unsigned: lanes below the cut overflow, and are dropped.
  using I = typename VectorOf<uint32_t, W>::type;
  // The lowest mantissa bits of `shifted` are the integer n = round(x / ln 2).
  const P shifted = x * 1.44269504088896341f + 12582912.0f;
  const P n = shifted + -12582912.0f;
  const P r = x - n * 0.693147181f;
  P poly = r * 1.9875691500e-4f + 1.3981999507e-3f;
  poly = poly * r + 8.3334519073e-3f;
  poly = poly * r + 4.1665795894e-2f;
  poly = poly * r + 1.6666665459e-1f;
  poly = poly * r + 5.0000001201e-1f;
  poly = (poly * r + 1.0f) * r + 1.0f;
  const I scaled = __builtin_bit_cast(I, poly.v) + (__builtin_bit_cast(I, shifted.v) << 23);
  return {x.v < P::broadcast(-69.0f).v ? P::zero().v : __builtin_bit_cast(typename P::Vector, scaled)};
}
template <int W>
DEEPLAB_CRF_INLINE Pack<double, W> exp_nonpositive(Pack<double, W> x) {
  double lanes[W];
  x.store(lanes);
  for (int i = 0; i < W; ++i) lanes[i] = lanes[i] < -650.0 ? 0.0 : __builtin_exp(lanes[i]);
  return Pack<double, W>::load(lanes);
}

// log(x) for positive normal x. Float: the polynomial of Cephes' logf on [sqrt(1/2), sqrt(2)); error below 1e-7 of max(1, |log x|).
template <int W>
DEEPLAB_CRF_INLINE Pack<float, W> natural_log(Pack<float, W> x) {
  using P = Pack<float, W>;
  using I = typename VectorOf<int32_t, W>::type;
  const I bits = __builtin_bit_cast(I, x.v);
  // x = 2^e m with m in [1/2, 1); below sqrt(1/2), m doubles.
  const P m{__builtin_bit_cast(typename P::Vector, (bits & 0x007fffff) | 0x3f000000)};
  const I small = m.v < P::broadcast(0.707106781f).v;
  const P e{__builtin_convertvector((bits >> 23) - 126 + small, typename P::Vector)};
  const P r = P{small ? (m.v + m.v) : m.v} + -1.0f;
  P poly = r * 7.0376836292e-2f + -1.1514610310e-1f;
  poly = poly * r + 1.1676998740e-1f;
  poly = poly * r + -1.2420140846e-1f;
  poly = poly * r + 1.4249322787e-1f;
  poly = poly * r + -1.6668057665e-1f;
  poly = poly * r + 2.0000714765e-1f;
  poly = poly * r + -2.4999993993e-1f;
  poly = poly * r + 3.3333331174e-1f;
  const P square = r * r;
  return (poly * r * square - e * 2.12194440e-4f - square * 0.5f) + r + e * 0.693359375f;
}
template <int W>
DEEPLAB_CRF_INLINE Pack<double, W> natural_log(Pack<double, W> x) {
  double lanes[W];
  x.store(lanes);
  for (int i = 0; i < W; ++i) lanes[i] = __builtin_log(lanes[i]);
  return Pack<double, W>::load(lanes);
}

}  // namespace deeplab_crf::DEEPLAB_CRF_ISA

// Packs of W values that the compiler keeps in vector registers (GCC and Clang vector extensions, so one source serves every
// instruction set). For kernel sources only, which are compiled once per set with DEEPLAB_CRF_ISA naming the namespace.
//
// Everything here lives in that namespace and is inlined: a function that the linker could share between sets might be taken
// from the AVX-512 objects on a machine that has none.
#pragma once

#include <cstdint>

#ifndef DEEPLAB_CRF_ISA
#error "DEEPLAB_CRF_ISA must name the instruction set's namespace (baseline, avx2 or avx512)"
#endif

#define DEEPLAB_CRF_INLINE inline __attribute__((always_inline))

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

// Lanes of the widest pack that a row is made of, and of the narrow pack for rows of few channels.
#if defined(__AVX2__)
template <class T>
constexpr int kWideLanes = 32 / sizeof(T);
#else
template <class T>
constexpr int kWideLanes = 16 / sizeof(T);
#endif
template <class T>
constexpr int kNarrowLanes = 16 / sizeof(T);

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

  // The first `count` lanes; the others are `fill` when loading and left alone when storing.
  static DEEPLAB_CRF_INLINE Pack load_partial(const T* p, int64_t count, T fill) {
    T lanes[W];
    for (int i = 0; i < W; ++i) lanes[i] = i < count ? p[i] : fill;
    return load(lanes);
  }
  DEEPLAB_CRF_INLINE void store_partial(T* p, int64_t count) const {
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
struct HalfPacks {
  Pack<T, W / 2> low, high;
};

// Over the lanes of a pack, by halves.
template <class T, int W>
DEEPLAB_CRF_INLINE T horizontal_sum(Pack<T, W> x) {
  if constexpr (W == 1) {
    return x.v;
  } else {
    const auto halves = __builtin_bit_cast(HalfPacks<T, W>, x);
    return horizontal_sum(halves.low + halves.high);
  }
}
template <class T, int W>
DEEPLAB_CRF_INLINE T horizontal_minimum(Pack<T, W> x) {
  if constexpr (W == 1) {
    return x.v;
  } else {
    const auto halves = __builtin_bit_cast(HalfPacks<T, W>, x);
    return horizontal_minimum(minimum(halves.low, halves.high));
  }
}

// exp(x) for x <= 0, below -87 flushed to exp(-87): Cody-Waite reduction by ln 2 in two parts, then the degree-5 minimax
// polynomial of Cephes' expf; relative error below 2e-7.
template <int W>
DEEPLAB_CRF_INLINE Pack<float, W> exp_nonpositive(Pack<float, W> x) {
  using P = Pack<float, W>;
  x = maximum(x, P::broadcast(-87.0f));
  const P n = round_half_even(x * 1.44269504088896341f);
  const P r = (x - n * 0.693359375f) - n * -2.12194440e-4f;
  P poly = r * 1.9875691500e-4f + 1.3981999507e-3f;
  poly = poly * r + 8.3334519073e-3f;
  poly = poly * r + 4.1665795894e-2f;
  poly = poly * r + 1.6666665459e-1f;
  poly = poly * r + 5.0000001201e-1f;
  poly = poly * (r * r) + r + 1.0f;
  using I = typename VectorOf<int32_t, W>::type;
  I exponent;
  if constexpr (W == 1) {
    exponent = static_cast<int32_t>(n.v);
  } else {
    exponent = __builtin_convertvector(n.v, I);
  }
  const I bits = (exponent + 127) << 23;
  return poly * P{__builtin_bit_cast(typename P::Vector, bits)};
}
template <int W>
DEEPLAB_CRF_INLINE Pack<double, W> exp_nonpositive(Pack<double, W> x) {
  double lanes[W];
  x.store(lanes);
  for (int i = 0; i < W; ++i) lanes[i] = __builtin_exp(lanes[i]);
  return Pack<double, W>::load(lanes);
}

}  // namespace deeplab_crf::DEEPLAB_CRF_ISA

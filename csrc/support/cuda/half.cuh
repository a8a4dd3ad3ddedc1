// Conversions of the numbers of half.h: exact to float, and rounded to nearest, ties to even, from it. NaN stays NaN. On a device
// one instruction each; elsewhere, and for bfloat16 before sm_80, integer arithmetic with the same results.
#pragma once

#include <cstring>
#include <type_traits>

#include "support/cuda/half.h"
#include "support/cuda/launch.h"

namespace deeplab_crf::cuda {

__host__ __device__ inline uint32_t bits_of(float value) {
  uint32_t bits;
  memcpy(&bits, &value, sizeof bits);
  return bits;
}
__host__ __device__ inline float float_of_bits(uint32_t bits) {
  float value;
  memcpy(&value, &bits, sizeof value);
  return value;
}

__host__ __device__ inline float widened(Float16 value) {
#ifdef __CUDA_ARCH__
  float result;
  asm("cvt.f32.f16 %0, %1;" : "=f"(result) : "h"(value.bits));
  return result;
#else
  // Exponent and mantissa moved to a float's, whose exponents count from another zero: 2^112 apart. Subnormals come out exactly.
  const uint32_t magnitude = (value.bits & 0x7fffu) << 13, sign = (value.bits & 0x8000u) << 16;
  if (magnitude >= 0x7c00u << 13) return float_of_bits(sign | magnitude | 0x7f800000u);
  return float_of_bits(sign | bits_of(float_of_bits(magnitude) * 0x1p112f));
#endif
}

__host__ __device__ inline float widened(BFloat16 value) { return float_of_bits(static_cast<uint32_t>(value.bits) << 16); }

__host__ __device__ inline void narrow(float value, Float16& result) {
#ifdef __CUDA_ARCH__
  asm("cvt.rn.f16.f32 %0, %1;" : "=h"(result.bits) : "f"(value));
#else
  const uint32_t bits = bits_of(value), magnitude = bits & 0x7fffffffu, sign = bits >> 16 & 0x8000u;
  uint32_t rounded;
  if (magnitude > 0x7f800000u) {
    rounded = 0x7e00u;
  } else if (magnitude >= bits_of(65536.0f)) {
    rounded = 0x7c00u;
  } else if (magnitude < bits_of(0x1p-14f)) {
    // Subnormal: multiples of 2^-24, to which a sum with 1/2 is rounded.
    rounded = bits_of(float_of_bits(magnitude) + 0.5f) - bits_of(0.5f);
  } else {
    // May carry into the exponent, up to infinity.
    rounded = (magnitude - (112u << 23) + 0xfffu + (magnitude >> 13 & 1u)) >> 13;
  }
  result.bits = static_cast<uint16_t>(sign | rounded);
#endif
}

__host__ __device__ inline void narrow(float value, BFloat16& result) {
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 800
  asm("cvt.rn.bf16.f32 %0, %1;" : "=h"(result.bits) : "f"(value));
#else
  const uint32_t bits = bits_of(value), rounded = (bits + 0x7fffu + (bits >> 16 & 1u)) >> 16;
  result.bits = static_cast<uint16_t>((bits & 0x7fffffffu) > 0x7f800000u ? 0x7fc0u : rounded);
#endif
}

// What elements E of an array are computed in.
template <class E>
using Wide = std::conditional_t<sizeof(E) == 2, float, E>;

__device__ inline float widened(float value) { return value; }
__device__ inline double widened(double value) { return value; }
__device__ inline void narrow(float value, float& result) { result = value; }
__device__ inline void narrow(double value, double& result) { result = value; }

}  // namespace deeplab_crf::cuda

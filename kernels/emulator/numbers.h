// Number formats, and the approximations of the special-function unit.
#pragma once

#include <cmath>

#include "base.h"

// The bits of an IEEE half and of a bfloat16.
struct f16 {
  u16 bits;
};
struct bf16 {
  u16 bits;
};

namespace emulator __attribute__((visibility("hidden"))) {

inline float as_float(u32 bits) {
  float x;
  memcpy(&x, &bits, 4);
  return x;
}
inline u32 as_bits(float x) {
  u32 bits;
  memcpy(&bits, &x, 4);
  return bits;
}

// ---- f16 and bf16

// What a conversion to f16 or bf16 makes of any NaN.
constexpr u16 NAN16 = 0x7fff;

// Exponent and significand of a half, moved to their place in a float, are the value over 2^112: one product sets the
// bias right, subnormals included. Infinities and NaNs come out at 2^16 and above and get their exponent back.
inline float f16_to_float(u16 half) {
  u32 magnitude = as_bits(as_float((u32)(half & 0x7fff) << 13) * 0x1p112f);
  if (magnitude >= as_bits(0x1p16f)) magnitude |= 0x7f800000;
  return as_float(magnitude | (u32)(half & 0x8000) << 16);
}

inline u16 float_to_f16(float x) {
  u32 bits = as_bits(x), sign = bits >> 16 & 0x8000, magnitude = bits & 0x7fffffff;
  if (magnitude > 0x7f800000) return NAN16;
  if (magnitude >= as_bits(65520.f)) return (u16)(sign | 0x7c00);  // halfway to 2^16, and above
  if (magnitude < as_bits(0x1p-14f)) {
    // Subnormal: with 2^-24 as the last place, a sum with 0.5 (whose last place that is) is the rounding.
    u32 rounded = as_bits(as_float(magnitude) + 0.5f) - as_bits(0.5f);
    return (u16)(sign | rounded);
  }
  u32 tie_to_even = magnitude >> 13 & 1;
  return (u16)(sign | ((magnitude - (112u << 23) + 0xfff + tie_to_even) >> 13));
}

inline float bf16_to_float(u16 bits) { return as_float((u32)bits << 16); }

inline u16 float_to_bf16(float x) {
  u32 bits = as_bits(x);
  if ((bits & 0x7fffffff) > 0x7f800000) return NAN16;
  return (u16)((bits + 0x7fff + (bits >> 16 & 1)) >> 16);
}

// Eight at a time.
typedef float Float8 __attribute__((vector_size(32)));
typedef u32 Bits8 __attribute__((vector_size(32)));

template <class T>
inline void to_floats(float* values, const u16* halves);

template <>
inline void to_floats<f16>(float* values, const u16* halves) {
  Bits8 bits;
  for (u32 i = 0; i < 8; i++) bits[i] = halves[i];
  Bits8 shifted = (bits & 0x7fff) << 13;
  Float8 scaled = (Float8)shifted * 0x1p112f;
  Bits8 special = (Bits8)(scaled >= 0x1p16f) & 0x7f800000;
  Bits8 result = (Bits8)scaled | special | (bits & 0x8000) << 16;
  memcpy(values, &result, 32);
}

template <>
inline void to_floats<bf16>(float* values, const u16* halves) {
  for (u32 i = 0; i < 8; i++) values[i] = bf16_to_float(halves[i]);
}

// ---- approximations

// Where the hardware promises an approximation, the exact result moves by one unit in the last place, up or down or
// not at all: by a hash of the argument, so that the function stays a function. Nothing can come to rely on more than
// is promised.
inline float perturb(float exact, float argument) {
  u32 bits = as_bits(exact), exponent = bits >> 23 & 0xff;
  if (exponent == 0) return as_float(bits & 0x80000000);  // subnormals are flushed
  if (exponent >= 0xfe) return exact;
  u32 hash = as_bits(argument) * 0x9e3779b1u;
  u32 moved = bits + (hash >> 16) % 3 - 1;
  return (moved >> 23 & 0xff) == 0 ? exact : as_float(moved);
}

inline bool is_subnormal_or_zero(float x) { return std::fabs(x) < 0x1p-126f; }

inline float approximate_exp2(float x) {
  if (is_subnormal_or_zero(x)) return 1.f;
  return perturb((float)std::exp2((double)x), x);
}
inline float approximate_rcp(float x) {
  if (is_subnormal_or_zero(x)) return std::copysign(INFINITY, x);
  return perturb((float)(1 / (double)x), x);
}
inline float approximate_rsqrt(float x) {
  if (is_subnormal_or_zero(x)) return std::copysign(INFINITY, x);
  return perturb((float)(1 / std::sqrt((double)x)), x);
}

}  // namespace emulator

// SIMD vectors of LANES 32-bit elements, as wide as the processor's registers, by GCC's vector extension: the same
// source for AVX-512, AVX2, NEON or none. Loads and stores of float32, bfloat16 and float16, rounding, sums,
// exponentials.
#pragma once
#include <cstdint>
#include <cstring>

#include "processor.h"

#ifdef __AVX2__
#include <immintrin.h>
#elif defined(__aarch64__)
#include <arm_neon.h>
#endif

#if defined(__AVX512F__)
constexpr int LANES = 16;
#elif defined(__AVX__)
constexpr int LANES = 8;
#else
constexpr int LANES = 4;
#endif

typedef float Floats __attribute__((vector_size(LANES * 4)));
typedef int32_t Ints __attribute__((vector_size(LANES * 4)));
typedef uint32_t Words __attribute__((vector_size(LANES * 4)));      // bits of Floats
typedef uint16_t HalfWords __attribute__((vector_size(LANES * 2)));  // bits of LANES 16-bit floats
#ifdef HAVE_BF16
using Pairs = __m512bh;
constexpr int64_t BF16_LANES = 32;  // bfloat16 in Pairs
#endif

inline Floats broadcast(float x) { return x - Floats{}; }  // 0 + x would be an addition: it is not x for -0

inline Floats load(const float *p) {
  Floats x;
  memcpy(&x, p, sizeof x);
  return x;
}

inline void store(float *p, Floats x) { memcpy(p, &x, sizeof x); }

struct Bf16 {
  uint16_t bits;
};
struct F16 {
  uint16_t bits;
};

inline Floats load(const Bf16 *p) {  // a bfloat16 is the upper half of a float32
#if defined(__AVX2__) && !defined(__AVX512F__)  // GCC widens each half of the vector on its own
  return (Floats)_mm256_slli_epi32(_mm256_cvtepu16_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i *>(p))), 16);
#else
  HalfWords h;
  memcpy(&h, p, sizeof h);
  return (Floats)(__builtin_convertvector(h, Words) << 16);
#endif
}

inline Floats load(const F16 *p) {
#if defined(__AVX512F__)
  return (Floats)_mm512_cvtph_ps(_mm256_loadu_si256(reinterpret_cast<const __m256i *>(p)));
#elif defined(__F16C__)
  return (Floats)_mm256_cvtph_ps(_mm_loadu_si128(reinterpret_cast<const __m128i *>(p)));
#else
  HalfWords h;
  memcpy(&h, p, sizeof h);
  const Words w = __builtin_convertvector(h, Words), magnitude = w & 0x7fff;
  const Words scaled = (Words)((Floats)(magnitude << 13) * 0x1p112f);  // exact, subnormals too
  const Words special = (Words)(magnitude >= 0x7c00) & 0x7f800000;     // infinity and NaN
  return (Floats)(scaled | special | ((w & 0x8000) << 16));
#endif
}

// A single element as float32
inline float to_float(const float *p) { return *p; }

inline float to_float(const Bf16 *p) {
  const uint32_t w = uint32_t(p->bits) << 16;
  float x;
  memcpy(&x, &w, 4);
  return x;
}

inline float to_float(const F16 *p) {
  F16 padded[LANES] = {*p};
  return load(padded)[0];
}

// The bits of the nearest bfloat16, ties to even, in the upper half of each word; the lower half is arbitrary.
// NaN stays NaN.
inline Words round_words(Floats x) {
  const Words w = (Words)x, rounded = w + 0x7fff + ((w >> 16) & 1);
  const Words nan = (Words)(x != x);
  return (rounded & ~nan) | ((w | 0x400000) & nan);
}

inline Floats round_bf16(Floats x) { return (Floats)(round_words(x) & 0xffff0000); }

// LANES floats -> LANES bfloat16
inline void store_bf16(uint16_t *p, Floats x) {
  const HalfWords h = __builtin_convertvector(round_words(x) >> 16, HalfWords);
  memcpy(p, &h, sizeof h);
}

// The same for code that is a template of the element type, which is Bf16, or float where nothing is rounded
inline void store_rounded(Bf16 *p, Floats x) { store_bf16(&p->bits, x); }
inline void store_rounded(float *p, Floats x) { store(p, x); }
// x rounded to the element type, as float32
template <class Element>
inline Floats rounded_to(Floats x) {
  return sizeof(Element) == 2 ? round_bf16(x) : x;
}

inline uint16_t bits_bf16(float x) { return uint16_t(round_words(broadcast(x))[0] >> 16); }

// The sum of the lanes, as a tree: lanes i and i + LANES / 2 first, then i and i + LANES / 4, and so on
inline float sum(Floats x) {
  typedef float Two __attribute__((vector_size(8)));
  typedef float Four __attribute__((vector_size(16)));
  Four four[LANES / 4];
  memcpy(four, &x, sizeof x);
#pragma GCC unroll 2
  for (int count = LANES / 8; count; count /= 2)
#pragma GCC unroll 2
    for (int i = 0; i < count; i++) four[i] += four[i + count];
  Two two[2];
  memcpy(two, four, sizeof two);
  two[0] += two[1];
  return two[0][0] + two[0][1];
}

#if defined(__AVX2__) || defined(__aarch64__)
// x itself, in a register from here on: keeps GCC from loading it once for each use, and from adding integers as a tree
// for which there are not enough registers
template <class Vector>
inline Vector computed(Vector x) {
#if defined(__AVX512F__)
  asm("" : "+v"(x));
#elif defined(__aarch64__)
  asm("" : "+w"(x));
#else
  asm("" : "+x"(x));
#endif
  return x;
}
#else
template <class Vector>
inline Vector computed(Vector x) {
  return x;
}
#endif

// a * b + c, rounded once where the processor can
inline float fused(float a, float b, float c) {
#ifdef __FP_FAST_FMAF
  return __builtin_fmaf(a, b, c);
#else
  return a * b + c;
#endif
}

inline Floats fused(Floats a, Floats b, Floats c) {
#if defined(__AVX512F__)
  return (Floats)_mm512_fmadd_ps((__m512)a, (__m512)b, (__m512)c);
#elif defined(__FMA__)
  return (Floats)_mm256_fmadd_ps((__m256)a, (__m256)b, (__m256)c);
#elif defined(__aarch64__)
  return (Floats)vfmaq_f32((float32x4_t)c, (float32x4_t)a, (float32x4_t)b);
#else
  return a * b + c;
#endif
}

inline Floats maximum(Floats x, Floats y) { return x > y ? x : y; }

constexpr float ROUNDER = 12582912.f;  // 1.5 * 2^23: what is added to it is rounded to an integer

// 2^n * exp(r) by a Taylor polynomial of degree 6, for |r| <= ln(2) / 2; the integer n is given as shifted = n +
// ROUNDER
inline Floats scaled_exp(Floats shifted, Floats r) {
  Floats p = broadcast(1.f / 720);
  p = p * r + 1.f / 120;
  p = p * r + 1.f / 24;
  p = p * r + 1.f / 6;
  p = p * r + 0.5f;
  p = p * r + 1.f;
  p = p * r + 1.f;
  return p * (Floats)(((Ints)shifted + (127 - 0x4b400000)) << 23);
}

// exp(x), relative error below 2e-7; x is clamped to [-87, 88]. n ln(2) is subtracted in two parts, to stay exact.
inline Floats exponential(Floats x) {
  x = x < -87.f ? broadcast(-87.f) : x;
  x = x > 88.f ? broadcast(88.f) : x;
  const Floats shifted = x * 1.44269504f + ROUNDER, n = shifted - ROUNDER;
  return scaled_exp(shifted, (x - n * 0.693145752f) - n * 1.42860677e-6f);
}

// 2^x for x <= 1; x is clamped to at least -126. Exact where x is an integer.
inline Floats exponential_base2(Floats x) {
  x = x < -126.f ? broadcast(-126.f) : x;
  const Floats shifted = x + ROUNDER;
  return scaled_exp(shifted, (x - (shifted - ROUNDER)) * 0.693147181f);
}

// An integer n with x <= n < x + 2
inline Floats integer_above(Floats x) { return (x + 0.5f + ROUNDER) - ROUNDER; }

inline Floats silu(Floats x) { return x / (broadcast(1.f) + exponential(-x)); }

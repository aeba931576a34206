// Vectors of L 32-bit lanes, L = 4, 8 or 16, in which each lane belongs to a row or to a token. A vector of integers holds four bytes or two 16-bit numbers a lane.
#pragma once
#include "simd.h"

#if defined(__AVX2__) && defined(__FMA__) && defined(__F16C__) && !defined(PLAIN_BLOCKS)
#if !defined(__AVX512F__) || defined(__AVX512BW__)  // else there are no integers in the widest vectors
#define HAVE_LANES 1
#endif
#endif

#ifdef HAVE_LANES
#if (defined(__AVX512VNNI__) && defined(__AVX512VL__)) || defined(__AVXVNNI__)
constexpr bool VNNI = true;  // products of four bytes, added in 32 bits
#else
constexpr bool VNNI = false;
#endif

template <int L>
struct VectorTypes;
template <>
struct VectorTypes<4> {
  typedef int32_t Ints __attribute__((vector_size(16)));
  typedef float Floats __attribute__((vector_size(16)));
};
template <>
struct VectorTypes<8> {
  typedef int32_t Ints __attribute__((vector_size(32)));
  typedef float Floats __attribute__((vector_size(32)));
};
template <>
struct VectorTypes<16> {
  typedef int32_t Ints __attribute__((vector_size(64)));
  typedef float Floats __attribute__((vector_size(64)));
};

template <int L>
struct Lanes {
  using Ints = typename VectorTypes<L>::Ints;
  using Floats = typename VectorTypes<L>::Floats;

  static Ints load(const void *p) {
    Ints x;
    memcpy(&x, p, sizeof x);
    return x;
  }
  static Floats load_floats(const float *p) {
    Floats x;
    memcpy(&x, p, sizeof x);
    return x;
  }
  static Ints broadcast_word(const void *p) {
    int32_t word;
    memcpy(&word, p, 4);
    return Ints{} + word;
  }
  static Floats to_floats(Ints x) { return __builtin_convertvector(x, Floats); }

  // a * b + c, rounded once
  static Floats fused(Floats a, Floats b, Floats c) {
    if constexpr (L == 4) return (Floats)_mm_fmadd_ps((__m128)a, (__m128)b, (__m128)c);
    if constexpr (L == 8) return (Floats)_mm256_fmadd_ps((__m256)a, (__m256)b, (__m256)c);
#ifdef __AVX512F__
    if constexpr (L == 16) return (Floats)_mm512_fmadd_ps((__m512)a, (__m512)b, (__m512)c);
#endif
  }

  // sum + products of pairs of 16-bit integers, added
  static Ints add_pairs(Ints sum, Ints a, Ints b) {
#if defined(__AVX512VNNI__) && defined(__AVX512VL__)
    if constexpr (L == 8) return (Ints)_mm256_dpwssd_epi32((__m256i)sum, (__m256i)a, (__m256i)b);
    if constexpr (L == 16) return (Ints)_mm512_dpwssd_epi32((__m512i)sum, (__m512i)a, (__m512i)b);
#elif defined(__AVXVNNI__)
    if constexpr (L == 8) return (Ints)_mm256_dpwssd_avx_epi32((__m256i)sum, (__m256i)a, (__m256i)b);
#else
    if constexpr (L == 8) return computed(sum + (Ints)_mm256_madd_epi16((__m256i)a, (__m256i)b));
#ifdef __AVX512BW__
    if constexpr (L == 16) return computed(sum + (Ints)_mm512_madd_epi16((__m512i)a, (__m512i)b));
#endif
#endif
  }

  // sum + products of bytes u (without a sign) and x: of four in 32 bits by VNNI, else of pairs in 16 bits
  static Ints add_bytes(Ints sum, Ints u, Ints x) {
#if defined(__AVX512VNNI__) && defined(__AVX512VL__)
    if constexpr (L == 8) return (Ints)_mm256_dpbusd_epi32((__m256i)sum, (__m256i)u, (__m256i)x);
    if constexpr (L == 16) return (Ints)_mm512_dpbusd_epi32((__m512i)sum, (__m512i)u, (__m512i)x);
#elif defined(__AVXVNNI__)
    if constexpr (L == 8) return (Ints)_mm256_dpbusd_avx_epi32((__m256i)sum, (__m256i)u, (__m256i)x);
#else
    if constexpr (L == 8)
      return (Ints)computed(_mm256_add_epi16((__m256i)sum, _mm256_maddubs_epi16((__m256i)u, (__m256i)x)));
#ifdef __AVX512BW__
    if constexpr (L == 16)
      return (Ints)computed(_mm512_add_epi16((__m512i)sum, _mm512_maddubs_epi16((__m512i)u, (__m512i)x)));
#endif
#endif
  }
};
#endif

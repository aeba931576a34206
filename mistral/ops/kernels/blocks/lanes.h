// Vectors of L 32-bit lanes, L = 8 or 16, in which each lane belongs to a row of a weight. A vector of integers holds
// four bytes or two 16-bit numbers a lane.
#pragma once
#include "simd.h"

#if defined(__AVX2__) && defined(__FMA__) && defined(__F16C__) && !defined(PLAIN_BLOCKS)
#if !defined(__AVX512F__) || defined(__AVX512BW__)  // else there are no integers in the widest vectors
#define HAVE_LANES 1
#endif
#endif

#ifdef HAVE_LANES
#define ALWAYS_INLINE inline __attribute__((always_inline))  // or vectors would be passed by way of memory

#if (defined(__AVX512VNNI__) && defined(__AVX512VL__)) || defined(__AVXVNNI__)
constexpr bool VNNI = true;  // products of four bytes, added in 32 bits
#else
constexpr bool VNNI = false;
#endif
constexpr int MOST_LANES = LANES == 16 ? 8 : 4;  // of tokens that are multiplied at a time: as registers allow
constexpr int64_t FEW_GROUPS = 2;  // up to so many times that, rows are unpacked for each of them anew

template <int L>
struct VectorTypes;
template <>
struct VectorTypes<8> {
  typedef int32_t Ints __attribute__((vector_size(32)));
  typedef float Floats __attribute__((vector_size(32)));
  typedef uint64_t Pairs __attribute__((vector_size(32)));  // of words
};
template <>
struct VectorTypes<16> {
  typedef int32_t Ints __attribute__((vector_size(64)));
  typedef float Floats __attribute__((vector_size(64)));
  typedef uint64_t Pairs __attribute__((vector_size(64)));  // of words
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
  // 16 bytes at at(0), at(1), ... side by side
  template <class At>
  ALWAYS_INLINE static Ints load_quarters(const At &at) {
    const auto quarter = [&](int i) { return _mm_loadu_si128(reinterpret_cast<const __m128i *>(at(i))); };
    if constexpr (L == 8) return (Ints)_mm256_inserti128_si256(_mm256_castsi128_si256(quarter(0)), quarter(1), 1);
#ifdef __AVX512F__
    if constexpr (L == 16) {
      const auto half = [&](int i) {
        return _mm256_inserti128_si256(_mm256_castsi128_si256(quarter(i)), quarter(i + 1), 1);
      };
      return (Ints)_mm512_inserti64x4(_mm512_castsi256_si512(half(0)), half(2), 1);
    }
#endif
  }

  // Within each 16 bytes: words or pairs of words of the lower or upper half of a and b, in turn
  static Ints low_words(Ints a, Ints b) {
    if constexpr (L == 8) return (Ints)_mm256_unpacklo_epi32((__m256i)a, (__m256i)b);
#ifdef __AVX512F__
    if constexpr (L == 16) return (Ints)_mm512_unpacklo_epi32((__m512i)a, (__m512i)b);
#endif
  }
  static Ints high_words(Ints a, Ints b) {
    if constexpr (L == 8) return (Ints)_mm256_unpackhi_epi32((__m256i)a, (__m256i)b);
#ifdef __AVX512F__
    if constexpr (L == 16) return (Ints)_mm512_unpackhi_epi32((__m512i)a, (__m512i)b);
#endif
  }
  static Ints low_pairs(Ints a, Ints b) {
    if constexpr (L == 8) return (Ints)_mm256_unpacklo_epi64((__m256i)a, (__m256i)b);
#ifdef __AVX512F__
    if constexpr (L == 16) return (Ints)_mm512_unpacklo_epi64((__m512i)a, (__m512i)b);
#endif
  }
  static Ints high_pairs(Ints a, Ints b) {
    if constexpr (L == 8) return (Ints)_mm256_unpackhi_epi64((__m256i)a, (__m256i)b);
#ifdef __AVX512F__
    if constexpr (L == 16) return (Ints)_mm512_unpackhi_epi64((__m512i)a, (__m512i)b);
#endif
  }

  // The float16 in the lower half of each word
  static Floats half_floats(Ints words) {
    if constexpr (L == 8) {
      const __m256i low = _mm256_and_si256((__m256i)words, _mm256_set1_epi32(0xffff));
      const __m256i packed = _mm256_permute4x64_epi64(_mm256_packus_epi32(low, low), 0x08);
      return (Floats)_mm256_cvtph_ps(_mm256_castsi256_si128(packed));
    }
#ifdef __AVX512F__
    if constexpr (L == 16) return (Floats)_mm512_cvtph_ps(_mm512_cvtepi32_epi16((__m512i)words));
#endif
  }

  // Of float16 side by side: eight are `low`, and of 16 the others `high`
  static Floats half_floats(__m128i low, [[maybe_unused]] __m128i high) {
    if constexpr (L == 8) return (Floats)_mm256_cvtph_ps(low);
#ifdef __AVX512F__
    if constexpr (L == 16) return (Floats)_mm512_cvtph_ps(_mm256_set_m128i(high, low));
#endif
  }

  static Floats to_floats(Ints x) { return __builtin_convertvector(x, Floats); }

  // a * b + c, rounded once
  static Floats fused(Floats a, Floats b, Floats c) {
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

  // sum + products of bytes u (without a sign) and the four at x: of all in 32 bits by VNNI, else of pairs in 16 bits
  static Ints add_bytes(Ints sum, Ints u, const char *x) {
#if defined(__AVX512VNNI__) && defined(__AVX512VL__)
    if constexpr (L == 8) return (Ints)_mm256_dpbusd_epi32((__m256i)sum, (__m256i)u, (__m256i)broadcast_word(x));
    if constexpr (L == 16)  // GCC would broadcast by an instruction of its own
      asm("vpdpbusd %2%{1to16%}, %1, %0" : "+v"(sum) : "v"(u), "m"(*reinterpret_cast<const int32_t *>(x)));
    return sum;
#elif defined(__AVXVNNI__)
    return (Ints)_mm256_dpbusd_avx_epi32((__m256i)sum, (__m256i)u, (__m256i)broadcast_word(x));
#else
    typedef int16_t Halves __attribute__((vector_size(4 * L)));
    return computed((Ints)((Halves)sum + (Halves)multiply_pairs(u, broadcast_word(x))));
#endif
  }

  // Products of bytes u (without a sign) and x, of pairs in 16 bits
  static Ints multiply_pairs(Ints u, Ints x) {
    if constexpr (L == 8) return (Ints)_mm256_maddubs_epi16((__m256i)u, (__m256i)x);
#ifdef __AVX512BW__
    if constexpr (L == 16) return (Ints)_mm512_maddubs_epi16((__m512i)u, (__m512i)x);
#endif
  }

  // The same of bytes w and x, both with a sign: at most 128 * 127 * 2
  static Ints multiply_signed_pairs(Ints w, Ints x) {
    if constexpr (L == 8) {
      const __m256i moved = _mm256_sign_epi8((__m256i)x, (__m256i)w);
      return multiply_pairs((Ints)_mm256_abs_epi8((__m256i)w), (Ints)moved);
    }
#ifdef __AVX512BW__
    if constexpr (L == 16) {
      const __mmask64 negative = _mm512_movepi8_mask((__m512i)w);
      const __m512i moved = _mm512_mask_sub_epi8((__m512i)x, negative, _mm512_setzero_si512(), (__m512i)x);
      return multiply_pairs((Ints)_mm512_abs_epi8((__m512i)w), (Ints)moved);
    }
#endif
  }

  // Bits 4 * i to 4 * i + 3 of each word as bit 4 of its bytes
  ALWAYS_INLINE static Ints spread_bits(Ints bits, int i) {
    if constexpr (L == 8) {  // the byte with these bits four times, of which each keeps one, at bit 4 or higher
      const Ints upper = i % 2 ? bits : bits << 4, lanes = {0, 0x04040404, 0x08080808, 0x0c0c0c0c,
                                                            0, 0x04040404, 0x08080808, 0x0c0c0c0c};
      const __m256i bytes = _mm256_shuffle_epi8((__m256i)upper, (__m256i)(lanes + i / 2 * 0x01010101));
      const __m256i single = _mm256_and_si256(bytes, _mm256_set1_epi32(int32_t(0x80402010)));
      return (Ints)_mm256_min_epu8(single, _mm256_set1_epi32(0x10101010));
    }
#ifdef __AVX512F__
    if constexpr (L == 16) {  // each of 16 sets of four bits is looked up: only they count as an index
      Ints table;
      for (int n = 0; n < 16; n++) table[n] = n * 0x02040810 & 0x10101010;
      return (Ints)_mm512_permutexvar_epi32((__m512i)(bits >> 4 * i), (__m512i)table);
    }
#endif
  }

  typedef int8_t Bytes __attribute__((vector_size(4 * L)));
  // Ones in each byte that is negative
  static Ints negative_bytes(Ints x) { return (Ints)((Bytes)x < 0); }
  static Ints subtract_bytes(Ints a, Ints b) { return (Ints)((Bytes)a - (Bytes)b); }

  // table[i] for each byte i
  static Ints look_up(const int8_t (&table)[16], Ints i) {
    const __m128i all = _mm_load_si128(reinterpret_cast<const __m128i *>(table));
    if constexpr (L == 8) return (Ints)_mm256_shuffle_epi8(_mm256_broadcastsi128_si256(all), (__m256i)i);
#ifdef __AVX512BW__
    if constexpr (L == 16) return (Ints)_mm512_shuffle_epi8(_mm512_broadcast_i32x4(all), (__m512i)i);
#endif
  }
};
#endif

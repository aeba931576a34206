// Parts of the integer dot product of a block of weights, as it lies, with 8-bit activations, in vectors of 256 bits.
//
// Weights are taken 32 at a time, as bytes: those of most formats in so many BITS without a sign, too large by
// InPlace<F>::EXCESS, the others (SIGNED) as they are. Products of pairs fit into 16 bits: at most 63 * 127 * 2 without
// a sign, and 128 * 127 * 2 with one.
#pragma once
#include "blocks/formats.h"

#ifdef __AVX2__
inline __m256i load_bytes(const void *p) { return _mm256_loadu_si256(static_cast<const __m256i *>(p)); }
inline __m256i load_twice(const void *p) {  // 16 bytes, in both halves
  return _mm256_broadcastsi128_si256(_mm_loadu_si128(static_cast<const __m128i *>(p)));
}

// 16 bytes -> 16 lower numbers of 4 bits, then the 16 upper ones
inline __m256i load_nibbles(const uint8_t *p) {
  const __m256i upper_half = _mm256_setr_epi64x(0, 0, 4, 4);
  return _mm256_and_si256(_mm256_srlv_epi64(load_twice(p), upper_half), _mm256_set1_epi8(15));
}

// 16 in the bytes whose bit is set, of 32
inline __m256i fifth_bits(const uint8_t *p) {
  int32_t bits;
  memcpy(&bits, p, 4);
  const __m256i spread = _mm256_setr_epi64x(0, 0x0101010101010101, 0x0202020202020202, 0x0303030303030303);
  const __m256i bytes = _mm256_shuffle_epi8(_mm256_set1_epi32(bits), spread);
  const __m256i bit = _mm256_set1_epi64x(int64_t(0x8040201008040201));
  const __m256i set = _mm256_cmpeq_epi8(_mm256_and_si256(bytes, bit), bit);
  return _mm256_and_si256(set, _mm256_set1_epi8(16));
}

template <class F>
struct InPlace;

template <>
struct InPlace<Q8_0> {
  static constexpr int BITS = 8;
  static constexpr bool SIGNED = true;
  static constexpr int EXCESS = 0;
  static __m256i load(const uint8_t *block, int) { return load_bytes(block + 2); }
};
template <>
struct InPlace<Q4_0> {
  static constexpr int BITS = 4;
  static constexpr bool SIGNED = false;
  static constexpr int EXCESS = 8;
  static __m256i load(const uint8_t *block, int) { return load_nibbles(block + 2); }
};
template <>
struct InPlace<Q4_1> {
  static constexpr int BITS = 4;
  static constexpr bool SIGNED = false;
  static constexpr int EXCESS = 0;
  static __m256i load(const uint8_t *block, int) { return load_nibbles(block + 4); }
};
template <>
struct InPlace<Q5_0> {
  static constexpr int BITS = 5;
  static constexpr bool SIGNED = false;
  static constexpr int EXCESS = 16;
  static __m256i load(const uint8_t *block, int) {
    return _mm256_or_si256(load_nibbles(block + 6), fifth_bits(block + 2));
  }
};
template <>
struct InPlace<Q5_1> {
  static constexpr int BITS = 5;
  static constexpr bool SIGNED = false;
  static constexpr int EXCESS = 0;
  static __m256i load(const uint8_t *block, int) {
    return _mm256_or_si256(load_nibbles(block + 8), fifth_bits(block + 4));
  }
};
template <>
struct InPlace<IQ4_NL> {
  static constexpr int BITS = 8;
  static constexpr bool SIGNED = true;
  static constexpr int EXCESS = 0;
  static __m256i load(const uint8_t *block, int) {
    return _mm256_shuffle_epi8(load_twice(LEVELS), load_nibbles(block + 2));
  }
};
template <>
struct InPlace<IQ4_XS> {
  static constexpr int BITS = 8;
  static constexpr bool SIGNED = true;
  static constexpr int EXCESS = 0;
  static __m256i load(const uint8_t *block, int g) {
    return _mm256_shuffle_epi8(load_twice(LEVELS), load_nibbles(block + 8 + 16 * g));
  }
};
template <>
struct InPlace<Q4_K> {
  static constexpr int BITS = 4;
  static constexpr bool SIGNED = false;
  static constexpr int EXCESS = 0;
  static __m256i load(const uint8_t *block, int g) {
    const __m256i both = load_bytes(block + 16 + g / 2 * 32), low = _mm256_set1_epi8(15);
    return _mm256_and_si256(g % 2 ? _mm256_srli_epi16(both, 4) : both, low);
  }
};
template <>
struct InPlace<Q5_K> {
  static constexpr int BITS = 5;
  static constexpr bool SIGNED = false;
  static constexpr int EXCESS = 0;
  static __m256i load(const uint8_t *block, int g) {
    const __m256i both = load_bytes(block + 48 + g / 2 * 32), low = _mm256_set1_epi8(15);
    const __m256i fifth = load_bytes(block + 16), sixteen = _mm256_set1_epi8(16);
    const __m256i moved = g < 4 ? _mm256_slli_epi16(fifth, 4 - g) : _mm256_srli_epi16(fifth, g - 4);
    return _mm256_or_si256(_mm256_and_si256(g % 2 ? _mm256_srli_epi16(both, 4) : both, low),
                           _mm256_and_si256(moved, sixteen));
  }
};
template <>
struct InPlace<Q6_K> {
  static constexpr int BITS = 6;
  static constexpr bool SIGNED = false;
  static constexpr int EXCESS = 32;
  static __m256i load(const uint8_t *block, int g) {
    const int half = g / 4, part = g % 4;
    const __m256i both = load_bytes(block + 64 * half + part % 2 * 32), low = _mm256_set1_epi8(15);
    const __m256i upper = load_bytes(block + 128 + 32 * half), mask = _mm256_set1_epi8(48);
    const __m256i moved = part == 0   ? _mm256_slli_epi16(upper, 4)
                          : part == 1 ? _mm256_slli_epi16(upper, 2)
                          : part == 2 ? upper
                                      : _mm256_srli_epi16(upper, 2);
    return _mm256_or_si256(_mm256_and_si256(part < 2 ? both : _mm256_srli_epi16(both, 4), low),
                           _mm256_and_si256(moved, mask));
  }
};

// sum + products of pairs of 16-bit integers, added
inline __m256i add_pairs(__m256i sum, __m256i a, __m256i b) {
#if defined(__AVX512VNNI__) && defined(__AVX512VL__)
  return _mm256_dpwssd_epi32(sum, a, b);
#elif defined(__AVXVNNI__)
  return _mm256_dpwssd_avx_epi32(sum, a, b);
#else
  return computed(_mm256_add_epi32(sum, _mm256_madd_epi16(a, b)));
#endif
}

// sum + products of bytes u (without a sign) and x, four added
inline __m256i add_fours(__m256i sum, __m256i u, __m256i x) {
#if defined(__AVX512VNNI__) && defined(__AVX512VL__)
  return _mm256_dpbusd_epi32(sum, u, x);
#elif defined(__AVXVNNI__)
  return _mm256_dpbusd_avx_epi32(sum, u, x);
#else
  return computed(_mm256_add_epi32(sum, _mm256_madd_epi16(_mm256_maddubs_epi16(u, x), _mm256_set1_epi16(1))));
#endif
}

// Lanes 0 to 3: the sums of the lower half of the lanes of a, b, c and d; 4 to 7: those of the upper half. SMALL: each
// lane, and the sum of two, fits into 16 bits.
template <bool SMALL>
inline __m256i sum_halves(__m256i a, __m256i b, __m256i c, __m256i d) {
  if constexpr (SMALL) {
    const __m256i ones = _mm256_set1_epi16(1);
    const __m256i first = _mm256_madd_epi16(_mm256_packs_epi32(a, b), ones);
    const __m256i second = _mm256_madd_epi16(_mm256_packs_epi32(c, d), ones);
    return _mm256_madd_epi16(_mm256_packs_epi32(first, second), ones);
  } else {
    return _mm256_hadd_epi32(_mm256_hadd_epi32(a, b), _mm256_hadd_epi32(c, d));
  }
}

// Lanes 0 to 3: the sums of the lanes of a, b, c and d
template <bool SMALL>
inline __m128i sum_four(__m256i a, __m256i b, __m256i c, __m256i d) {
  const __m256i all = sum_halves<SMALL>(a, b, c, d);
  return _mm_add_epi32(_mm256_castsi256_si128(all), _mm256_extracti128_si256(all, 1));
}

// The factors of a block of 256, spread: at(g) has the factor of every weight of 32 from 32 g on, in pairs of bytes
template <class F>
struct Factors {
  __m256i both;
  explicit Factors(const uint8_t *block) {
    if constexpr (!F::FACTORS) {
      both = _mm256_set1_epi16(1);
    } else if constexpr (std::is_same_v<F, Q6_K>) {
      // Those of even groups of 16 in the lower half, of odd ones in the upper
      const __m128i order = _mm_setr_epi8(0, 2, 4, 6, 8, 10, 12, 14, 1, 3, 5, 7, 9, 11, 13, 15);
      const __m128i bytes = _mm_loadu_si128(reinterpret_cast<const __m128i *>(block + 192));
      both = _mm256_cvtepi8_epi16(_mm_shuffle_epi8(bytes, order));
    } else if constexpr (std::is_same_v<F, IQ4_XS>) {
      int32_t lower, upper = 0;
      memcpy(&lower, block + 4, 4), memcpy(&upper, block + 2, 2);
      // Four bits of each factor, in bytes; and two more, of which each word has those of its own factor moved to 4
      const __m128i nibbles = _mm_cvtsi32_si128(lower), low = _mm_set1_epi8(15);
      const __m128i four =
          _mm_unpacklo_epi8(_mm_and_si128(nibbles, low), _mm_and_si128(_mm_srli_epi16(nibbles, 4), low));
      const __m128i spread = _mm_setr_epi8(0, -1, 0, -1, 0, -1, 0, -1, 1, -1, 1, -1, 1, -1, 1, -1);
      const __m128i moved = _mm_mullo_epi16(_mm_shuffle_epi8(_mm_cvtsi32_si128(upper), spread),
                                            _mm_setr_epi16(64, 16, 4, 1, 64, 16, 4, 1));
      const __m128i two = _mm_srli_epi16(_mm_and_si128(moved, _mm_set1_epi16(0xc0)), 2);
      const __m128i all = _mm_sub_epi16(_mm_or_si128(_mm_cvtepu8_epi16(four), two), _mm_set1_epi16(32));
      both = _mm256_broadcastsi128_si256(all);
    } else {
      both = _mm256_broadcastsi128_si256(_mm_cvtepu8_epi16(_mm_cvtsi64_si128(int64_t(six_bit_factors(block + 4)))));
    }
  }
  __m256i at(int g) const { return _mm256_shuffle_epi8(both, _mm256_set1_epi16(int16_t(g * 0x0202 + 0x0100))); }
};

// block_integers() of formats.h
template <class F>
inline void decode_integers(const uint8_t *block, int16_t *to) {
  using P = InPlace<F>;
  [[maybe_unused]] const Factors<F> factors(block);
#pragma GCC unroll 8
  for (int g = 0; g < F::WEIGHTS / 32; g++) {
    __m256i bytes = P::load(block, g);
    if constexpr (P::EXCESS) bytes = _mm256_sub_epi8(bytes, _mm256_set1_epi8(P::EXCESS));
    __m256i first = _mm256_cvtepi8_epi16(_mm256_castsi256_si128(bytes));
    __m256i second = _mm256_cvtepi8_epi16(_mm256_extracti128_si256(bytes, 1));
    if constexpr (F::FACTORS) {
      const __m256i both = factors.at(g);  // of the first 16 weights in the lower half, of the others in the upper
      first = _mm256_mullo_epi16(first, F::GROUP == 32 ? both : _mm256_permute2x128_si256(both, both, 0x00));
      second = _mm256_mullo_epi16(second, F::GROUP == 32 ? both : _mm256_permute2x128_si256(both, both, 0x11));
    }
    _mm256_storeu_si256(reinterpret_cast<__m256i *>(to + 32 * g), first);
    _mm256_storeu_si256(reinterpret_cast<__m256i *>(to + 32 * g + 16), second);
  }
}
#endif

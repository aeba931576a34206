// Floats of 8 bits (E4M3) -> float32 or bfloat16, as 2^-8 of what they stand for: with that, the bits of a float16 are
// those of the byte, seven places further to the left, and every one is a normal bfloat16. 0x7f and 0xff are NaN.
#pragma once
#include "simd.h"

#if defined(__AVX2__) && defined(__F16C__)
// Words with a byte in their upper half -> bits of float16: the sign stays, the rest goes one place to the right
inline __m256i float8_to_float16(__m256i upper) {
  const __m256i bits = _mm256_and_si256(_mm256_srai_epi16(upper, 1), _mm256_set1_epi16(int16_t(0xbf80)));
  const __m256i magnitude = _mm256_and_si256(bits, _mm256_set1_epi16(0x7fff));
  const __m256i nan = _mm256_cmpeq_epi16(magnitude, _mm256_set1_epi16(0x3f80));
  return _mm256_or_si256(bits, nan);
}

inline __m256i load_upper(const uint8_t *p) {  // 16 bytes, each in the upper half of a word
  return _mm256_slli_epi16(_mm256_cvtepu8_epi16(_mm_loadu_si128(reinterpret_cast<const __m128i *>(p))), 8);
}
#endif

#if defined(__AVX512F__) && defined(__AVX512BW__)

inline Floats decode_float8(const uint8_t *p) { return (Floats)_mm512_cvtph_ps(float8_to_float16(load_upper(p))); }

inline void decode_float8_odd_even(const uint8_t *p, Floats &odd, Floats &even) {
  const __m256i both = _mm256_loadu_si256(reinterpret_cast<const __m256i *>(p));
  odd = (Floats)_mm512_cvtph_ps(float8_to_float16(both));
  even = (Floats)_mm512_cvtph_ps(float8_to_float16(_mm256_slli_epi16(both, 8)));
}

#elif defined(__AVX2__) && defined(__F16C__)

inline Floats decode_float8(const uint8_t *p) {
  const __m128i bytes = _mm_loadl_epi64(reinterpret_cast<const __m128i *>(p));
  const __m256i upper = _mm256_castsi128_si256(_mm_unpacklo_epi8(_mm_setzero_si128(), bytes));
  return (Floats)_mm256_cvtph_ps(_mm256_castsi256_si128(float8_to_float16(upper)));
}

inline void decode_float8_odd_even(const uint8_t *p, Floats &odd, Floats &even) {
  const __m128i both = _mm_loadu_si128(reinterpret_cast<const __m128i *>(p));
  const __m256i halves = _mm256_inserti128_si256(_mm256_castsi128_si256(both), _mm_slli_epi16(both, 8), 1);
  const __m256i bits = float8_to_float16(halves);
  odd = (Floats)_mm256_cvtph_ps(_mm256_castsi256_si128(bits));
  even = (Floats)_mm256_cvtph_ps(_mm256_extracti128_si256(bits, 1));
}

#else

inline Floats decode_float8(const uint8_t *p) {
  F16 bits[LANES];
  for (int i = 0; i < LANES; i++) {
    const uint16_t magnitude = p[i] & 0x7f;
    bits[i].bits = uint16_t((p[i] & 0x80) << 8 | (magnitude == 0x7f ? 0x7fff : magnitude << 7));
  }
  return load(bits);
}

inline void decode_float8_odd_even(const uint8_t *p, Floats &odd, Floats &even) {
  uint8_t apart[2][LANES];
  for (int i = 0; i < 2 * LANES; i++) apart[i % 2][i / 2] = p[i];
  odd = decode_float8(apart[1]), even = decode_float8(apart[0]);
}

#endif

#ifdef HAVE_BF16

inline Pairs float8_pairs(__m256i bytes) {  // 32 of them
  const auto widened = [](__m128i half) {
    return _mm512_cvtph_ps(float8_to_float16(_mm256_slli_epi16(_mm256_cvtepu8_epi16(half), 8)));
  };
  return _mm512_cvtne2ps_pbh(widened(_mm256_extracti128_si256(bytes, 1)), widened(_mm256_castsi256_si128(bytes)));
}

#ifdef __AVX512VBMI__

struct Float8Table {  // the upper and the lower byte of the bfloat16 of each magnitude
  alignas(64) uint8_t upper[128], lower[128];
};

constexpr Float8Table float8_table() {
  Float8Table table{};
  for (int byte = 0; byte < 128; byte++) {
    const int exponent = byte >> 3;
    int bits = (exponent + 112) << 7 | (byte & 7) << 4;
    if (exponent == 0) {  // 2^-17 times 0 to 7
      int power = 2;
      while (power > 0 && !(byte >> power)) power--;
      bits = byte ? (power + 110) << 7 | ((byte << (7 - power)) & 0x7f) : 0;
    }
    if (byte == 0x7f) bits = 0x7fc0;
    table.upper[byte] = uint8_t(bits >> 8), table.lower[byte] = uint8_t(bits & 0xff);
  }
  return table;
}

inline constexpr Float8Table FLOAT8_TABLE = float8_table();

// 64 elements -> the first 32 and the others
inline void decode_float8_pairs(const uint8_t *p, Pairs &first, Pairs &second) {
  // halves of 8 bytes, in the order in which the interleaving below gives the elements as they lie
  const __m512i order = _mm512_setr_epi64(0, 4, 1, 5, 2, 6, 3, 7);
  const __m512i bytes = _mm512_permutexvar_epi64(order, _mm512_loadu_si512(p));
  const auto look_up = [&bytes](const uint8_t *table) {
    return _mm512_permutex2var_epi8(_mm512_load_si512(table), bytes, _mm512_load_si512(table + 64));
  };
  const __m512i lower = look_up(FLOAT8_TABLE.lower);
  const __m512i sign = _mm512_set1_epi8(int8_t(0x80));
  const __m512i upper = _mm512_ternarylogic_epi64(look_up(FLOAT8_TABLE.upper), bytes, sign, 0xf8);  // a | (b & c)
  first = (Pairs)_mm512_unpacklo_epi8(lower, upper), second = (Pairs)_mm512_unpackhi_epi8(lower, upper);
}

#else

inline void decode_float8_pairs(const uint8_t *p, Pairs &first, Pairs &second) {
  first = float8_pairs(_mm256_loadu_si256(reinterpret_cast<const __m256i *>(p)));
  second = float8_pairs(_mm256_loadu_si256(reinterpret_cast<const __m256i *>(p + 32)));
}

#endif
#endif

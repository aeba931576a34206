// The block formats of GGUF files, as plain C++ that compilers turn into vectors: what the bytes of a block stand for.
// mistral/ops/blocks/ says the same in NumPy. A class F for each format:
//
//   F::WEIGHTS, F::BYTES      of a block: 32 or 256 weights of a row
//   F::GROUP                  weights that share a factor
//   F::numbers(block, q)      the numbers q of all weights, 8 bits each
//   F::scale(block)           d, a float16 at F::SCALE_AT
//   F::factors(block, s)      a whole number s for each group          (where F::FACTORS; else all are 1)
//   F::minimum(block)         dmin                                     (where F::MINIMA; else there are none)
//   F::minima(block, m)       a whole number m for every 32 weights    (where F::MINIMA)
//
// A weight is (d * s) * q - dmin * m. Both products are exact in float32.
#pragma once
#include <type_traits>

#include "kernels.h"
#include "simd.h"

constexpr int64_t SMALL_BLOCK = 32, LARGE_BLOCK = 256;

inline float half_at(const uint8_t *p) {
  F16 half;
  memcpy(&half, p, sizeof half);
#ifdef __F16C__
  return _cvtsh_ss(half.bits);
#elif defined(__aarch64__)
  __fp16 number;
  memcpy(&number, p, sizeof number);
  return number;
#else
  return to_float(&half);
#endif
}

// 16 bytes -> numbers of 4 bits: 16 lower ones, then 16 upper ones
inline void nibbles(const uint8_t *packed, int8_t *q) {
  for (int i = 0; i < 16; i++) q[i] = int8_t(packed[i] & 15), q[i + 16] = int8_t(packed[i] >> 4);
}

// 16 where bit i of four bytes is set, else 0
inline void add_fifth_bits(const uint8_t *from, int8_t *q) {
  uint32_t bits;
  memcpy(&bits, from, 4);
  for (int i = 0; i < 32; i++) q[i] = int8_t(q[i] | (bits >> i & 1) << 4);
}

struct Unscaled {  // a block of 32 weights, whose scale is a float16 at its beginning
  static constexpr int64_t WEIGHTS = SMALL_BLOCK, GROUP = SMALL_BLOCK, SCALE_AT = 0;
  static constexpr bool FACTORS = false, MINIMA = false;
  static float scale(const uint8_t *block) { return half_at(block); }
  static void factors(const uint8_t *, int16_t *s) { s[0] = 1; }
  static float minimum(const uint8_t *) { return 0; }
  static void minima(const uint8_t *, int16_t *) {}
};

struct UnscaledWithMinimum : Unscaled {  // a second float16 is added to every weight
  static constexpr bool MINIMA = true;
  static float minimum(const uint8_t *block) { return -half_at(block + 2); }
  static void minima(const uint8_t *, int16_t *m) { m[0] = 1; }
};

struct Q8_0 : Unscaled {
  static constexpr int64_t BYTES = 34;
  static void numbers(const uint8_t *block, int8_t *q) { memcpy(q, block + 2, 32); }
};

struct Q4_0 : Unscaled {
  static constexpr int64_t BYTES = 18;
  static void numbers(const uint8_t *block, int8_t *q) {
    nibbles(block + 2, q);
    for (int i = 0; i < 32; i++) q[i] = int8_t(q[i] - 8);
  }
};

struct Q4_1 : UnscaledWithMinimum {
  static constexpr int64_t BYTES = 20;
  static void numbers(const uint8_t *block, int8_t *q) { nibbles(block + 4, q); }
};

struct Q5_0 : Unscaled {
  static constexpr int64_t BYTES = 22;
  static void numbers(const uint8_t *block, int8_t *q) {
    nibbles(block + 6, q);
    add_fifth_bits(block + 2, q);
    for (int i = 0; i < 32; i++) q[i] = int8_t(q[i] - 16);
  }
};

struct Q5_1 : UnscaledWithMinimum {
  static constexpr int64_t BYTES = 24;
  static void numbers(const uint8_t *block, int8_t *q) {
    nibbles(block + 8, q);
    add_fifth_bits(block + 4, q);
  }
};

alignas(16) constexpr int8_t LEVELS[16] = {-127, -104, -83, -65, -49, -35, -22, -10, 1, 13, 25, 38, 53, 69, 89, 113};

// 16 bytes -> the levels of 16 lower and 16 upper numbers
inline void levels(const uint8_t *packed, int8_t *q) {
#ifdef __SSSE3__
  const __m128i table = _mm_load_si128(reinterpret_cast<const __m128i *>(LEVELS)), low = _mm_set1_epi8(15);
  const __m128i bytes = _mm_loadu_si128(reinterpret_cast<const __m128i *>(packed));
  const __m128i first = _mm_and_si128(bytes, low), second = _mm_and_si128(_mm_srli_epi16(bytes, 4), low);
  _mm_storeu_si128(reinterpret_cast<__m128i *>(q), _mm_shuffle_epi8(table, first));
  _mm_storeu_si128(reinterpret_cast<__m128i *>(q + 16), _mm_shuffle_epi8(table, second));
#else
  for (int i = 0; i < 16; i++) q[i] = LEVELS[packed[i] & 15], q[i + 16] = LEVELS[packed[i] >> 4];
#endif
}

struct IQ4_NL : Unscaled {
  static constexpr int64_t BYTES = 18;
  static void numbers(const uint8_t *block, int8_t *q) { levels(block + 2, q); }
};

struct IQ4_XS {
  static constexpr int64_t WEIGHTS = LARGE_BLOCK, GROUP = 32, BYTES = 136, SCALE_AT = 0;
  static constexpr bool FACTORS = true, MINIMA = false;
  static float scale(const uint8_t *block) { return half_at(block); }
  static float minimum(const uint8_t *) { return 0; }
  static void minima(const uint8_t *, int16_t *) {}
  static void factors(const uint8_t *block, int16_t *s) {  // four bits of each, and two
    for (int g = 0; g < 8; g++)
      s[g] = int16_t(((block[4 + g / 2] >> g % 2 * 4 & 15) | (block[2 + g / 4] >> g % 4 * 2 & 3) << 4) - 32);
  }
  static void numbers(const uint8_t *block, int8_t *q) {
    for (int g = 0; g < 8; g++) levels(block + 8 + 16 * g, q + 32 * g);
  }
};

// Eight factors and eight minima of six bits in twelve bytes. Of the last four of each, the upper two bits are those
// that the first eight bytes have left.
inline uint64_t six_bit_factors(const uint8_t *packed) {
  uint32_t a, b, c;
  memcpy(&a, packed, 4), memcpy(&b, packed + 4, 4), memcpy(&c, packed + 8, 4);
  return (a & 0x3f3f3f3f) | uint64_t((c & 0x0f0f0f0f) | (a >> 2 & 0x30303030)) << 32;
}
inline uint64_t six_bit_minima(const uint8_t *packed) {
  uint32_t a, b, c;
  memcpy(&a, packed, 4), memcpy(&b, packed + 4, 4), memcpy(&c, packed + 8, 4);
  return (b & 0x3f3f3f3f) | uint64_t((c >> 4 & 0x0f0f0f0f) | (b >> 2 & 0x30303030)) << 32;
}

struct SixBitScaled {
  static constexpr int64_t WEIGHTS = LARGE_BLOCK, GROUP = 32, SCALE_AT = 0;
  static constexpr bool FACTORS = true, MINIMA = true;
  static float scale(const uint8_t *block) { return half_at(block); }
  static float minimum(const uint8_t *block) { return half_at(block + 2); }
  static void widen(uint64_t bytes, int16_t *to) {
    for (int g = 0; g < 8; g++) to[g] = int16_t(bytes >> 8 * g & 255);
  }
  static void factors(const uint8_t *block, int16_t *s) { widen(six_bit_factors(block + 4), s); }
  static void minima(const uint8_t *block, int16_t *m) { widen(six_bit_minima(block + 4), m); }
};

struct Q4_K : SixBitScaled {
  static constexpr int64_t BYTES = 144;
  static void numbers(const uint8_t *block, int8_t *q) {
    for (int j = 0; j < 4; j++)  // 32 bytes have a group below and the next above
      for (int i = 0; i < 32; i++) {
        const uint8_t byte = block[16 + 32 * j + i];
        q[64 * j + i] = int8_t(byte & 15), q[64 * j + 32 + i] = int8_t(byte >> 4);
      }
  }
};

struct Q5_K : SixBitScaled {
  static constexpr int64_t BYTES = 176;
  static void numbers(const uint8_t *block, int8_t *q) {
    for (int j = 0; j < 4; j++)
      for (int i = 0; i < 32; i++) {
        const uint8_t byte = block[48 + 32 * j + i], fifth = uint8_t(block[16 + i] >> 2 * j);  // group g has bit g
        q[64 * j + i] = int8_t((byte & 15) | (fifth & 1) << 4);
        q[64 * j + 32 + i] = int8_t(byte >> 4 | (fifth & 2) << 3);
      }
  }
};

struct Q6_K {
  static constexpr int64_t WEIGHTS = LARGE_BLOCK, GROUP = 16, BYTES = 210, SCALE_AT = 208;
  static constexpr bool FACTORS = true, MINIMA = false;
  static float scale(const uint8_t *block) { return half_at(block + SCALE_AT); }
  static float minimum(const uint8_t *) { return 0; }
  static void minima(const uint8_t *, int16_t *) {}
  static void factors(const uint8_t *block, int16_t *s) {
    for (int g = 0; g < 16; g++) s[g] = int8_t(block[192 + g]);
  }
  static void numbers(const uint8_t *block, int8_t *q) {
    for (int half = 0; half < 2; half++)  // 64 bytes of lower and 32 of upper bits each
      for (int i = 0; i < 32; i++) {
        const uint8_t first = block[64 * half + i], second = block[64 * half + 32 + i];
        const uint8_t upper = block[128 + 32 * half + i];
        int8_t *to = q + 128 * half + i;
        to[0] = int8_t(((first & 15) | (upper & 3) << 4) - 32);
        to[32] = int8_t(((second & 15) | (upper & 12) << 2) - 32);
        to[64] = int8_t((first >> 4 | (upper & 48)) - 32);
        to[96] = int8_t((second >> 4 | (upper & 192) >> 2) - 32);
      }
  }
};

inline bool is_blocks(Type type) { return type >= BLOCKS_Q8_0; }

// Weights that share a scale, and that activations share one for
inline int64_t block_size(Type type) { return type >= BLOCKS_Q4_K ? LARGE_BLOCK : SMALL_BLOCK; }

// Calls action(null pointer to the class) for a block format
template <class Action>
inline auto with_format(Type type, Action action) {
  switch (type) {
    case BLOCKS_Q8_0:
      return action(static_cast<Q8_0 *>(nullptr));
    case BLOCKS_Q4_0:
      return action(static_cast<Q4_0 *>(nullptr));
    case BLOCKS_Q4_1:
      return action(static_cast<Q4_1 *>(nullptr));
    case BLOCKS_Q5_0:
      return action(static_cast<Q5_0 *>(nullptr));
    case BLOCKS_Q5_1:
      return action(static_cast<Q5_1 *>(nullptr));
    case BLOCKS_IQ4_NL:
      return action(static_cast<IQ4_NL *>(nullptr));
    case BLOCKS_Q4_K:
      return action(static_cast<Q4_K *>(nullptr));
    case BLOCKS_Q5_K:
      return action(static_cast<Q5_K *>(nullptr));
    case BLOCKS_Q6_K:
      return action(static_cast<Q6_K *>(nullptr));
    default:
      return action(static_cast<IQ4_XS *>(nullptr));
  }
}

// All weights of a block as float32
template <class F>
inline void block_floats(const uint8_t *block, float *to) {
  int8_t q[F::WEIGHTS];
  int16_t s[F::WEIGHTS / F::GROUP], m[F::WEIGHTS / 32];
  F::numbers(block, q);
  F::factors(block, s);
  F::minima(block, m);
  const float scale = F::scale(block), minimum = F::minimum(block);
  for (int64_t g = 0; g < F::WEIGHTS / F::GROUP; g++) {
    const float by = scale * s[g], less = F::MINIMA ? minimum * m[g * F::GROUP / 32] : 0;
    for (int64_t i = g * F::GROUP; i < (g + 1) * F::GROUP; i++) to[i] = F::MINIMA ? by * q[i] - less : by * q[i];
  }
}

// All weights of a block as whole numbers of 16 bits, q * s: at most 4096 in magnitude where there are factors
template <class F>
inline void block_integers(const uint8_t *block, int16_t *to) {
  int8_t q[F::WEIGHTS];
  F::numbers(block, q);
  if constexpr (!F::FACTORS) {
    for (int64_t i = 0; i < F::WEIGHTS; i++) to[i] = q[i];
    return;
  }
  int16_t s[F::WEIGHTS / F::GROUP];
  F::factors(block, s);
  for (int64_t g = 0; g < F::WEIGHTS / F::GROUP; g++)
    for (int64_t i = g * F::GROUP; i < (g + 1) * F::GROUP; i++) to[i] = int16_t(q[i] * s[g]);
}

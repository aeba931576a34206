// Integer dot products of bytes on aarch64: sdot (FEAT_DotProd) and smmla (FEAT_I8MM), and the numbers of blocks as they
// lie, in registers. What is no such product is written with GCC's vector extension. tests/support/arm_neon.h stands for
// the compiler's header where these are tested on another processor.
#pragma once
#include "blocks/formats.h"

#if defined(__ARM_FEATURE_DOTPROD) && !defined(PLAIN_BLOCKS)
#define HAVE_NEON_DOT 1
#include <arm_neon.h>

typedef int8_t Bytes __attribute__((vector_size(16)));
typedef uint8_t RawBytes __attribute__((vector_size(16)));
typedef uint64_t RawHalves __attribute__((vector_size(16)));
static_assert(LANES == 4, "a vector of integers has 128 bits");

inline Bytes load_bytes(const void *p) {
  Bytes x;
  memcpy(&x, p, sizeof x);
  return x;
}

// sum + products of bytes, four to each lane
inline Ints add_fours(Ints sum, Bytes w, Bytes x) {
  return (Ints)vdotq_s32((int32x4_t)sum, (int8x16_t)w, (int8x16_t)x);
}

// Halves of two vectors side by side: the lower ones, or the upper ones
template <class Vector>
inline Vector lower_halves(Vector a, Vector b) {
  return (Vector)__builtin_shuffle((RawHalves)a, (RawHalves)b, RawHalves{0, 2});
}
template <class Vector>
inline Vector upper_halves(Vector a, Vector b) {
  return (Vector)__builtin_shuffle((RawHalves)a, (RawHalves)b, RawHalves{1, 3});
}

struct Numbers {  // of 32 weights
  Bytes first, second;
};

inline Numbers load_nibbles(const uint8_t *p) {  // 16 bytes -> 16 lower numbers of 4 bits, 16 upper ones
  const RawBytes bytes = (RawBytes)load_bytes(p);
  return {(Bytes)(bytes & 15), (Bytes)(bytes >> 4)};
}

inline Bytes fifth_bits(uint32_t bits) {  // 16 in the bytes whose bit is set
  constexpr uint64_t SPREAD = 0x0101010101010101, EACH = 0x8040201008040201;
  const RawHalves spread = {(bits & 255) * SPREAD, (bits >> 8 & 255) * SPREAD};
  return (Bytes)((RawBytes)(spread & RawHalves{EACH, EACH}) != 0) & 16;
}

inline Numbers with_fifth_bits(Numbers q, const uint8_t *p) {
  uint32_t bits;
  memcpy(&bits, p, 4);
  return {q.first | fifth_bits(bits & 0xffff), q.second | fifth_bits(bits >> 16)};
}

inline Numbers levels(Numbers q) {
  const int8x16_t table = (int8x16_t)load_bytes(LEVELS);
  return {(Bytes)vqtbl1q_s8(table, (uint8x16_t)q.first), (Bytes)vqtbl1q_s8(table, (uint8x16_t)q.second)};
}

// Group g of 32 numbers of a block: F::numbers() of formats.h
template <class F>
inline Numbers load_numbers(const uint8_t *block, int g) {
  if constexpr (std::is_same_v<F, Q8_0>) return {load_bytes(block + 2), load_bytes(block + 18)};
  if constexpr (std::is_same_v<F, Q4_0>) {
    const Numbers q = load_nibbles(block + 2);
    return {q.first - 8, q.second - 8};
  }
  if constexpr (std::is_same_v<F, Q4_1>) return load_nibbles(block + 4);
  if constexpr (std::is_same_v<F, Q5_0>) {
    const Numbers q = with_fifth_bits(load_nibbles(block + 6), block + 2);
    return {q.first - 16, q.second - 16};
  }
  if constexpr (std::is_same_v<F, Q5_1>) return with_fifth_bits(load_nibbles(block + 8), block + 4);
  if constexpr (std::is_same_v<F, IQ4_NL>) return levels(load_nibbles(block + 2));
  if constexpr (std::is_same_v<F, IQ4_XS>) return levels(load_nibbles(block + 8 + 16 * g));
  const auto at = [&](int64_t from) { return (RawBytes)load_bytes(block + from); };
  if constexpr (std::is_same_v<F, Q4_K> || std::is_same_v<F, Q5_K>) {  // 32 bytes have a group below and the next above
    const int64_t from = F::BYTES - 128 + g / 2 * 32;
    const int upper = g % 2 * 4;
    Numbers q = {(Bytes)(at(from) >> upper & 15), (Bytes)(at(from + 16) >> upper & 15)};
    if constexpr (std::is_same_v<F, Q5_K>) {
      q.first |= (Bytes)((at(16) >> g & 1) << 4);
      q.second |= (Bytes)((at(32) >> g & 1) << 4);
    }
    return q;
  }
  if constexpr (std::is_same_v<F, Q6_K>) {
    const int half = g / 4, part = g % 4, upper = part / 2 * 4;
    const int64_t from = 64 * half + part % 2 * 32, rest = 128 + 32 * half;
    const auto number = [&](int64_t i) {
      return (Bytes)((at(from + i) >> upper & 15) | (at(rest + i) >> 2 * part & 3) << 4) - 32;
    };
    return {number(0), number(16)};
  }
}
#endif

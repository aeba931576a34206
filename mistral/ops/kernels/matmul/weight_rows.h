// How the rows of a weight are read, whatever its type: as floats, LANES at a time; where the processor multiplies pairs
// of bfloat16, as 32 of them; those of 8 and 4 bits also as integers of 16 bits, 2 * LANES at a time. `part` and its like
// read from element k on with zeros beyond the end.
#pragma once
#include <algorithm>

#include "kernels.h"
#include "simd.h"

#if defined(__AVX512BF16__) && defined(__AVX512BW__)
#define HAVE_PAIRS 1
using Pairs = __m512bh;
constexpr int64_t PAIRED = 32;  // bfloat16 in a vector
#endif

#if defined(__AVX512BW__) || (defined(__AVX2__) && !defined(__AVX512F__))
#define HAVE_INTEGERS 1
#endif
typedef int16_t Shorts __attribute__((vector_size(LANES * 4)));

// 2 * LANES elements of bfloat16 as floats: the odd ones, then the even ones, in the order of vdpbf16ps
struct Split {
  Floats odd, even;
  Split() {}
  explicit Split(const void *from) {
    Words w;
    memcpy(&w, from, sizeof w);
    odd = (Floats)(w & 0xffff0000), even = (Floats)(w << 16);
  }
};

constexpr int64_t GROUP = 32, BLOCK = 128;  // of quantized weights: those that share a scale; a run of 64 bytes

// How far the integers of a group of 8 bits are shifted, by the last three bits of its scale
constexpr uint16_t SHIFTS[8] = {0, 1, 2, 3, 4, 4, 4, 4};
#define SHIFT_LINE(n) {n, n, n, n, n, n, n, n, n, n, n, n, n, n, n, n, n, n, n, n, n, n, n, n, n, n, n, n, n, n, n, n}
alignas(64) constexpr uint16_t SHIFT_LINES[8][32] = {SHIFT_LINE(0), SHIFT_LINE(1), SHIFT_LINE(2), SHIFT_LINE(3),
                                                     SHIFT_LINE(4), SHIFT_LINE(4), SHIFT_LINE(4), SHIFT_LINE(4)};

// What 16 nibbles stand for under each of 256 scales, before a row's exponent: mistral/quantized.py defines it.
struct Levels {
  alignas(64) float floats[256][16];
  alignas(64) uint16_t halves[256][32];  // as bfloat16, twice: the fifth bit of an index does not count
  alignas(64) int16_t shorts[256][32];   // twice
};
extern const Levels levels;

// What a row's integers count: 2^(exponent - 138)
inline float unit_of(uint8_t exponent) {
  const uint32_t bits = uint32_t(std::max<int>(exponent, 12) - 11) << 23;
  float x;
  memcpy(&x, &bits, 4);
  return x;
}

inline void prefetch(const void *p, int64_t bytes) {
  for (int64_t i = 0; i < bytes; i += 64) __builtin_prefetch(static_cast<const char *>(p) + i, 0, 3);
}

template <class Element>  // float, Bf16 or F16: as they lie
struct DenseRow {
  static constexpr int AT_ONCE = 2;  // rows that a single token meets together
  const Element *data;
  int64_t in;

  DenseRow(Matrix w, int64_t n) : data(static_cast<const Element *>(w.data) + n * w.in), in(w.in) {}
  float factor() const { return 1; }
  int64_t pitch() const { return in; }  // elements from a row to the next
  void fetch(int64_t k, int64_t count) const { prefetch(data + k, count * sizeof(Element)); }
  Floats floats(int64_t k) const { return load(data + k); }
  Floats part(int64_t k) const {
    if (k + LANES <= in) return floats(k);
    Element padded[LANES] = {};
    for (int64_t i = 0; i < LANES && k + i < in; i++) padded[i] = data[k + i];
    return load(padded);
  }
  Split split(int64_t k) const { return Split(data + k); }  // of bfloat16
  Split part_split(int64_t k) const {
    if (k + 2 * LANES <= in) return split(k);
    Element padded[2 * LANES] = {};
    for (int64_t i = 0; i < 2 * LANES && k + i < in; i++) padded[i] = data[k + i];
    return Split(padded);
  }
#ifdef HAVE_PAIRS
  void whole_pairs(int64_t k, Pairs *w) const {
    for (int v = 0; v < 4; v++) w[v] = (Pairs)_mm512_loadu_si512(data + k + 32 * v);
  }
  Pairs part_pairs(int64_t k) const {
    const int64_t left = std::clamp<int64_t>(in - k, 0, 32);
    return (Pairs)_mm512_maskz_loadu_epi16(uint32_t((uint64_t(1) << left) - 1), data + k);
  }
#endif
};

struct Row8 {
  static constexpr int AT_ONCE = 4;
  const int8_t *data;
  const uint8_t *scales;
  int64_t width;
  uint8_t exponent;

  Row8(Matrix w, int64_t n) : width((w.in + GROUP - 1) / GROUP * GROUP), exponent(w.exponents[n]) {
    data = static_cast<const int8_t *>(w.data) + n * width;
    scales = w.scales + n * (width / GROUP);
  }
  float factor() const { return unit_of(exponent); }
  int64_t pitch() const { return width; }
  void fetch(int64_t k, int64_t count) const {
    prefetch(data + k, count);
    prefetch(scales + (k >> 5), count >> 5);
  }
  int shift(int64_t k) const { return SHIFTS[scales[k >> 5] & 7]; }
  Floats floats(int64_t k) const {
    typedef int8_t Bytes __attribute__((vector_size(LANES)));
    Bytes b;
    memcpy(&b, data + k, sizeof b);
    return __builtin_convertvector(__builtin_convertvector(b, Ints) << shift(k), Floats);
  }
  Floats part(int64_t k) const { return k < width ? floats(k) : Floats{}; }
#ifdef HAVE_INTEGERS
  void whole_shorts(int64_t k, Shorts *w) const {
    for (int v = 0; v < 4; v++) w[v] = shorts(k + v * 2 * LANES);
  }
  Shorts shorts(int64_t k) const {
#ifdef __AVX512BW__
    const __m256i b = _mm256_loadu_si256(reinterpret_cast<const __m256i *>(data + k));
    return (Shorts)_mm512_sllv_epi16(_mm512_cvtepi8_epi16(b), _mm512_load_si512(SHIFT_LINES[scales[k >> 5] & 7]));
#else
    const __m128i b = _mm_loadu_si128(reinterpret_cast<const __m128i *>(data + k));
    return (Shorts)_mm256_cvtepi8_epi16(b) << int16_t(shift(k));
#endif
  }
  Shorts part_shorts(int64_t k) const { return k < width ? shorts(k) : Shorts{}; }
#endif
#ifdef HAVE_PAIRS
  Pairs pairs(int64_t k) const {
    const __m256i b = _mm256_loadu_si256(reinterpret_cast<const __m256i *>(data + k));
    const __m512 low = _mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(_mm256_castsi256_si128(b)));
    const __m512 high = _mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(_mm256_extracti128_si256(b, 1)));
    const __m512 by = _mm512_set1_ps(float(1 << shift(k)));
    return _mm512_cvtne2ps_pbh(_mm512_mul_ps(high, by), _mm512_mul_ps(low, by));
  }
  Pairs part_pairs(int64_t k) const { return k < width ? pairs(k) : (Pairs)_mm512_setzero_si512(); }
#endif
};

struct Row4 {
  static constexpr int AT_ONCE = 4;
  const uint16_t *words;
  const uint8_t *scales;
  int64_t width;
  uint8_t exponent;

  Row4(Matrix w, int64_t n) : width((w.in + BLOCK - 1) / BLOCK * BLOCK), exponent(w.exponents[n]) {
    words = static_cast<const uint16_t *>(w.data) + n * (width / 4);
    scales = w.scales + n * (width / GROUP);
  }
  float factor() const { return unit_of(exponent); }
  int64_t pitch() const { return width; }
  void fetch(int64_t k, int64_t count) const {
    prefetch(words + (k >> 2), count >> 1);
    prefetch(scales + (k >> 5), count >> 5);
  }
  const uint16_t *word(int64_t k) const { return words + k / BLOCK * 32 + k % GROUP; }
  int place(int64_t k) const { return k / GROUP % 4 * 4; }  // of a nibble in its word
  Floats floats(int64_t k) const {
    Halves h;
    memcpy(&h, word(k), sizeof h);
    return look_up(levels.floats[scales[k / GROUP]], (__builtin_convertvector(h, Words) >> uint32_t(place(k))) & 15);
  }
  Floats part(int64_t k) const { return k < width ? floats(k) : Floats{}; }
#ifdef __AVX512BW__
  static Shorts find_short(__m512i nibbles, uint8_t scale) {  // the table has everything twice, so four bits of five count
    return (Shorts)_mm512_permutexvar_epi16(nibbles, _mm512_load_si512(levels.shorts[scale]));
  }
  void whole_shorts(int64_t k, Shorts *w) const {
    const __m512i upper_bytes = _mm512_set4_epi32(0x0f0f0d0d, 0x0b0b0909, 0x07070505, 0x03030101);
    const __m512i all = _mm512_loadu_si512(words + (k >> 2));
    const uint8_t *s = scales + (k >> 5);
    w[0] = find_short(all, s[0]);
    w[1] = find_short(_mm512_srli_epi16(all, 4), s[1]);
    const __m512i upper = _mm512_shuffle_epi8(all, upper_bytes);  // a shift would take the port of the products
    w[2] = find_short(upper, s[2]);
    w[3] = find_short(_mm512_srli_epi16(upper, 4), s[3]);
  }
  Shorts shorts(int64_t k) const {
    const __m512i all = _mm512_loadu_si512(word(k));
    return find_short(_mm512_srl_epi16(all, _mm_cvtsi32_si128(place(k))), scales[k / GROUP]);
  }
#elif defined(HAVE_INTEGERS)
  void whole_shorts(int64_t k, Shorts *w) const {
    for (int v = 0; v < 4; v++) w[v] = shorts(k + v * 2 * LANES);
  }
  Shorts shorts(int64_t k) const {  // by bytes: there is no table of words
    const __m256i all = _mm256_loadu_si256(reinterpret_cast<const __m256i *>(word(k))), byte = _mm256_set1_epi16(255);
    const __m256i nibbles = _mm256_and_si256(_mm256_srl_epi16(all, _mm_cvtsi32_si128(place(k))), _mm256_set1_epi16(15));
    const __m256i table = _mm256_load_si256(reinterpret_cast<const __m256i *>(levels.shorts[scales[k / GROUP]]));
    const __m256i parts = _mm256_packus_epi16(_mm256_and_si256(table, byte), _mm256_srli_epi16(table, 8));
    const __m256i bytes = _mm256_permute4x64_epi64(parts, 0xd8);  // 16 lower ones, 16 upper ones
    const __m256i lower = _mm256_shuffle_epi8(_mm256_permute2x128_si256(bytes, bytes, 0), nibbles);
    const __m256i upper = _mm256_shuffle_epi8(_mm256_permute2x128_si256(bytes, bytes, 0x11), nibbles);
    return (Shorts)_mm256_or_si256(_mm256_and_si256(lower, byte), _mm256_slli_epi16(upper, 8));
  }
#endif
#ifdef HAVE_INTEGERS
  Shorts part_shorts(int64_t k) const { return k < width ? shorts(k) : Shorts{}; }
#endif
#ifdef HAVE_PAIRS
  static Pairs find(__m512i nibbles, uint8_t scale) {
    return (Pairs)_mm512_permutexvar_epi16(nibbles, _mm512_load_si512(levels.halves[scale]));
  }
  Pairs part_pairs(int64_t k) const {
    if (k >= width) return (Pairs)_mm512_setzero_si512();
    const __m512i all = _mm512_loadu_si512(word(k));
    return find(_mm512_srl_epi16(all, _mm_cvtsi32_si128(place(k))), scales[k / GROUP]);
  }
#endif
};

// Calls what(row type) for the type of a weight
template <class What>
inline auto with_rows(Type type, What what) {
  switch (type) {
    case FLOAT32: return what(static_cast<DenseRow<float> *>(nullptr));
    case FLOAT16: return what(static_cast<DenseRow<F16> *>(nullptr));
    case BFLOAT16: return what(static_cast<DenseRow<Bf16> *>(nullptr));
    case BITS8: return what(static_cast<Row8 *>(nullptr));
    default: return what(static_cast<Row4 *>(nullptr));
  }
}

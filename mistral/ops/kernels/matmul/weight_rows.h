// A row of a weight W (out, in), decoded on the fly into vectors: one class for each type of weight. The
// microkernels are templates of it, and use these members:
//
//   floats(k)     LANES elements from k on as float32
//   odd_even(k)   2 * LANES elements as float32, in the order of vdpbf16ps (bfloat16 weights only)
//   pairs(k)      32 elements as bfloat16                (where HAVE_BF16)
//   int16(k)      2 * LANES elements as 16-bit integers  (BITS8 and BITS4, where HAVE_INT16)
//   *_run(k, w)   four consecutive vectors at once
//   *_padded(k)   as above, with zeros beyond the end of the row
//   factor()      what the sum of products is multiplied with: 1, or the scale of the row's integers
//   prefetch(k, count)   fetches elements into the cache; may lie beyond the row
//   pitch()       elements from a row to the next
#pragma once
#include <algorithm>

#include "kernels.h"
#include "matmul/codebook.h"
#include "matmul/float8.h"
#include "simd.h"

// 2 * LANES elements of bfloat16 as floats, those at odd indices apart from those at even ones
struct OddEven {
  Floats odd, even;
  OddEven() {}
  explicit OddEven(const void *from) {
    Words w;
    memcpy(&w, from, sizeof w);
    odd = (Floats)(w & 0xffff0000), even = (Floats)(w << 16);
  }
};

// Of quantized weights, as mistral/ops/quantized.py defines them
constexpr int64_t GROUP = 32;   // weights that share a scale
constexpr int64_t BLOCK = 128;  // weights of 4 bits in 32 words of 16 bits: nibble n of word j is weight 32 * n + j

// 8 bits: how far the integers of a group are shifted to the left, by the last three bits of its scale
constexpr uint16_t SHIFTS[8] = {0, 1, 2, 3, 4, 4, 4, 4};
#define SHIFT_LINE(n) \
  { n, n, n, n, n, n, n, n, n, n, n, n, n, n, n, n, n, n, n, n, n, n, n, n, n, n, n, n, n, n, n, n }
alignas(64) constexpr uint16_t SHIFT_LINES[8][32] = {SHIFT_LINE(0), SHIFT_LINE(1), SHIFT_LINE(2), SHIFT_LINE(3),
                                                     SHIFT_LINE(4), SHIFT_LINE(4), SHIFT_LINE(4), SHIFT_LINE(4)};

// The scale of a row's integers: 2^(exponent - 138)
inline float unit_of(uint8_t exponent) {
  const uint32_t bits = uint32_t(std::max<int>(exponent, 12) - 11) << 23;
  float x;
  memcpy(&x, &bits, 4);
  return x;
}

inline void prefetch_bytes(const void *p, int64_t bytes) {
  for (int64_t i = 0; i < bytes; i += 64) __builtin_prefetch(static_cast<const char *>(p) + i, 0, 3);
}

template <class Element>  // float, Bf16 or F16
struct DenseWeightRow {
  static constexpr int ROWS_AT_ONCE = 2;  // rows read side by side for a single token
  const Element *data;
  int64_t in;

  DenseWeightRow(Matrix w, int64_t n) : data(static_cast<const Element *>(w.data) + n * w.in), in(w.in) {}
  float factor() const { return 1; }
  int64_t pitch() const { return in; }
  void prefetch(int64_t k, int64_t count) const { prefetch_bytes(data + k, count * sizeof(Element)); }
  Floats floats(int64_t k) const { return load(data + k); }
  Floats floats_padded(int64_t k) const {
    if (k + LANES <= in) return floats(k);
    Element padded[LANES] = {};
    for (int64_t i = 0; i < LANES && k + i < in; i++) padded[i] = data[k + i];
    return load(padded);
  }
  OddEven odd_even(int64_t k) const { return OddEven(data + k); }
  OddEven odd_even_padded(int64_t k) const {
    if (k + 2 * LANES <= in) return odd_even(k);
    Element padded[2 * LANES] = {};
    for (int64_t i = 0; i < 2 * LANES && k + i < in; i++) padded[i] = data[k + i];
    return OddEven(padded);
  }
#ifdef HAVE_BF16
  void pairs_run(int64_t k, Pairs *w) const {
    for (int v = 0; v < 4; v++) w[v] = (Pairs)_mm512_loadu_si512(data + k + 32 * v);
  }
  Pairs pairs_padded(int64_t k) const {
    const int64_t left = std::clamp<int64_t>(in - k, 0, 32);
    return (Pairs)_mm512_maskz_loadu_epi16(uint32_t((uint64_t(1) << left) - 1), data + k);
  }
#endif
};

struct WeightRow8 {  // int8, shifted by 0 to 4 bits in each group
  static constexpr int ROWS_AT_ONCE = 4;
  const int8_t *data;
  const uint8_t *scales;
  int64_t width;
  uint8_t exponent;

  WeightRow8(Matrix w, int64_t n) : width((w.in + GROUP - 1) / GROUP * GROUP), exponent(w.exponents[n]) {
    data = static_cast<const int8_t *>(w.data) + n * width;
    scales = w.scales + n * (width / GROUP);
  }
  float factor() const { return unit_of(exponent); }
  int64_t pitch() const { return width; }
  void prefetch(int64_t k, int64_t count) const {
    prefetch_bytes(data + k, count);
    prefetch_bytes(scales + (k >> 5), count >> 5);
  }
  int shift(int64_t k) const { return SHIFTS[scales[k >> 5] & 7]; }
  Floats floats(int64_t k) const {
    typedef int8_t Bytes __attribute__((vector_size(LANES)));
    Bytes b;
    memcpy(&b, data + k, sizeof b);
    return __builtin_convertvector(__builtin_convertvector(b, Ints) << shift(k), Floats);
  }
  Floats floats_padded(int64_t k) const { return k < width ? floats(k) : Floats{}; }
#ifdef HAVE_INT16
  void int16_run(int64_t k, Shorts *w) const {
    for (int v = 0; v < 4; v++) w[v] = int16(k + v * 2 * LANES);
  }
  Shorts int16(int64_t k) const {
#ifdef __AVX512BW__
    const __m256i b = _mm256_loadu_si256(reinterpret_cast<const __m256i *>(data + k));
    return (Shorts)_mm512_sllv_epi16(_mm512_cvtepi8_epi16(b), _mm512_load_si512(SHIFT_LINES[scales[k >> 5] & 7]));
#else
    const __m128i b = _mm_loadu_si128(reinterpret_cast<const __m128i *>(data + k));
    return (Shorts)_mm256_cvtepi8_epi16(b) << int16_t(shift(k));
#endif
  }
  Shorts int16_padded(int64_t k) const { return k < width ? int16(k) : Shorts{}; }
#endif
#ifdef HAVE_BF16
  Pairs pairs(int64_t k) const {
    const __m256i b = _mm256_loadu_si256(reinterpret_cast<const __m256i *>(data + k));
    const __m512 low = _mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(_mm256_castsi256_si128(b)));
    const __m512 high = _mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(_mm256_extracti128_si256(b, 1)));
    const __m512 by = _mm512_set1_ps(float(1 << shift(k)));
    return _mm512_cvtne2ps_pbh(_mm512_mul_ps(high, by), _mm512_mul_ps(low, by));
  }
  Pairs pairs_padded(int64_t k) const { return k < width ? pairs(k) : (Pairs)_mm512_setzero_si512(); }
#endif
};

struct WeightRow4 {  // nibbles, decoded by the codebook under the scale of their group
  static constexpr int ROWS_AT_ONCE = 4;
  const uint16_t *words;
  const uint8_t *scales;
  int64_t width;
  uint8_t exponent;

  WeightRow4(Matrix w, int64_t n) : width((w.in + BLOCK - 1) / BLOCK * BLOCK), exponent(w.exponents[n]) {
    words = static_cast<const uint16_t *>(w.data) + n * (width / 4);
    scales = w.scales + n * (width / GROUP);
  }
  float factor() const { return unit_of(exponent); }
  int64_t pitch() const { return width; }
  void prefetch(int64_t k, int64_t count) const {
    prefetch_bytes(words + (k >> 2), count >> 1);
    prefetch_bytes(scales + (k >> 5), count >> 5);
  }
  const uint16_t *word(int64_t k) const { return words + k / BLOCK * 32 + k % GROUP; }
  int bit(int64_t k) const { return k / GROUP % 4 * 4; }  // where the nibble begins in its word
  Floats floats(int64_t k) const {
    HalfWords h;
    memcpy(&h, word(k), sizeof h);
    return look_up(codebook.floats[scales[k / GROUP]], (__builtin_convertvector(h, Words) >> uint32_t(bit(k))) & 15);
  }
  Floats floats_padded(int64_t k) const { return k < width ? floats(k) : Floats{}; }
#ifdef __AVX512BW__
  // Entries of the codebook; of an index only the lower five bits count, and of these the fifth makes no difference
  static Shorts decode_int16(__m512i nibbles, uint8_t scale) {
    return (Shorts)_mm512_permutexvar_epi16(nibbles, _mm512_load_si512(codebook.int16[scale]));
  }
  void int16_run(int64_t k, Shorts *w) const {
    const __m512i upper_bytes = _mm512_set4_epi32(0x0f0f0d0d, 0x0b0b0909, 0x07070505, 0x03030101);
    const __m512i all = _mm512_loadu_si512(words + (k >> 2));
    const uint8_t *s = scales + (k >> 5);
    w[0] = decode_int16(all, s[0]);
    w[1] = decode_int16(_mm512_srli_epi16(all, 4), s[1]);
    const __m512i upper = _mm512_shuffle_epi8(all, upper_bytes);  // a shift would need the products' port
    w[2] = decode_int16(upper, s[2]);
    w[3] = decode_int16(_mm512_srli_epi16(upper, 4), s[3]);
  }
  Shorts int16(int64_t k) const {
    const __m512i all = _mm512_loadu_si512(word(k));
    return decode_int16(_mm512_srl_epi16(all, _mm_cvtsi32_si128(bit(k))), scales[k / GROUP]);
  }
#elif defined(HAVE_INT16)
  void int16_run(int64_t k, Shorts *w) const {
    for (int v = 0; v < 4; v++) w[v] = int16(k + v * 2 * LANES);
  }
  Shorts int16(int64_t k) const {  // AVX2 looks up bytes only: the lower and the upper ones apart
    const __m256i all = _mm256_loadu_si256(reinterpret_cast<const __m256i *>(word(k))), byte = _mm256_set1_epi16(255);
    const __m256i nibbles = _mm256_and_si256(_mm256_srl_epi16(all, _mm_cvtsi32_si128(bit(k))), _mm256_set1_epi16(15));
    const __m256i table = _mm256_load_si256(reinterpret_cast<const __m256i *>(codebook.int16[scales[k / GROUP]]));
    const __m256i parts = _mm256_packus_epi16(_mm256_and_si256(table, byte), _mm256_srli_epi16(table, 8));
    const __m256i bytes = _mm256_permute4x64_epi64(parts, 0xd8);  // the 16 lower ones, then the 16 upper ones
    const __m256i lower = _mm256_shuffle_epi8(_mm256_permute2x128_si256(bytes, bytes, 0), nibbles);
    const __m256i upper = _mm256_shuffle_epi8(_mm256_permute2x128_si256(bytes, bytes, 0x11), nibbles);
    return (Shorts)_mm256_or_si256(_mm256_and_si256(lower, byte), _mm256_slli_epi16(upper, 8));
  }
#endif
#ifdef HAVE_INT16
  Shorts int16_padded(int64_t k) const { return k < width ? int16(k) : Shorts{}; }
#endif
#ifdef HAVE_BF16
  static Pairs decode_bf16(__m512i nibbles, uint8_t scale) {
    return (Pairs)_mm512_permutexvar_epi16(nibbles, _mm512_load_si512(codebook.bf16[scale]));
  }
  Pairs pairs_padded(int64_t k) const {
    if (k >= width) return (Pairs)_mm512_setzero_si512();
    const __m512i all = _mm512_loadu_si512(word(k));
    return decode_bf16(_mm512_srl_epi16(all, _mm_cvtsi32_si128(bit(k))), scales[k / GROUP]);
  }
#endif
};

struct WeightRowFloat8 {  // E4M3, with one scale for the matrix; decoded to 2^-8 of what it stands for
  static constexpr int ROWS_AT_ONCE = 4;
  const uint8_t *data;
  int64_t in;
  float scale;

  WeightRowFloat8(Matrix w, int64_t n) : data(static_cast<const uint8_t *>(w.data) + n * w.in), in(w.in) {
    memcpy(&scale, w.scales, sizeof scale);
  }
  float factor() const { return scale * 256; }
  int64_t pitch() const { return in; }
  void prefetch(int64_t k, int64_t count) const { prefetch_bytes(data + k, count); }
  Floats floats(int64_t k) const { return decode_float8(data + k); }
  Floats floats_padded(int64_t k) const {
    if (k + LANES <= in) return floats(k);
    uint8_t padded[LANES] = {};
    for (int64_t i = 0; i < LANES && k + i < in; i++) padded[i] = data[k + i];
    return decode_float8(padded);
  }
  OddEven odd_even(int64_t k) const { return decode_odd_even(data + k); }
  OddEven odd_even_padded(int64_t k) const {
    if (k + 2 * LANES <= in) return odd_even(k);
    uint8_t padded[2 * LANES] = {};
    for (int64_t i = 0; i < 2 * LANES && k + i < in; i++) padded[i] = data[k + i];
    return decode_odd_even(padded);
  }
  static OddEven decode_odd_even(const uint8_t *from) {
    OddEven x;
    decode_float8_odd_even(from, x.odd, x.even);
    return x;
  }
#ifdef HAVE_BF16
  void pairs_run(int64_t k, Pairs *w) const {
    for (int v = 0; v < 4; v += 2) decode_float8_pairs(data + k + 32 * v, w[v], w[v + 1]);
  }
  Pairs pairs_padded(int64_t k) const {
    const int64_t left = std::clamp<int64_t>(in - k, 0, 32);
    return float8_pairs(_mm256_maskz_loadu_epi8(uint32_t((uint64_t(1) << left) - 1), data + k));
  }
#endif
};

// Calls action(null pointer to the row class) for the type of a weight
template <class Action>
inline auto with_weight_row(Type type, Action action) {
  switch (type) {
    case FLOAT32:
      return action(static_cast<DenseWeightRow<float> *>(nullptr));
    case FLOAT16:
      return action(static_cast<DenseWeightRow<F16> *>(nullptr));
    case BFLOAT16:
      return action(static_cast<DenseWeightRow<Bf16> *>(nullptr));
    case BITS8:
      return action(static_cast<WeightRow8 *>(nullptr));
    case FLOAT8:
      return action(static_cast<WeightRowFloat8 *>(nullptr));
    default:
      return action(static_cast<WeightRow4 *>(nullptr));
  }
}

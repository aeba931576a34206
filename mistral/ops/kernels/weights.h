// How the rows of a weight are read, whatever its type: as floats, LANES at a time, or, where the processor multiplies
// bfloat16, as 32 of them. `part` reads from element k on with zeros beyond the end; `whole` reads four such vectors.
#pragma once
#include <algorithm>

#include "kernels.h"
#include "vector.h"

#if defined(__AVX512BF16__) && defined(__AVX512BW__)
#define HAVE_PAIRS 1
#include <immintrin.h>
using Pairs = __m512bh;
constexpr int64_t PAIRED = 32;  // bfloat16 in a vector
#endif

constexpr int64_t GROUP = 32, BLOCK = 128;  // of quantized weights: those that share a scale; a run of 64 bytes

// What 16 nibbles stand for under each of 256 scales, before a row's exponent: mistral/quantized.py defines it.
struct Levels {
  alignas(64) float floats[256][16];
  alignas(64) uint16_t halves[256][32];  // as bfloat16, twice: the fifth bit of an index does not count
};
extern const Levels levels;

inline void prefetch(const void *p, int64_t bytes) {
  for (int64_t i = 0; i < bytes; i += 64) __builtin_prefetch(static_cast<const char *>(p) + i, 0, 3);
}

template <class Element>  // float, Bf16 or F16: as they lie
struct DenseRow {
  static constexpr int AT_ONCE = 1;  // rows that a single token meets together: one chain of sums keeps up with memory
  const Element *data;
  int64_t in;

  DenseRow(Matrix w, int64_t n) : data(static_cast<const Element *>(w.data) + n * w.in), in(w.in) {}
  float factor() const { return 1; }
  void fetch(int64_t k, int64_t count, int64_t rows) const { prefetch(data + rows * in + k, count * sizeof(Element)); }
  Floats floats(int64_t k) const { return load(data + k); }
  Floats part(int64_t k) const {
    if (k + LANES <= in) return floats(k);
    Element padded[LANES] = {};
    for (int64_t i = 0; i < LANES && k + i < in; i++) padded[i] = data[k + i];
    return load(padded);
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
  static constexpr int AT_ONCE = 2;
  const int8_t *data;
  const uint8_t *scales;
  int64_t width;

  Row8(Matrix w, int64_t n) : width((w.in + GROUP - 1) / GROUP * GROUP) {
    data = static_cast<const int8_t *>(w.data) + n * width;
    scales = w.scales + n * (width / GROUP);
  }
  float factor() const { return 1; }
  void fetch(int64_t k, int64_t count, int64_t rows) const {
    prefetch(data + rows * width + k, count);
    prefetch(scales + (rows * width + k) / GROUP, 1);
  }
  float scale(int64_t k) const {  // 2^(scale - 133)
    const uint32_t bits = uint32_t(std::max<int>(scales[k / GROUP], 6) - 6) << 23;
    float x;
    memcpy(&x, &bits, 4);
    return x;
  }
  Floats floats(int64_t k) const {
    typedef int8_t Bytes __attribute__((vector_size(LANES)));
    Bytes b;
    memcpy(&b, data + k, sizeof b);
    return __builtin_convertvector(__builtin_convertvector(b, Ints), Floats) * scale(k);
  }
  Floats part(int64_t k) const { return k < width ? floats(k) : Floats{}; }
#ifdef HAVE_PAIRS
  Pairs pairs(int64_t k) const {
    const __m256i b = _mm256_loadu_si256(reinterpret_cast<const __m256i *>(data + k));
    const __m512 low = _mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(_mm256_castsi256_si128(b)));
    const __m512 high = _mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(_mm256_extracti128_si256(b, 1)));
    const __m512 by = _mm512_set1_ps(scale(k));
    return _mm512_cvtne2ps_pbh(_mm512_mul_ps(high, by), _mm512_mul_ps(low, by));
  }
  void whole_pairs(int64_t k, Pairs *w) const {
    for (int v = 0; v < 4; v++) w[v] = pairs(k + 32 * v);
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
  float factor() const {
    const uint32_t bits = uint32_t(exponent) << 23;
    float x;
    memcpy(&x, &bits, 4);
    return x;
  }
  void fetch(int64_t k, int64_t count, int64_t rows) const {
    prefetch(words + (rows * width + k) / 4, count / 2);
    prefetch(scales + (rows * width + k) / GROUP, 1);
  }
  Floats floats(int64_t k) const {
    Halves h;
    memcpy(&h, words + k / BLOCK * 32 + k % GROUP, sizeof h);
    const Words nibbles = (__builtin_convertvector(h, Words) >> uint32_t(k / GROUP % 4 * 4)) & 15;
    return look_up(levels.floats[scales[k / GROUP]], nibbles);
  }
  Floats part(int64_t k) const { return k < width ? floats(k) : Floats{}; }
#ifdef HAVE_PAIRS
  static Pairs find(__m512i nibbles, uint8_t scale) {
    return (Pairs)_mm512_permutexvar_epi16(nibbles, _mm512_load_si512(levels.halves[scale]));
  }
  void whole_pairs(int64_t k, Pairs *w) const {
    const __m512i all = _mm512_loadu_si512(words + k / 4);
    const uint8_t *s = scales + k / GROUP;
    w[0] = find(all, s[0]);
    w[1] = find(_mm512_srli_epi16(all, 4), s[1]);
    w[2] = find(_mm512_srli_epi16(all, 8), s[2]);
    w[3] = find(_mm512_srli_epi16(all, 12), s[3]);
  }
  Pairs part_pairs(int64_t k) const {
    if (k >= width) return (Pairs)_mm512_setzero_si512();
    const __m512i all = _mm512_loadu_si512(words + k / BLOCK * 32);
    return find(_mm512_srl_epi16(all, _mm_cvtsi32_si128(int(k / GROUP % 4 * 4))), scales[k / GROUP]);
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

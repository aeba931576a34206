// The two matrix products of a block of keys: scores (n, keys) = Q (n, d) K^T and sums (n, d) += weights (n, keys) V.
// Both are C (n, columns) += A (n, depth) B (depth, columns), where B is packed into strips of NR columns that stay in
// the cache for all n rows of A (as in Goto and van de Geijn, Anatomy of High-Performance Matrix Multiplication, 2008).
//
// Along the depth, products are taken a word at a time. The class M says how: a word is one float (FloatPanel), or two
// bfloat16 that vdpbf16ps multiplies at once (PairPanel). A strip is [word][column]: NR_VECTORS vectors for each word.
#pragma once
#include <algorithm>
#include <type_traits>

#include "simd.h"
#include "transpose.h"

constexpr int NR_VECTORS = 2;               // vectors across a strip
constexpr int64_t NR = NR_VECTORS * LANES;  // columns of a strip
constexpr int MR = LANES == 16 ? 12 : 6;  // rows of A at a time: MR * NR_VECTORS vectors of sums fit into the registers

// The first `left` elements of a row, then zeros
template <class Element, int64_t WIDTH>
struct Padded {
  Element data[WIDTH] = {};
  Padded(const Element *from, int64_t left) {
    if (left > 0) memcpy(data, from, std::min(left, WIDTH) * sizeof(Element));
  }
};

struct FloatPanel {
  using Element = float;              // of A
  using Vector = Floats;              // LANES words
  static constexpr int64_t WORD = 1;  // elements in a word
  static Vector broadcast_word(const float *p) { return broadcast(*p); }
  static Floats add(Floats sum, Vector w, Vector x) { return sum + w * x; }
  // LANES words along a row, of which `left` elements exist
  template <class Stored>
  static Vector load_words(const Stored *row, int64_t left) {
    return left >= LANES ? load(row) : load(Padded<Stored, LANES>(row, left).data);
  }
  // LANES words, each of elements i + lane of WORD rows, of which `left` exist
  template <class Stored>
  static Vector interleave_rows(const Stored *const *rows, int64_t i, int64_t left) {
    return load_words(rows[0] + i, left);
  }
  static void store(float *to, Floats x) { ::store(to, x); }
  template <class Stored>
  static void copy(float *to, const Stored *from, int64_t count) {
    for (int64_t i = 0; i < count; i++) to[i] = to_float(from + i);
  }
};

#ifdef HAVE_BF16
struct PairPanel {
  using Element = uint16_t;
  using Vector = Pairs;
  static constexpr int64_t WORD = 2;
  static Vector broadcast_word(const uint16_t *p) {
    int32_t word;
    memcpy(&word, p, 4);
    return (Pairs)_mm512_set1_epi32(word);
  }
  static Floats add(Floats sum, Vector w, Vector x) { return (Floats)_mm512_dpbf16_ps((__m512)sum, w, x); }
  static Vector load_words(const Bf16 *row, int64_t left) {
    return (Pairs)_mm512_loadu_si512(left >= BF16_LANES ? row : Padded<Bf16, BF16_LANES>(row, left).data);
  }
  static Vector interleave_rows(const Bf16 *const *rows, int64_t i, int64_t left) {
    const auto words = [&](const Bf16 *row) {
      const Bf16 *from = row + i;
      if (left >= LANES) return _mm512_cvtepu16_epi32(_mm256_loadu_si256(reinterpret_cast<const __m256i *>(from)));
      const Padded<Bf16, LANES> padded(from, left);
      return _mm512_cvtepu16_epi32(_mm256_loadu_si256(reinterpret_cast<const __m256i *>(padded.data)));
    };
    return (Pairs)(words(rows[0]) | _mm512_slli_epi32(words(rows[1]), 16));
  }
  static void store(uint16_t *to, Floats x) { store_bf16(to, x); }
  static void copy(uint16_t *to, const Bf16 *from, int64_t count) { memcpy(to, from, count * 2); }
};
#endif

// A packed strip
template <class M>
struct Strip {
  const typename M::Vector *words;
  typename M::Vector at(int64_t s, int v) const { return words[s * NR_VECTORS + v]; }
};

// A strip of rows as they lie: their elements from i on, of which `left` exist
template <class M, class Element>
struct StripOfRows {
  const Element *const *rows;
  int64_t i, left;
  typename M::Vector at(int64_t s, int v) const {
    return M::interleave_rows(rows + s * M::WORD, i + v * LANES, left - v * LANES);
  }
};

// c (R, NR) = or += a (R, words) times a strip; with `begin` the earlier c does not count
template <class M, int R, class Strip>
inline void microkernel(const typename M::Element *a, int64_t a_stride, const Strip &strip, int64_t words, float *c,
                        int64_t c_stride, bool begin) {
  Floats sums[R][NR_VECTORS];
  for (int r = 0; r < R; r++)
    for (int v = 0; v < NR_VECTORS; v++) sums[r][v] = begin ? Floats{} : load(c + r * c_stride + v * LANES);
  for (int64_t s = 0; s < words; s++) {
    typename M::Vector w[NR_VECTORS];
    for (int v = 0; v < NR_VECTORS; v++) w[v] = strip.at(s, v);
#pragma GCC unroll 12
    for (int r = 0; r < R; r++) {
      const auto word = M::broadcast_word(a + r * a_stride + s * M::WORD);
      for (int v = 0; v < NR_VECTORS; v++) sums[r][v] = M::add(sums[r][v], w[v], word);
    }
  }
  for (int r = 0; r < R; r++)
    for (int v = 0; v < NR_VECTORS; v++) store(c + r * c_stride + v * LANES, sums[r][v]);
}

// c (count, NR) = or += a (count, words) times a strip
template <class M, class Strip>
void multiply_strip(const typename M::Element *a, int64_t a_stride, const Strip &strip, int64_t words, float *c,
                    int64_t c_stride, int64_t count, bool begin) {
  int64_t t = 0;
  const auto run = [&](auto rows) {
    for (; t + rows <= count; t += rows)
      microkernel<M, rows>(a + t * a_stride, a_stride, strip, words, c + t * c_stride, c_stride, begin);
  };
  run(std::integral_constant<int, MR>());
  if (LANES == 16) run(std::integral_constant<int, 6>());
  run(std::integral_constant<int, 4>());
  run(std::integral_constant<int, 3>());
  run(std::integral_constant<int, 2>());
  run(std::integral_constant<int, 1>());
}

// c (count, columns) = or += a (count, words) times B (words, columns), packed into columns / NR strips
template <class M>
void multiply_packed(const typename M::Element *a, int64_t a_stride, const typename M::Vector *strips, int64_t words,
                     int64_t columns, float *c, int64_t c_stride, int64_t count, bool begin) {
  for (int64_t i = 0; i < columns; i += NR)
    multiply_strip<M>(a, a_stride, Strip<M>{strips + i / NR * words * NR_VECTORS}, words, c + i, c_stride, count,
                      begin);
}

// The same with rows of B as they lie, of which `dim` columns exist
template <class M, class Element>
void multiply_rows_of(const typename M::Element *a, int64_t a_stride, const Element *const *rows, int64_t words,
                      int64_t dim, int64_t columns, float *c, int64_t c_stride, int64_t count, bool begin) {
  for (int64_t i = 0; i < columns; i += NR)
    multiply_strip<M>(a, a_stride, StripOfRows<M, Element>{rows, i, dim - i}, words, c + i, c_stride, count, begin);
}

// LANES vectors of words -> LANES vectors, NR_VECTORS apart, of which number i has word i of each
template <class Vector>
inline void transpose(Vector *lines, Vector *to) {
#ifdef __AVX512F__
  transpose(reinterpret_cast<__m512i *>(lines));
  for (int i = 0; i < LANES; i++) to[i * NR_VECTORS] = lines[i];
#elif defined(__AVX2__)
  transpose(reinterpret_cast<__m256i *>(lines));
  for (int i = 0; i < LANES; i++) to[i * NR_VECTORS] = lines[i];
#else
  for (int i = 0; i < LANES; i++) {
    Words words;
    for (int n = 0; n < LANES; n++) words[n] = ((Words)lines[n])[i];
    to[i * NR_VECTORS] = (Vector)words;
  }
#endif
}

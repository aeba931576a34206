// Runs of vectors that meet many others: laid out so that a register holds the same word of LANES of them. A word is an
// element where M multiplies floats, and a pair of elements where it multiplies bfloat16.
#pragma once
#include <algorithm>
#include <type_traits>

#include "transpose.h"
#include "matmul/weight_rows.h"

constexpr int ACROSS = 2;                           // registers of one side that meet the other together
constexpr int64_t STRIP = ACROSS * LANES;           // their vectors
constexpr int MOST_TOGETHER = LANES == 16 ? 12 : 6;  // of the other side, whose sums fit into the registers

// The first `left` elements of a vector, zeros beyond
template <class Element, int64_t WIDTH>
struct Padded {
  Element data[WIDTH] = {};
  Padded(const Element *from, int64_t left) {
    if (left > 0) memcpy(data, from, std::min(left, WIDTH) * sizeof(Element));
  }
};

struct FloatPanel {
  using Element = float;
  using Vector = Floats;
  static constexpr int64_t DEPTH = 1;  // elements in a word
  static Vector spread(const float *p) { return broadcast(*p); }
  static Floats add(Floats sum, Vector w, Vector x) { return sum + w * x; }
  // LANES words of a row; a word of DEPTH rows in each lane; `left`: elements that a row has there
  template <class Stored>
  static Vector along(const Stored *row, int64_t left) {
    return left >= LANES ? load(row) : load(Padded<Stored, LANES>(row, left).data);
  }
  template <class Stored>
  static Vector across(const Stored *const *rows, int64_t i, int64_t left) {
    return along(rows[0] + i, left);
  }
  static void keep(float *to, Floats x) { store(to, x); }
  template <class Stored>
  static void copy(float *to, const Stored *from, int64_t count) {
    for (int64_t i = 0; i < count; i++) to[i] = one(from + i);
  }
};

#ifdef HAVE_PAIRS
struct PairPanel {
  using Element = uint16_t;
  using Vector = Pairs;
  static constexpr int64_t DEPTH = 2;
  static Vector spread(const uint16_t *p) {
    int32_t word;
    memcpy(&word, p, 4);
    return (Pairs)_mm512_set1_epi32(word);
  }
  static Floats add(Floats sum, Vector w, Vector x) { return (Floats)_mm512_dpbf16_ps((__m512)sum, w, x); }
  static Vector along(const Bf16 *row, int64_t left) {
    return (Pairs)_mm512_loadu_si512(left >= PAIRED ? row : Padded<Bf16, PAIRED>(row, left).data);
  }
  static Vector across(const Bf16 *const *rows, int64_t i, int64_t left) {
    const auto words = [&](const Bf16 *row) {
      const Padded<Bf16, LANES> padded(row + i, left);
      return _mm512_cvtepu16_epi32(_mm256_loadu_si256(reinterpret_cast<const __m256i *>(padded.data)));
    };
    return (Pairs)(words(rows[0]) | _mm512_slli_epi32(words(rows[1]), 16));
  }
  static void keep(uint16_t *to, Floats x) { store_bf16(to, x); }
  static void copy(uint16_t *to, const Bf16 *from, int64_t count) { memcpy(to, from, count * 2); }
};
#endif

// sums[t][STRIP] (+)= R vectors times a strip, `words` deep
template <class M, int R>
inline void meet_strip(const typename M::Element *x, int64_t x_stride, const typename M::Vector *strip, int64_t words,
                       float *sums, int64_t stride, bool begin) {
  Floats at[R][ACROSS];
  for (int r = 0; r < R; r++)
    for (int v = 0; v < ACROSS; v++) at[r][v] = begin ? Floats{} : load(sums + r * stride + v * LANES);
  for (int64_t s = 0; s < words; s++) {
    typename M::Vector w[ACROSS];
    for (int v = 0; v < ACROSS; v++) w[v] = strip[s * ACROSS + v];
#pragma GCC unroll 12
    for (int r = 0; r < R; r++) {
      const auto word = M::spread(x + r * x_stride + s * M::DEPTH);
      for (int v = 0; v < ACROSS; v++) at[r][v] = M::add(at[r][v], w[v], word);
    }
  }
  for (int r = 0; r < R; r++)
    for (int v = 0; v < ACROSS; v++) store(sums + r * stride + v * LANES, at[r][v]);
}

template <class M>
void meet_panel(const typename M::Element *x, int64_t x_stride, const typename M::Vector *strip, int64_t words,
                float *sums, int64_t stride, int64_t count, bool begin) {
  int64_t t = 0;
  const auto run = [&](auto together) {
    for (; t + together <= count; t += together)
      meet_strip<M, together>(x + t * x_stride, x_stride, strip, words, sums + t * stride, stride, begin);
  };
  run(std::integral_constant<int, MOST_TOGETHER>());
  run(std::integral_constant<int, MOST_TOGETHER / 2>());
  run(std::integral_constant<int, 2>());
  run(std::integral_constant<int, 1>());
}

// A register of each of LANES vectors -> LANES registers `ACROSS` apart, each with a word of all of them
template <class Vector>
inline void turn_over(Vector *lines, Vector *to) {
#ifdef __AVX512F__
  transpose(reinterpret_cast<__m512i *>(lines));
  for (int i = 0; i < LANES; i++) to[i * ACROSS] = lines[i];
#else
  for (int i = 0; i < LANES; i++) {
    Words words;
    for (int n = 0; n < LANES; n++) words[n] = ((Words)lines[n])[i];
    to[i * ACROSS] = (Vector)words;
  }
#endif
}

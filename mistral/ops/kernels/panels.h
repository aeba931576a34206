// Runs of rows that meet many tokens: laid out so that a vector holds the same pair of elements of LANES rows.
#pragma once
#include "products.h"

constexpr int ACROSS = 2;                           // vectors of rows that meet tokens together
constexpr int64_t STRIP = ACROSS * LANES;           // their rows
constexpr int MOST_TOKENS = LANES == 16 ? 12 : 6;  // tokens whose sums fit into the registers

// sums[t][STRIP] (+)= R tokens times a strip, `words` deep
template <class M, int R>
inline void meet(const typename M::Element *x, int64_t x_stride, const typename M::Vector *strip, int64_t words,
                 float *sums, int64_t stride, bool begin) {
  Floats at[R][ACROSS];
  for (int r = 0; r < R; r++)
    for (int v = 0; v < ACROSS; v++) at[r][v] = begin ? Floats{} : load(sums + r * stride + v * LANES);
  for (int64_t s = 0; s < words; s++) {
    typename M::Vector w[ACROSS];
    for (int v = 0; v < ACROSS; v++) w[v] = strip[s * ACROSS + v];
#pragma GCC unroll 12
    for (int r = 0; r < R; r++) {
      const auto token = M::spread(x + r * x_stride + s * M::DEPTH);
      for (int v = 0; v < ACROSS; v++) at[r][v] = M::add(at[r][v], w[v], token);
    }
  }
  for (int r = 0; r < R; r++)
    for (int v = 0; v < ACROSS; v++) store(sums + r * stride + v * LANES, at[r][v]);
}

template <class M>
void meet_all(const typename M::Element *x, int64_t x_stride, const typename M::Vector *strip, int64_t words,
              float *sums, int64_t stride, int64_t tokens, bool begin) {
  int64_t t = 0;
  const auto run = [&](auto count) {
    for (; t + count <= tokens; t += count)
      meet<M, count>(x + t * x_stride, x_stride, strip, words, sums + t * stride, stride, begin);
  };
  run(std::integral_constant<int, MOST_TOKENS>());
  run(std::integral_constant<int, MOST_TOKENS / 2>());
  run(std::integral_constant<int, 2>());
  run(std::integral_constant<int, 1>());
}

// A vector of each of LANES rows -> LANES vectors `ACROSS` apart, each with a word of all rows
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

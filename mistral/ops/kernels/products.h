// The product of a run of weight rows with rows of activations, in floats or in pairs of bfloat16 (M says which).
// Few tokens: weights go from memory through registers. Many: a panel of weights is laid out in the second-level cache
// so that one vector holds the same element, or pair, of LANES rows, and meets one token's after the other.
#pragma once
#include <algorithm>

#include "activations.h"
#include "transpose.h"
#include "weights.h"

struct FloatMath {
  using Element = float;
  using Vector = Floats;
  static constexpr int64_t STEP = LANES, DEPTH = 1;  // elements in a vector of a row; of a row in a word of a panel
  static Vector load(const float *p) { return ::load(p); }
  static Vector spread(const float *p) { return broadcast(*p); }
  static Floats add(Floats sum, Vector w, Vector x) { return sum + w * x; }
  template <class Row>
  static Vector part(const Row &row, int64_t k) {
    return row.part(k);
  }
  template <class Row>
  static void whole(const Row &row, int64_t k, Vector *w) {
    for (int v = 0; v < 4; v++) w[v] = row.floats(k + v * LANES);
  }
};

#ifdef HAVE_PAIRS
struct PairMath {
  using Element = uint16_t;
  using Vector = Pairs;
  static constexpr int64_t STEP = 32, DEPTH = 2;
  static Vector load(const uint16_t *p) { return (Pairs)_mm512_loadu_si512(p); }
  static Vector spread(const uint16_t *p) {
    int32_t word;
    memcpy(&word, p, 4);
    return (Pairs)_mm512_set1_epi32(word);
  }
  static Floats add(Floats sum, Vector w, Vector x) { return (Floats)_mm512_dpbf16_ps((__m512)sum, w, x); }
  template <class Row>
  static Vector part(const Row &row, int64_t k) {
    return row.part_pairs(k);
  }
  template <class Row>
  static void whole(const Row &row, int64_t k, Vector *w) {
    row.whole_pairs(k, w);
  }
};
#endif

// The sum of each of 16 vectors or fewer
template <int N>
inline void sum_each(const Floats *sums, float *totals) {
#ifdef __AVX512F__
  if constexpr (N == 16) {
    __m512i lines[16];
    for (int i = 0; i < N; i++) lines[i] = (__m512i)sums[i];
    transpose(lines);
    Floats total = (Floats)lines[0];
    for (int i = 1; i < N; i++) total += (Floats)lines[i];
    return store(totals, total);
  }
#endif
  for (int i = 0; i < N; i++) totals[i] = sum(sums[i]);
}

template <class M, class Row, int R>  // R: at least the number of tokens; rows of activations beyond are zeros
void few(const typename M::Element *x, int64_t x_stride, Matrix w, int64_t first, int64_t rows, float *y,
         int64_t stride, int64_t tokens) {
  constexpr int C = R == 1 ? 1 : 2, A = R == 1 ? 4 : 1;  // weight rows at once; sums of each
  constexpr int64_t RUN = 4 * M::STEP;
  constexpr int64_t DEPTH = R == 1 ? int64_t(1) << 40 : 32768 / R / sizeof(*x);  // tokens stay in the first-level cache
  for (int64_t begin = 0; begin < w.in; begin += DEPTH) {
    const int64_t end = std::min(w.in, begin + DEPTH);
    for (int64_t n = 0; n < rows; n += C) {
      const Row row[2] = {{w, first + n}, {w, first + std::min(n + C, rows) - 1}};
      Floats sums[R * C][A] = {};
      int64_t k = begin;
      for (; k + RUN <= end; k += RUN) {
        typename M::Vector weights[C][4];
        for (int c = 0; c < C; c++) {
          row[c].fetch(k, RUN, C);
          M::whole(row[c], k, weights[c]);
        }
#pragma GCC unroll 4
        for (int v = 0; v < 4; v++)
#pragma GCC unroll 8
          for (int r = 0; r < R; r++) {
            const auto token = M::load(x + r * x_stride + k + v * M::STEP);
            for (int c = 0; c < C; c++) sums[r * C + c][v % A] = M::add(sums[r * C + c][v % A], weights[c][v], token);
          }
      }
      for (; k < end; k += M::STEP)
        for (int c = 0; c < C; c++) {
          const auto weight = M::part(row[c], k);
          for (int r = 0; r < R; r++)
            sums[r * C + c][0] = M::add(sums[r * C + c][0], weight, M::load(x + r * x_stride + k));
        }
      Floats all[R * C];
      for (int i = 0; i < R * C; i++) {
        all[i] = sums[i][0];
        for (int a = 1; a < A; a++) all[i] += sums[i][a];
      }
      float totals[R * C];
      sum_each<R * C>(all, totals);
      for (int r = 0; r < tokens; r++)
        for (int c = 0; c < C && n + c < rows; c++) {
          float &to = y[r * stride + n + c];
          to = (begin ? to : 0) + totals[r * C + c] * row[c].factor();
        }
    }
  }
}

constexpr int64_t SEVERAL = 4 * FEW;                // tokens for which laying out a panel does not pay
constexpr int ACROSS = 2;                           // vectors of rows that meet tokens together
constexpr int64_t STRIP = ACROSS * LANES;           // their rows
constexpr int MOST_TOKENS = LANES == 16 ? 12 : 6;  // tokens whose sums fit into the registers
constexpr int64_t DEEP = 512;                       // elements of a row in a panel

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

template <class M, class Row>
void many(const typename M::Element *x, int64_t x_stride, Matrix w, int64_t first, int64_t rows, float *y,
          int64_t stride, int64_t tokens) {
  using Vector = typename M::Vector;
  static thread_local Scratch<float> kept_panel;
  static thread_local Scratch<float> kept_sums;
  constexpr int64_t WORDS = DEEP / M::DEPTH;
  const int64_t strips = (rows + STRIP - 1) / STRIP, width = strips * STRIP;
  Vector *panel = reinterpret_cast<Vector *>(kept_panel.get(strips * WORDS * STRIP));
  float *sums = kept_sums.get(tokens * width);
  for (int64_t k = 0; k < w.in; k += DEEP) {
    const int64_t steps = (std::min(DEEP, w.in - k) + M::STEP - 1) / M::STEP;
    for (int64_t n = 0; n < rows; n++) Row(w, first + n).fetch(k + DEEP, DEEP, 0);  // what comes next of each
    for (int64_t n = 0; n < width; n += LANES)
      for (int64_t step = 0; step < steps; step++) {
        Vector lines[LANES];
        for (int64_t i = 0; i < LANES; i++)
          lines[i] = n + i < rows ? M::part(Row(w, first + n + i), k + step * M::STEP) : Vector{};
        turn_over(lines, panel + (n / STRIP * WORDS + step * LANES) * ACROSS + n % STRIP / LANES);
      }
    for (int64_t strip = 0; strip < strips; strip++)
      meet_all<M>(x + k, x_stride, panel + strip * WORDS * ACROSS, steps * LANES, sums + strip * STRIP, width, tokens,
                  k == 0);
  }
  for (int64_t n = 0; n < rows; n++) {
    const float factor = Row(w, first + n).factor();
    if (factor != 1)
      for (int64_t t = 0; t < tokens; t++) sums[t * width + n] *= factor;
  }
  for (int64_t t = 0; t < tokens; t++) memcpy(y + t * stride, sums + t * width, rows * 4);
}

template <class M, class Row>
void rows_product(const Activations &a, Matrix w, int64_t first, int64_t rows, float *y, int64_t stride) {
  const auto *x = static_cast<const typename M::Element *>(a.data);
  if (a.tokens > SEVERAL) return many<M, Row>(x, a.stride, w, first, rows, y, stride, a.tokens);
  if (a.tokens > FEW) {  // weights come once from memory and then from the second-level cache
    for (int64_t n = 0; n < rows; n += 32)
      for (int64_t t = 0; t < a.tokens; t += FEW)
        few<M, Row, FEW>(x + t * a.stride, a.stride, w, first + n, std::min<int64_t>(32, rows - n), y + t * stride + n,
                         stride, std::min(FEW, a.tokens - t));
    return;
  }
  if (a.tokens > 4) return few<M, Row, 8>(x, a.stride, w, first, rows, y, stride, a.tokens);
  if (a.tokens > 2) return few<M, Row, 4>(x, a.stride, w, first, rows, y, stride, a.tokens);
  if (a.tokens > 1) return few<M, Row, 2>(x, a.stride, w, first, rows, y, stride, a.tokens);
  few<M, Row, 1>(x, a.stride, w, first, rows, y, stride, a.tokens);
}

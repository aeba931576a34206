// The product of a run of weight rows with rows of activations, in floats or in pairs of bfloat16 (M says which).
// However many tokens there are, each of their sums is formed in the same order, so that a token's result is the same bit
// for bit in any company: a row is cut into parts, each part is summed in the lanes of one vector, the lanes are summed
// as a tree, and the parts one after the other.
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

// The sum of each of N vectors, in the order of `sum`
template <int N>
inline void sum_each(const Floats *sums, float *totals) {
#ifdef __AVX512F__
  if constexpr (N == 16) {
    Floats lines[16];
    for (int i = 0; i < N; i++) lines[i] = sums[i];
    transpose(reinterpret_cast<__m512i *>(lines));
    for (int width = 8; width; width /= 2)
      for (int i = 0; i < width; i++) lines[i] += lines[i + width];
    return store(totals, lines[0]);
  }
#endif
  for (int i = 0; i < N; i++) totals[i] = sum(sums[i]);
}

template <class M>
constexpr int64_t PART = 32768 / FEW / sizeof(typename M::Element);  // of a row: FEW tokens stay in the first-level cache

// One part, `depth` elements from `k` on, of rows from `first` on, with up to R tokens x; rows of x beyond are zeros.
// y[t][n] (+)= sum * factors[n]
template <class M, class Row, int R, int C>  // C: weight rows at once
void few(const typename M::Element *x, int64_t x_stride, Matrix w, int64_t first, int64_t rows, int64_t begin,
         int64_t depth, const float *factors, float *y, int64_t stride, int64_t tokens, bool add) {
  constexpr int64_t RUN = 4 * M::STEP;
  for (int64_t n = 0; n < rows; n += C) {
    const auto row_at = [&](int64_t c) { return Row(w, first + std::min(n + c, rows - 1)); };
    const Row row[4] = {row_at(0), row_at(1 % C), row_at(2 % C), row_at(3 % C)};
    Floats sums[R * C] = {};
    int64_t k = 0;
    for (; k + RUN <= depth; k += RUN) {
      typename M::Vector weights[C][4];
      for (int c = 0; c < C; c++) {
        row[c].fetch(begin + k, RUN, C);
        M::whole(row[c], begin + k, weights[c]);
      }
#pragma GCC unroll 4
      for (int v = 0; v < 4; v++)
#pragma GCC unroll 8
        for (int r = 0; r < R; r++) {
          const auto token = M::load(x + r * x_stride + k + v * M::STEP);
          for (int c = 0; c < C; c++) sums[r * C + c] = M::add(sums[r * C + c], weights[c][v], token);
        }
    }
    for (; k < depth; k += M::STEP)
      for (int c = 0; c < C; c++) {
        const auto weight = M::part(row[c], begin + k);
        for (int r = 0; r < R; r++) sums[r * C + c] = M::add(sums[r * C + c], weight, M::load(x + r * x_stride + k));
      }
    float totals[R * C];
    sum_each<R * C>(sums, totals);
    for (int r = 0; r < tokens; r++)
      for (int c = 0; c < C && n + c < rows; c++) {
        float &to = y[r * stride + n + c];
        const float total = totals[r * C + c] * factors[n + c];
        to = add ? to + total : total;
      }
  }
}

// Rows of a weight as bfloat16, and as such multiplied
template <class M, class Row>
void expand(Matrix w, int64_t first, int64_t rows, int64_t begin, int64_t depth, uint16_t *to) {
#ifdef HAVE_PAIRS
  for (int64_t n = 0; n < rows; n++)
    for (int64_t k = 0; k < depth; k += PairMath::STEP)
      _mm512_storeu_si512(to + n * PART<PairMath> + k, (__m512i)Row(w, first + n).part_pairs(begin + k));
#endif
}

template <class M, class Row>
void rows_product(const Activations &a, Matrix w, int64_t first, int64_t rows, float *y, int64_t stride) {
  const auto *x = static_cast<const typename M::Element *>(a.data);
  float factors[MOST_ROWS];
  for (int64_t n = 0; n < rows; n++) factors[n] = Row(w, first + n).factor();
  const auto run = [&](auto tokens, auto at_once, int64_t n, int64_t count, int64_t k) {
    few<M, Row, tokens, at_once>(x + k, a.stride, w, first + n, count, k, std::min(PART<M>, w.in - k), factors + n,
                                 y + n, stride, a.tokens, k > 0);
  };
  using std::integral_constant;
  if (a.tokens == 1) {  // row by row, as they lie in memory
    for (int64_t n = 0; n < rows; n += Row::AT_ONCE)
      for (int64_t k = 0; k < w.in; k += PART<M>)
        run(integral_constant<int, 1>(), integral_constant<int, Row::AT_ONCE>(), n,
            std::min<int64_t>(Row::AT_ONCE, rows - n), k);
    return;
  }
  static thread_local Scratch<uint16_t> kept;
  constexpr bool expands = sizeof(typename M::Element) == 2 && !std::is_same_v<Row, DenseRow<Bf16>>;
  uint16_t *wide = expands && a.tokens > FEW ? kept.get(rows * PART<M>) : nullptr;
  for (int64_t k = 0; k < w.in; k += PART<M>) {
    if (a.tokens <= 2) {
      run(integral_constant<int, 2>(), integral_constant<int, 2>(), 0, rows, k);
    } else if (a.tokens <= 4) {
      run(integral_constant<int, 4>(), integral_constant<int, 2>(), 0, rows, k);
    } else if (a.tokens <= FEW) {
      run(integral_constant<int, 8>(), integral_constant<int, 2>(), 0, rows, k);
    } else {  // weights come once from memory and then from the second-level cache
      const int64_t depth = std::min(PART<M>, w.in - k);
      if (wide) expand<M, Row>(w, first, rows, k, depth, wide);
      const Matrix expanded = {wide, nullptr, nullptr, BFLOAT16, rows, PART<M>};
      for (int64_t t = 0; t < a.tokens; t += FEW) {
        const auto *some = x + t * a.stride + k;
        const int64_t count = std::min(FEW, a.tokens - t);
        if constexpr (expands)
          few<M, DenseRow<Bf16>, FEW, 2>(some, a.stride, expanded, 0, rows, 0, depth, factors, y + t * stride, stride,
                                         count, k > 0);
        else
          few<M, Row, FEW, 2>(some, a.stride, w, first, rows, k, depth, factors, y + t * stride, stride, count, k > 0);
      }
    }
  }
}

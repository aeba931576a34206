// The product of a run of weight rows with rows of activations: in floats, in pairs of bfloat16, in floats that are
// split as such pairs are, with the same result, or in integers of 16 bits (M says which). However many tokens there are, each of their sums is formed in the same order, so that a token's
// result is the same bit for bit in any company: a row is cut into parts, each part is summed in the lanes of one vector,
// the lanes are summed as a tree, and the parts one after the other.
#pragma once
#include <algorithm>

#include "matmul/activations.h"
#include "matmul/weight_rows.h"

struct FloatMath {
  using Panel = FloatMath;
  using Element = float;
  using Vector = Floats;
  using Sum = Floats;
  static constexpr int64_t STEP = LANES, PART = 1024;  // elements in a vector of a row; of a row in a part
  static constexpr int AHEAD = 4;                      // vectors of a row that are read together
  static constexpr int SOME = FEW;                     // tokens that have code of their own, fewer than FEW or not
  static constexpr int TOKENS = LANES == 16 ? 6 : 2;   // that meet four rows of a panel in the registers
  static Vector load(const float *p) { return ::load(p); }
  static void store(float *p, Vector x) { ::store(p, x); }
  static Sum add(Sum sum, Vector w, Vector x) { return sum + w * x; }
  static Floats finish(Sum sum) { return sum; }
  template <class Row>
  static Vector part(const Row &row, int64_t k) {
    return row.part(k);
  }
  template <class Row>
  static void whole(const Row &row, int64_t k, Vector *w) {
    for (int v = 0; v < 4; v++) w[v] = row.floats(k + v * LANES);
  }
};

// vdpbf16ps is two of these products: first that of the odd elements, then that of the even ones.
struct SplitMath {
  using Panel = FloatMath;
  using Element = float;
  using Vector = Split;
  using Sum = Floats;
  static constexpr int64_t STEP = 2 * LANES, PART = FloatMath::PART;
  static constexpr int AHEAD = 2;
  static constexpr int SOME = 4;
  static Vector load(const float *p) {
    Split x;
    x.odd = ::load(p), x.even = ::load(p + LANES);
    return x;
  }
  static void store(float *p, Vector x) { ::store(p, x.odd), ::store(p + LANES, x.even); }
  static Sum add(Sum sum, Vector w, Vector x) { return (sum + w.odd * x.odd) + w.even * x.even; }
  static Floats finish(Sum sum) { return sum; }
  template <class Row>
  static Vector part(const Row &row, int64_t k) {
    return row.part_split(k);
  }
  template <class Row>
  static void whole(const Row &row, int64_t k, Vector *w) {
    for (int v = 0; v < AHEAD; v++) w[v] = row.split(k + v * STEP);
  }
};

#ifdef HAVE_PAIRS
struct PairMath {
  using Panel = PairMath;
  using Element = uint16_t;
  using Vector = Pairs;
  using Sum = Floats;
  static constexpr int64_t STEP = PAIRED, PART = SplitMath::PART;
  static constexpr int AHEAD = 4;
  static constexpr int SOME = 2;
  static constexpr int TOKENS = 6;
  static Vector load(const uint16_t *p) { return (Pairs)_mm512_loadu_si512(p); }
  static void store(uint16_t *p, Vector x) { _mm512_storeu_si512(p, (__m512i)x); }
  static Sum add(Sum sum, Vector w, Vector x) { return (Floats)_mm512_dpbf16_ps((__m512)sum, w, x); }
  static Floats finish(Sum sum) { return sum; }
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

#ifdef HAVE_INTEGERS
struct IntegerMath {
  using Panel = IntegerMath;
  using Element = int16_t;
  using Vector = Shorts;
  using Sum = Ints;
  static constexpr int64_t STEP = 2 * LANES, PART = INTEGER_PART;
  static constexpr int AHEAD = 4;
  static constexpr int SOME = 4;
  static constexpr int TOKENS = LANES == 16 ? 6 : 2;
  static Vector load(const int16_t *p) {
    Shorts x;
    memcpy(&x, p, sizeof x);
    return x;
  }
  static void store(int16_t *p, Vector x) { memcpy(p, &x, sizeof x); }
  static Sum add(Sum sum, Vector w, Vector x) {
#ifdef __AVX512VNNI__
    return (Ints)_mm512_dpwssd_epi32((__m512i)sum, (__m512i)w, (__m512i)x);
#elif defined(__AVX512BW__)
    return sum + (Ints)_mm512_madd_epi16((__m512i)w, (__m512i)x);
#else
    return sum + (Ints)_mm256_madd_epi16((__m256i)w, (__m256i)x);
#endif
  }
  static Floats finish(Sum sum) { return __builtin_convertvector(sum, Floats); }
  template <class Row>
  static Vector part(const Row &row, int64_t k) {
    return row.part_shorts(k);
  }
  template <class Row>
  static void whole(const Row &row, int64_t k, Vector *w) {
    row.whole_shorts(k, w);
  }
};
#endif

// The sums of 16 vectors, each in the order of `sum`: that of vector 4 * c + r is element 4 * r + c
inline void sum_sixteen(const Floats *sums, float *totals) {
#ifdef __AVX512F__
  __m512 a[8], b[4], c[2];
  const auto at = [&](int i) { return (__m512)sums[i]; };
  for (int i = 0; i < 8; i++)
    a[i] = _mm512_add_ps(_mm512_shuffle_f32x4(at(2 * i), at(2 * i + 1), 0x44),
                         _mm512_shuffle_f32x4(at(2 * i), at(2 * i + 1), 0xee));
  for (int i = 0; i < 4; i++)
    b[i] = _mm512_add_ps(_mm512_shuffle_f32x4(a[2 * i], a[2 * i + 1], 0x88),
                         _mm512_shuffle_f32x4(a[2 * i], a[2 * i + 1], 0xdd));
  for (int i = 0; i < 2; i++)
    c[i] = _mm512_add_ps(_mm512_shuffle_ps(b[2 * i], b[2 * i + 1], 0x44),
                         _mm512_shuffle_ps(b[2 * i], b[2 * i + 1], 0xee));
  _mm512_storeu_ps(totals, _mm512_add_ps(_mm512_shuffle_ps(c[0], c[1], 0x88), _mm512_shuffle_ps(c[0], c[1], 0xdd)));
#else
  for (int r = 0; r < 4; r++)
    for (int c = 0; c < 4; c++) totals[4 * r + c] = sum(sums[4 * c + r]);
#endif
}

constexpr int64_t STREAM_AHEAD = 2560;  // elements; found by trial, for all types of weights

struct Part {  // of every row: elements [begin, begin + depth)
  int64_t begin, depth;
};

struct Results {  // y[t * stride + n] (+)= sum * scales[t * scale_step] * factors[n]
  float *y;
  int64_t stride;
  const float *factors, *scales;
  int64_t scale_step;
  bool add;

  void put(int64_t t, int64_t n, float sum) const {
    float &to = y[t * stride + n];
    const float total = sum * scales[t * scale_step] * factors[n];
    to = add ? to + total : total;
  }
  void put_four(int64_t t, int64_t n, const float *sums, int64_t rows) const {
    if (rows < 4) {
      for (int64_t c = 0; c < rows; c++) put(t, n + c, sums[c]);
      return;
    }
    typedef float Four __attribute__((vector_size(16)));
    Four four, own, held;
    memcpy(&four, sums, sizeof four);
    memcpy(&own, factors + n, sizeof own);
    memcpy(&held, y + t * stride + n, sizeof held);
    four = four * scales[t * scale_step] * own;
    if (add) four += held;
    memcpy(y + t * stride + n, &four, sizeof four);
  }
};

// Adds to sums[r * C + c] a part of the product of activations r with weight row c, read as it lies; what comes `ahead`
// elements later is fetched meanwhile
template <class M, class Row, int R, int C>
inline void accumulate(const typename M::Element *x, int64_t x_stride, const Row *row, Part part, int64_t ahead,
                       typename M::Sum *sums) {
  static_assert(R * C <= 16);
  constexpr int64_t RUN = M::AHEAD * M::STEP;
  int64_t k = 0;
  for (; k + RUN <= part.depth; k += RUN) {
    typename M::Vector weights[C][M::AHEAD];
#pragma GCC unroll 4
    for (int c = 0; c < C; c++) {
      row[c].fetch(part.begin + k + ahead, RUN);
      M::whole(row[c], part.begin + k, weights[c]);
    }
#pragma GCC unroll 4
    for (int v = 0; v < M::AHEAD; v++)
#pragma GCC unroll 8
      for (int r = 0; r < R; r++) {
        const auto token = M::load(x + r * x_stride + k + v * M::STEP);
#pragma GCC unroll 4
        for (int c = 0; c < C; c++) sums[r * C + c] = M::add(sums[r * C + c], weights[c][v], token);
      }
  }
  for (; k < part.depth; k += M::STEP)
#pragma GCC unroll 4
    for (int c = 0; c < C; c++) {
      const auto weight = M::part(row[c], part.begin + k);
#pragma GCC unroll 8
      for (int r = 0; r < R; r++) sums[r * C + c] = M::add(sums[r * C + c], weight, M::load(x + r * x_stride + k));
    }
}

// R rows of activations (those beyond `tokens` are zeros) with weight rows as they lie, two at once
template <class M, class Row, int R>
void few(const typename M::Element *x, int64_t x_stride, Matrix w, int64_t first, int64_t rows, Part part,
         const Results &results, int64_t tokens) {
  constexpr int C = 2;
  for (int64_t n = 0; n < rows; n += C) {
    const Row row[C] = {Row(w, first + n), Row(w, first + std::min(n + 1, rows - 1))};
    typename M::Sum sums[R * C];
#pragma GCC unroll 16
    for (int i = 0; i < R * C; i++) sums[i] = typename M::Sum{};
    accumulate<M, Row, R, C>(x, x_stride, row, part, C * row[0].pitch(), sums);
    float totals[16];
    Floats some[16];
#pragma GCC unroll 16
    for (int i = 0; i < 16; i++) some[i % 4 * 4 + i / 4] = i < R * C ? M::finish(sums[i % (R * C)]) : Floats{};
    sum_sixteen(some, totals);
    for (int r = 0; r < tokens; r++)
      for (int c = 0; c < C && n + c < rows; c++) results.put(r, n + c, totals[r * C + c]);
  }
}

// One token with weight rows as they lie. Those that are read together are far apart, so that each is a stream which
// goes on from row to row: that is what processors fetch well by themselves.
template <class M, class Row>
void one(const Activations &a, Matrix w, int64_t first, int64_t rows, const float *factors, float *y) {
  constexpr int C = Row::AT_ONCE;
  const auto *x = static_cast<const typename M::Element *>(a.data);
  const int64_t apart = (rows + C - 1) / C;
  for (int64_t n = 0; n < apart; n++) {
    const auto row_at = [&](int64_t c) { return Row(w, first + std::min(n + c * apart, rows - 1)); };
    const Row row[4] = {row_at(0), row_at(1 % C), row_at(2 % C), row_at(3 % C)};
    for (int64_t k = 0; k < w.in; k += M::PART) {
      typename M::Sum sums[C] = {};
      accumulate<M, Row, 1, C>(x + k, 0, row, {k, std::min(M::PART, w.in - k)}, STREAM_AHEAD, sums);
      const Results results = {y, 0, factors, a.scales + k / M::PART * (a.scale_step > 0), a.scale_step, k > 0};
      for (int64_t c = 0; c < C && n + c * apart < rows; c++) results.put(0, n + c * apart, sum(M::finish(sums[c])));
    }
  }
}

// R rows of activations with four rows of a panel
template <class M, int R>
inline void meet(const typename M::Element *x, int64_t x_stride, const typename M::Element *panel, int64_t panel_stride,
                 int64_t n, int64_t depth, const Results &results, int64_t t, int64_t tokens, int64_t rows) {
  typename M::Sum sums[4][R];
#pragma GCC unroll 32
  for (int i = 0; i < 4 * R; i++) sums[i / R][i % R] = typename M::Sum{};
  for (int64_t k = 0; k < depth; k += M::STEP) {
    typename M::Vector weights[4];
    for (int c = 0; c < 4; c++) weights[c] = M::load(panel + (n + c) * panel_stride + k);
#pragma GCC unroll 8
    for (int r = 0; r < R; r++) {
      const auto token = M::load(x + (t + r) * x_stride + k);
      for (int c = 0; c < 4; c++) sums[c][r] = M::add(sums[c][r], weights[c], token);
    }
  }
#pragma GCC unroll 2
  for (int begin = 0; begin < R; begin += 4) {
    Floats some[16];
#pragma GCC unroll 16
    for (int i = 0; i < 16; i++) some[i] = begin + i % 4 < R ? M::finish(sums[i / 4][(begin + i % 4) % R]) : Floats{};
    float totals[16];
    sum_sixteen(some, totals);
    for (int64_t r = begin; r < std::min<int64_t>({begin + 4, R, tokens - t}); r++)
      results.put_four(t + r, n, totals + 4 * (r - begin), rows - n);
  }
}

// Many tokens: a part of the rows comes from memory once, and from the second-level cache again and again
template <class M, class Row>
void many(const typename M::Element *x, int64_t x_stride, Matrix w, int64_t first, int64_t rows, Part part,
          const Results &results, int64_t tokens) {
  static thread_local Scratch<typename M::Element> kept;
  const int64_t stride = M::PART + 64 / sizeof(typename M::Element), full = (rows + 3) / 4 * 4;
  typename M::Element *panel = kept.get(full * stride);
  for (int64_t n = 0; n < full; n++) {
    const Row row(w, first + std::min(n, rows - 1));
    row.fetch(part.begin + (n + 4 < rows ? 4 * row.pitch() : 0), part.depth);
    for (int64_t k = 0; k < part.depth; k += M::STEP) {
      M::store(panel + n * stride + k, M::part(row, part.begin + k));
    }
  }
  constexpr int TOGETHER = M::Panel::TOKENS;
  const int64_t depth = (part.depth + M::STEP - 1) / M::STEP * M::STEP;
  // All tokens are more than the second-level cache holds beside the panel: the next ones come while these are used, a
  // part of them with each four rows.
  constexpr int64_t LINE = 64 / sizeof(typename M::Element);
  const int64_t share = (depth * 4 / full + LINE - 1) / LINE * LINE;
  for (int64_t t = 0; t < tokens; t += TOGETHER)
    for (int64_t n = 0, begin = 0; n < full; n += 4, begin += share) {
      for (int64_t r = t + TOGETHER; r < std::min<int64_t>(t + 2 * TOGETHER, tokens); r++)
        for (int64_t k = begin; k < std::min(begin + share, depth); k += LINE)
          __builtin_prefetch(x + r * x_stride + k, 0, 2);
      meet<typename M::Panel, TOGETHER>(x, x_stride, panel, stride, n, depth, results, t, tokens, rows);
    }
}

template <class M, class Row>
void rows_product(const Activations &a, Matrix w, int64_t first, int64_t rows, float *y, int64_t stride) {
  using std::integral_constant;
  float factors[MOST_ROWS];
  for (int64_t n = 0; n < rows; n++) factors[n] = Row(w, first + n).factor();
  if (a.tokens == 1) return one<M, Row>(a, w, first, rows, factors, y);
  const auto run = [&](auto tokens, int64_t k) {
    const auto *x = static_cast<const typename M::Element *>(a.data) + k;
    const Part part = {k, std::min(M::PART, w.in - k)};
    const Results results = {y, stride, factors, a.scales + k / M::PART * (a.scale_step > 0), a.scale_step, k > 0};
    if constexpr (tokens > FEW)
      many<M, Row>(x, a.stride, w, first, rows, part, results, a.tokens);
    else
      few<M, Row, tokens>(x, a.stride, w, first, rows, part, results, a.tokens);
  };
  // Weights of few bits meet floats so rarely that less code is better than a faster one.
  constexpr bool rare = std::is_same_v<M, FloatMath> && (std::is_same_v<Row, Row8> || std::is_same_v<Row, Row4>);
  for (int64_t k = 0; k < w.in; k += M::PART) {
    if constexpr (!rare) {
      if (a.tokens <= M::SOME) {
        run(integral_constant<int, M::SOME>(), k);
        continue;
      }
      if (a.tokens <= FEW) {
        run(integral_constant<int, FEW>(), k);
        continue;
      }
    }
    run(integral_constant<int, 2 * FEW>(), k);
  }
}

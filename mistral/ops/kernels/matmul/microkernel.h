// The matrix product on one thread: rows of W (out, in) with x (T, in), added in the arithmetic M (arithmetic.h) and
// scaled -> y (T, rows). Weights are decoded from the form in which they lie in the file (weight_rows.h).
//
// Every sum is formed in the same order for any number of tokens, so a token's result is the same bit for bit alone and
// in any batch: a row is cut into blocks of M::K_BLOCK elements, the products of a block are summed in the lanes of one
// vector, the lanes are summed as a tree, and the blocks are added one after the other. Three loops keep this order:
//
//   one_token     a single token: several rows side by side, far apart in memory
//   few_tokens    up to M::TOGETHER tokens, in registers, with some rows as they lie; more tokens in a few such passes
//   many_tokens   more tokens: K_BLOCK columns of the rows are packed into a panel in the second-level cache; a
//                 register-blocked microkernel multiplies NR of its rows with M::MR tokens (as in Goto and van de
//                 Geijn, Anatomy of High-Performance Matrix Multiplication, 2008)
#pragma once
#include <algorithm>

#include "matmul/arithmetic.h"
#include "scratch.h"

constexpr int NR = LANES == 16 ? 4 : 5;  // rows of a panel in a microkernel

// The sums of the lanes of 16 vectors, each in the order of sum(); that of vector 4 * c + r is totals[4 * r + c]
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
    c[i] =
        _mm512_add_ps(_mm512_shuffle_ps(b[2 * i], b[2 * i + 1], 0x44), _mm512_shuffle_ps(b[2 * i], b[2 * i + 1], 0xee));
  _mm512_storeu_ps(totals, _mm512_add_ps(_mm512_shuffle_ps(c[0], c[1], 0x88), _mm512_shuffle_ps(c[0], c[1], 0xdd)));
#else
  for (int r = 0; r < 4; r++)
    for (int c = 0; c < 4; c++) totals[4 * r + c] = sum(sums[4 * c + r]);
#endif
}

// For rows that are read as streams: elements that are prefetched ahead, into the second-level cache, since the first
// has no room for that of eight rows; found by trial, for all types of weights
constexpr int64_t PREFETCH_AHEAD = 1024;
// For few tokens: passes that are faster than a panel; rows that stay in the second-level cache from pass to pass
constexpr int64_t DIRECT_PASSES = 4, CACHED_ROWS = 16;

struct KBlock {  // of every row: elements [begin, begin + depth)
  int64_t begin, depth;
};

// Where sums go: y[t * stride + n] (+)= sum * factors[n]
struct Output {
  float *y;
  int64_t stride;
  const float *factors;  // of weight rows
  bool add;              // to what earlier blocks of K have left there

  void store(int64_t t, int64_t n, float sum) const {
    float &to = y[t * stride + n];
    to = add ? fused(sum, factors[n], to) : sum * factors[n];
  }
  // NR rows from n on, of which only the first `rows` exist
  void store_four(int64_t t, int64_t n, const float *sums, int64_t rows) const {
    if (rows < 4) {
      for (int64_t c = 0; c < rows; c++) store(t, n + c, sums[c]);
      return;
    }
    typedef float Four __attribute__((vector_size(16)));
    Four total, factor, earlier;
    memcpy(&total, sums, sizeof total);
    memcpy(&factor, factors + n, sizeof factor);
    memcpy(&earlier, y + t * stride + n, sizeof earlier);
    if (add)
      for (int i = 0; i < 4; i++) total[i] = fused(total[i], factor[i], earlier[i]);
    else
      total *= factor;
    memcpy(y + t * stride + n, &total, sizeof total);
  }
};

// sums[r * C + c] += x[r] * row[c] over a block of K, for R tokens and C weight rows, each read once. The elements
// `ahead` of those in use are prefetched. x points to the block's first element.
template <class M, int LOCALITY, class WeightRow, int R, int C>
inline void accumulate(const typename M::Element *x, int64_t x_stride, const WeightRow *row, KBlock block,
                       int64_t ahead, typename M::Sum *sums) {
  static_assert(R * C <= 16);
  constexpr int64_t RUN = M::RUN * M::STEP, FETCHED = std::max<int64_t>(RUN, 32);
  int64_t k = 0;
  for (; k + FETCHED <= block.depth; k += FETCHED) {
#pragma GCC unroll 8
    for (int c = 0; c < C; c++) row[c].template prefetch<LOCALITY>(block.begin + k + ahead, FETCHED);
#pragma GCC unroll 2
    for (int64_t run = k; run < k + FETCHED; run += RUN) {
      typename M::Vector weights[C][M::RUN];
#pragma GCC unroll 8
      for (int c = 0; c < C; c++) M::load_run(row[c], block.begin + run, weights[c]);
#pragma GCC unroll 4
      for (int v = 0; v < M::RUN; v++) {
        if constexpr (R > 1 && LANES == 16)  // a weight that crosses a cache line is slow to load for each token anew
#pragma GCC unroll 8
          for (int c = 0; c < C; c++) weights[c][v] = computed(weights[c][v]);
#pragma GCC unroll 8
        for (int r = 0; r < R; r++) {
          const auto token = M::load(x + r * x_stride + run + v * M::STEP);
#pragma GCC unroll 8
          for (int c = 0; c < C; c++) sums[r * C + c] = M::add(sums[r * C + c], weights[c][v], token);
        }
      }
    }
  }
  for (; k < block.depth; k += M::STEP)
#pragma GCC unroll 8
    for (int c = 0; c < C; c++) {
      row[c].template prefetch<LOCALITY>(block.begin + k + ahead, M::STEP);
      const auto weight = M::load_padded(row[c], block.begin + k);
#pragma GCC unroll 8
      for (int r = 0; r < R; r++) sums[r * C + c] = M::add(sums[r * C + c], weight, M::load(x + r * x_stride + k));
    }
}

// x (R, in), of which rows from `tokens` on are zeros, with weight rows as they lie, C at a time: neighbours, or as
// STREAMS, which go on from row to row, far apart in memory, as hardware prefetchers follow them well. A function of
// its own, or GCC would not keep all sums in the registers of AVX2.
template <class M, class WeightRow, int R, bool STREAMS>
[[gnu::noinline]] void few_tokens(const typename M::Element *x, int64_t x_stride, Matrix w, int64_t first, int64_t rows,
                                  KBlock block, int64_t ahead, const Output &output, int64_t tokens) {
  // As many sums as keep the processor's adders busy, and as there are registers for
  constexpr int C = LANES == 16 && R <= 4 ? 4 : 2;
  const int64_t groups = (rows + C - 1) / C, apart = STREAMS ? groups : 1, step = STREAMS ? 1 : C;
  for (int64_t group = 0; group < groups; group++) {
    const int64_t n = group * step;
    WeightRow row[C];
    for (int64_t c = 0; c < C; c++) row[c] = WeightRow(w, first + std::min(n + c * apart, rows - 1));
    typename M::Sum sums[R * C];
#pragma GCC unroll 16
    for (int i = 0; i < R * C; i++) sums[i] = typename M::Sum{};
    accumulate<M, 2, WeightRow, R, C>(x, x_stride, row, block, ahead, sums);
    float totals[16];
    Floats lanes[16];
#pragma GCC unroll 16
    for (int i = 0; i < 16; i++) lanes[i % 4 * 4 + i / 4] = i < R * C ? M::finish(sums[i % (R * C)]) : Floats{};
    sum_sixteen(lanes, totals);
    for (int r = 0; r < tokens; r++)
      for (int c = 0; c < C && n + c * apart < rows; c++) output.store(r, n + c * apart, totals[r * C + c]);
  }
}

// All tokens in passes of few_tokens, each with CACHED_ROWS rows that stay in the second-level cache from pass to pass.
// Rows of one block are read as streams through all rows.
template <class M, class WeightRow, bool STREAMS>
void few_tokens_in_passes(const Activations &a, Matrix w, int64_t first, int64_t rows, const float *factors, float *y,
                          int64_t stride) {
  const auto *x = static_cast<const typename M::Element *>(a.data);
  const int64_t at_once = STREAMS ? rows : CACHED_ROWS, next_rows = CACHED_ROWS * w.in;
  for (int64_t n = 0; n < rows; n += at_once)
    for (int64_t k = 0; k < w.in; k += M::K_BLOCK) {
      const KBlock block = {k, std::min(M::K_BLOCK, w.in - k)};
      // The next block of these rows, which is as long, or the first of the next rows; or this block of the next rows
      const int64_t ahead = STREAMS                  ? PREFETCH_AHEAD
                            : w.in % M::K_BLOCK      ? next_rows
                            : k + M::K_BLOCK == w.in ? next_rows - k
                                                     : M::K_BLOCK;
      for (int64_t t = 0; t < a.tokens; t += M::TOGETHER) {
        const Output output = {y + t * stride + n, stride, factors + n, k > 0};
        const int64_t left = a.tokens - t, count = std::min(at_once, rows - n);
        const auto pass = left <= M::SMALL_BATCH ? few_tokens<M, WeightRow, M::SMALL_BATCH, STREAMS>
                                                 : few_tokens<M, WeightRow, M::TOGETHER, STREAMS>;
        pass(x + t * a.stride + k, a.stride, w, first + n, count, block, ahead, output,
             std::min<int64_t>(left, M::TOGETHER));
      }
    }
}

// x (1, in) with weight rows as they lie. The C rows that are read side by side are `apart` rows from one another, so
// that each is a sequential stream that goes on from row to row, which hardware prefetchers follow well.
template <class M, class WeightRow>
void one_token(const Activations &a, Matrix w, int64_t first, int64_t rows, const float *factors, float *y) {
  constexpr int C = std::max(WeightRow::ROWS_AT_ONCE, M::ROWS_AT_ONCE);
  const auto *x = static_cast<const typename M::Element *>(a.data);
  const int64_t apart = (rows + C - 1) / C;
  for (int64_t n = 0; n < apart; n++) {
    WeightRow row[C];
    for (int64_t c = 0; c < C; c++) row[c] = WeightRow(w, first + std::min(n + c * apart, rows - 1));
    for (int64_t k = 0; k < w.in; k += M::K_BLOCK) {
      typename M::Sum sums[C] = {};
      accumulate<M, 2, WeightRow, 1, C>(x + k, 0, row, {k, std::min(M::K_BLOCK, w.in - k)}, PREFETCH_AHEAD, sums);
      const Output output = {y, 0, factors, k > 0};
      for (int64_t c = 0; c < C && n + c * apart < rows; c++) output.store(0, n + c * apart, sum(M::finish(sums[c])));
    }
  }
}

// Tokens t to t + R with rows n to n + NR of a panel, `depth` elements: NR * R vectors of sums stay in registers. Of
// the results only those of the first `tokens` and `rows` are stored.
template <class M, int R>
inline void microkernel(const typename M::Element *x, int64_t x_stride, const typename M::Element *panel,
                        int64_t panel_stride, int64_t n, int64_t depth, const Output &output, int64_t t, int64_t tokens,
                        int64_t rows) {
  typename M::Sum sums[NR][R];
#pragma GCC unroll 32
  for (int i = 0; i < NR * R; i++) sums[i / R][i % R] = typename M::Sum{};
  for (int64_t k = 0; k < depth; k += M::STEP) {
    if constexpr (NR > R) {
      typename M::Vector token[R];
      for (int r = 0; r < R; r++) token[r] = M::load(x + (t + r) * x_stride + k);
#pragma GCC unroll 8
      for (int c = 0; c < NR; c++) {
        const auto weight = computed(M::load(panel + (n + c) * panel_stride + k));
        for (int r = 0; r < R; r++) sums[c][r] = M::add(sums[c][r], weight, token[r]);
      }
      continue;
    }
    typename M::Vector weights[NR];
    for (int c = 0; c < NR; c++) weights[c] = M::load(panel + (n + c) * panel_stride + k);
#pragma GCC unroll 8
    for (int r = 0; r < R; r++) {
      const auto token = M::load(x + (t + r) * x_stride + k);
      for (int c = 0; c < NR; c++) sums[c][r] = M::add(sums[c][r], weights[c], token);
    }
  }
  if constexpr (LANES < 16) {
    for (int r = 0; r < R && t + r < tokens; r++)
#pragma GCC unroll 8
      for (int c = 0; c < NR; c++)
        if (n + c < rows) output.store(t + r, n + c, sum(M::finish(sums[c][r])));
    return;
  }
#pragma GCC unroll 2
  for (int begin = 0; begin < R; begin += 4) {
    Floats lanes[16];
#pragma GCC unroll 16
    for (int i = 0; i < 16; i++)
      lanes[i] = begin + i % 4 < R ? M::finish(sums[i / 4 % NR][(begin + i % 4) % R]) : Floats{};
    float totals[16];
    sum_sixteen(lanes, totals);
    for (int64_t r = begin; r < std::min<int64_t>({begin + 4, R, tokens - t}); r++)
      output.store_four(t + r, n, totals + 4 * (r - begin), rows - n);
  }
}

// x (T, in) with a block of K of the rows, packed into a panel: read from memory once, and from the second-level cache
// for every MR tokens
template <class M, class WeightRow>
void many_tokens(const typename M::Element *x, int64_t x_stride, Matrix w, int64_t first, int64_t rows, KBlock block,
                 const Output &output, int64_t tokens) {
  static thread_local Scratch<typename M::Element> panel_buffer;
  const int64_t stride = M::K_BLOCK + 64 / sizeof(typename M::Element), full = (rows + NR - 1) / NR * NR;
  typename M::Element *panel = panel_buffer.get(full * stride);
  for (int64_t n = 0; n < full; n++) {  // the last row is repeated up to a multiple of NR
    const WeightRow row(w, first + std::min(n, rows - 1));
    row.template prefetch<3>(block.begin + (n + NR < rows ? NR * row.pitch() : 0), block.depth);
    for (int64_t k = 0; k < block.depth; k += M::STEP) {
      M::store(panel + n * stride + k, M::load_padded(row, block.begin + k));
    }
  }
  constexpr int MR = M::Panel::MR;
  const int64_t depth = (block.depth + M::STEP - 1) / M::STEP * M::STEP;
  // The second-level cache does not hold the panel and all tokens. So the next MR tokens are prefetched while these are
  // multiplied, a share of each with every NR rows.
  constexpr int64_t LINE = 64 / sizeof(typename M::Element);
  const int64_t share = (depth * NR / full + LINE - 1) / LINE * LINE;
  if constexpr (LANES < 16) {
    constexpr int64_t AT_ONCE = 32;
    for (int64_t from = 0; from < tokens; from += AT_ONCE)
      for (int64_t n = 0; n < full; n += NR)
        for (int64_t t = from; t < std::min(from + AT_ONCE, tokens); t += MR)
          microkernel<typename M::Panel, MR>(x, x_stride, panel, stride, n, depth, output, t, tokens, rows);
    return;
  }
  for (int64_t t = 0; t < tokens; t += MR)
    for (int64_t n = 0, begin = 0; n < full; n += NR, begin += share) {
      for (int64_t r = t + MR; r < std::min<int64_t>(t + 2 * MR, tokens); r++)
        for (int64_t k = begin; k < std::min(begin + share, depth); k += LINE)
          __builtin_prefetch(x + r * x_stride + k, 0, 2);
      microkernel<typename M::Panel, MR>(x, x_stride, panel, stride, n, depth, output, t, tokens, rows);
    }
}

// Rows [first, first + rows) of W with all tokens, by the loop that suits their number: y[t * stride + i]
template <class M, class WeightRow>
void multiply_rows_with(const Activations &a, Matrix w, int64_t first, int64_t rows, float *y, int64_t stride) {
  using std::integral_constant;
  float factors[MAX_ROWS];
  for (int64_t n = 0; n < rows; n++) factors[n] = WeightRow(w, first + n).factor();
  if (a.tokens == 1) return one_token<M, WeightRow>(a, w, first, rows, factors, y);
  // These are multiplied as floats only where `precise` or the processor asks for it: one loop is enough there.
  constexpr bool rare = std::is_same_v<M, FloatMath> && WeightRow::RARELY_FLOAT;
  const auto *x = static_cast<const typename M::Element *>(a.data);
  if constexpr (!rare)
    if (a.tokens <= DIRECT_PASSES * M::TOGETHER)
      return w.in <= M::K_BLOCK ? few_tokens_in_passes<M, WeightRow, true>(a, w, first, rows, factors, y, stride)
                                : few_tokens_in_passes<M, WeightRow, false>(a, w, first, rows, factors, y, stride);
  for (int64_t k = 0; k < w.in; k += M::K_BLOCK) {
    const KBlock block = {k, std::min(M::K_BLOCK, w.in - k)};
    many_tokens<M, WeightRow>(x + k, a.stride, w, first, rows, block, {y, stride, factors, k > 0}, a.tokens);
  }
}

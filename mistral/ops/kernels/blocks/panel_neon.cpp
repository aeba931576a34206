// Panels of bytes for aarch64: see panel.h. By smmla, which multiplies eight columns of two rows with those of two
// tokens, where the processor has it; else by sdot, which multiplies four columns of four rows with those of a token.
#if defined(__ARM_FEATURE_DOTPROD) && !defined(PLAIN_BLOCKS)
#include "blocks/dot_neon.h"
#include "blocks/panel.h"

namespace {

constexpr int64_t STEP = 16;  // columns

#ifdef __ARM_FEATURE_MATMUL_INT8
constexpr int64_t SIDE_BY_SIDE = 8;  // columns of a row
// 16 columns of LANES rows as they lie -> [eight columns][row][8], STRIP rows apart
inline void interleave_columns(const int8_t *lines, int64_t line_bytes, int8_t *to) {
  for (int i = 0; i < LANES; i += 2) {
    const Bytes row = load_bytes(lines + i * line_bytes), next = load_bytes(lines + (i + 1) * line_bytes);
    const Bytes lower = lower_halves(row, next), upper = upper_halves(row, next);
    memcpy(to + 8 * i, &lower, 16);
    memcpy(to + 8 * (STRIP + i), &upper, 16);
  }
}

// Integer sums of R tokens with the rows of a strip. A vector has those of two tokens with two rows.
template <int R>
struct Sums {
  static constexpr int PAIRS = (R + 1) / 2;
  Ints at[PAIRS][STRIP / 2] = {};

  // Adds the products of STEP columns
  void add(const int8_t *words, const int8_t *x) {
    Bytes halves[2][PAIRS];
#pragma GCC unroll 4
    for (int p = 0; p < PAIRS; p++) {  // without a second token of a pair, the first one again
      const Bytes token = load_bytes(x + 2 * p * CHUNK), next = load_bytes(x + std::min(2 * p + 1, R - 1) * CHUNK);
      halves[0][p] = lower_halves(token, next), halves[1][p] = upper_halves(token, next);
    }
#pragma GCC unroll 2
    for (int h = 0; h < 2; h++)
#pragma GCC unroll 8
      for (int i = 0; i < STRIP / 2; i++) {
        const Bytes w = load_bytes(words + (h * STRIP + 2 * i) * 8);
#pragma GCC unroll 4
        for (int p = 0; p < PAIRS; p++)
          at[p][i] = (Ints)vmmlaq_s32((int32x4_t)at[p][i], (int8x16_t)halves[h][p], (int8x16_t)w);
      }
  }

  // Lanes: token r with the rows of vector v
  Ints row(int r, int v) const {
    const Ints first = at[r / 2][2 * v], second = at[r / 2][2 * v + 1];
    return r % 2 ? upper_halves(first, second) : lower_halves(first, second);
  }
};
#else
constexpr int64_t SIDE_BY_SIDE = 4;
// 16 columns of LANES rows as they lie -> [four columns][row][4], STRIP rows apart
inline void interleave_columns(const int8_t *lines, int64_t line_bytes, int8_t *to) {
  transpose_words(lines, line_bytes, to, STRIP * 4);
}

// Integer sums of R tokens with the rows of a strip
template <int R>
struct Sums {
  Ints at[R][VECTORS] = {};

  template <int J>
  void add_words(const int8_t *words, const Bytes *x) {
#pragma GCC unroll 2
    for (int v = 0; v < VECTORS; v++) {
      const Bytes w = load_bytes(words + (J * STRIP + v * LANES) * 4);
#pragma GCC unroll 8
      for (int r = 0; r < R; r++)
        at[r][v] = (Ints)vdotq_laneq_s32((int32x4_t)at[r][v], (int8x16_t)w, (int8x16_t)x[r], J);
    }
  }

  // Adds the products of STEP columns
  void add(const int8_t *words, const int8_t *x) {
    Bytes tokens[R];
#pragma GCC unroll 8
    for (int r = 0; r < R; r++) tokens[r] = load_bytes(x + r * CHUNK);
    add_words<0>(words, tokens);
    add_words<1>(words, tokens);
    add_words<2>(words, tokens);
    add_words<3>(words, tokens);
  }

  // Lanes: token r with the rows of vector v
  Ints row(int r, int v) const { return at[r][v]; }
};
#endif

template <class F>
struct NeonPanel {
  using Format = F;
  using Element = int8_t;
  static constexpr int64_t GROUPS = F::WEIGHTS / F::GROUP;
  static constexpr int MR = F::FACTORS ? 4 : 8;  // tokens at a time: sums and totals stay in 32 registers

  alignas(64) int8_t lines[LANES][CHUNK];          // rows as they lie
  alignas(64) int8_t words[CHUNK / STEP][STEP * STRIP];  // [16 columns][SIDE_BY_SIDE of them][row][SIDE_BY_SIDE]
  alignas(64) int32_t factors[GROUPS][STRIP];
  Scales scales;

  void pack(const uint8_t *block, int64_t b, int64_t row) {
    int8_t *to = lines[row % LANES] + b * F::WEIGHTS;
#pragma GCC unroll 8
    for (int g = 0; g < F::WEIGHTS / 32; g++) {
      const Numbers q = load_numbers<F>(block, g);
      memcpy(to + 32 * g, &q, sizeof q);
    }
    scales.pack<F>(block, b, row);
    if constexpr (F::FACTORS) {
      int16_t s[GROUPS];
      F::factors(block, s);
      for (int64_t g = 0; g < GROUPS; g++) factors[g][row] = s[g];
    }
  }

  void interleave(int64_t v, int64_t depth) {
    for (int64_t k = 0; k < depth; k += STEP)
      interleave_columns(lines[0] + k, sizeof lines[0], words[k / STEP] + v * LANES * SIDE_BY_SIDE);
  }

  void multiply(const int8_t *x, const TokenScales *x_scales, int64_t tokens, int64_t depth, bool add,
                float *results) const {
    multiply_tokens<MR>(*this, x, x_scales, tokens, depth, add, results);
  }

  // results[r * STRIP + row] (+)= the products with R tokens
  template <int R>
  void microkernel(const int8_t *x, const TokenScales *x_scales, int64_t depth, bool add, float *results) const {
    for (int64_t b = 0; b < depth / F::WEIGHTS; b++) {
      Ints totals[R][VECTORS] = {};
      for (int64_t g = 0; g < GROUPS; g++) {
        Sums<R> sums;
#pragma GCC unroll 2
        for (int64_t i = 0; i < F::GROUP / STEP; i++) {
          const int64_t step = (b * F::WEIGHTS + g * F::GROUP) / STEP + i;
          sums.add(words[step], x + step * STEP);
        }
#pragma GCC unroll 2
        for (int v = 0; v < VECTORS; v++) {
          const Ints factor = F::FACTORS ? load_integers(factors[g] + v * LANES) : Ints{} + 1;
#pragma GCC unroll 8
          for (int r = 0; r < R; r++)
            totals[r][v] = F::FACTORS ? totals[r][v] + sums.row(r, v) * factor : sums.row(r, v);
        }
      }
      add_blocks<F, R>(scales, x_scales, b, totals, add, results);
    }
  }
};

}  // namespace

void multiply_blocks_neon(const Activations &x, Matrix w, int64_t first, int64_t rows, float *y, int64_t stride) {
  with_format(w.type, [&](auto *format) {
    multiply_ranges<NeonPanel<std::remove_pointer_t<decltype(format)>>>(x, w, first, rows, y, stride);
  });
}
#endif

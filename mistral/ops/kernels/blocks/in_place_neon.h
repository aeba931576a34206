// The product of a few weight rows in blocks, as they lie, with few tokens by sdot: what in_place.cpp calls for every
// few tokens. A lane of the float sums belongs to a row. The definition is in activations.h.
#pragma once
#include <algorithm>

#include "blocks/dot_neon.h"

#ifdef HAVE_NEON_DOT
constexpr int NEON_ROWS = 4;               // side by side
constexpr int64_t NEON_AHEAD = 1024;       // bytes along a row that are fetched ahead
static_assert(NEON_ROWS == LANES);

// Lanes: the sums of the lanes of four vectors
inline Ints sum_four(const Ints *x) {
  const int32x4_t first = vpaddq_s32((int32x4_t)x[0], (int32x4_t)x[1]);
  return (Ints)vpaddq_s32(first, vpaddq_s32((int32x4_t)x[2], (int32x4_t)x[3]));
}

// Lanes: for each of NEON_ROWS rows the sum of (q * s) x over a block, for R tokens, each with its integers at `x`
template <class F, int R, class Block>
inline void block_sums(const uint8_t *const *blocks, const Block *tokens, Ints *sums) {
  Ints lanes[R][NEON_ROWS];
#pragma GCC unroll 1
  for (int c = 0; c < NEON_ROWS; c++) {
    Ints row[R] = {};
    int16_t factors[F::WEIGHTS / F::GROUP];
    F::factors(blocks[c], factors);
#pragma GCC unroll 2
    for (int g = 0; g < F::WEIGHTS / 32; g++) {
      const Numbers w = load_numbers<F>(blocks[c], g);
#pragma GCC unroll 4
      for (int r = 0; r < R; r++) {
        const Bytes first = load_bytes(tokens[r].x + 32 * g), second = load_bytes(tokens[r].x + 32 * g + 16);
        if constexpr (F::GROUP == 16) {
          row[r] = computed(row[r] + add_fours(Ints{}, w.first, first) * int32_t(factors[2 * g]));
          row[r] = computed(row[r] + add_fours(Ints{}, w.second, second) * int32_t(factors[2 * g + 1]));
        } else if constexpr (F::FACTORS) {
          const Ints sum = add_fours(add_fours(Ints{}, w.first, first), w.second, second);
          row[r] = computed(row[r] + sum * int32_t(factors[g]));
        } else {
          row[r] = add_fours(add_fours(Ints{}, w.first, first), w.second, second);
        }
      }
    }
    for (int r = 0; r < R; r++) lanes[r][c] = row[r];
  }
  for (int r = 0; r < R; r++) sums[r] = sum_four(lanes[r]);
}

// The minima of a block of NEON_ROWS rows, whole numbers of every 32 weights
template <class F>
struct Minima {
  Ints m[NEON_ROWS][2];
  explicit Minima([[maybe_unused]] const uint8_t *const *blocks) {
    if constexpr (F::FACTORS)
      for (int c = 0; c < NEON_ROWS; c++) {
        int16_t narrow[8];
        F::minima(blocks[c], narrow);
        for (int g = 0; g < 8; g++) m[c][g / 4][g % 4] = narrow[g];
      }
  }

  // Lanes: for each row the sum of m x over the block, with sums of x as it has them
  Ints times(const int16_t *sums) const {
    if constexpr (!F::FACTORS) return Ints{} + sums[0];
    Ints first, second, lanes[NEON_ROWS];  // sums over every 16
    memcpy(&first, sums, sizeof first);
    memcpy(&second, sums + 8, sizeof second);
    first = (first << 16 >> 16) + (first >> 16);
    second = (second << 16 >> 16) + (second >> 16);
    for (int c = 0; c < NEON_ROWS; c++) lanes[c] = m[c][0] * first + m[c][1] * second;
    return sum_four(lanes);
  }
};

template <class F, int R, class Tokens>
void multiply_neon(const Tokens &x, const uint8_t *weights, int64_t row_bytes, int64_t rows, float *y,
                      int64_t stride) {
  const int64_t apart = (rows + NEON_ROWS - 1) / NEON_ROWS, count = row_bytes / F::BYTES;
  for (int64_t n = 0; n < apart; n++) {
    const uint8_t *blocks[NEON_ROWS];
    for (int c = 0; c < NEON_ROWS; c++) blocks[c] = weights + std::min(n + c * apart, rows - 1) * row_bytes;
    Floats y_lanes[R] = {};
    for (int64_t b = 0; b < count; b++) {
      decltype(x.at(0, b)) tokens[R];
      for (int r = 0; r < R; r++) tokens[r] = x.at(r, b);
      for (int c = 0; c < NEON_ROWS; c++)
        for (int64_t i = 0; i < F::BYTES; i += 64) __builtin_prefetch(blocks[c] + NEON_AHEAD + i, 0, 3);
      Ints sums[R];
      block_sums<F, R>(blocks, tokens, sums);
      Floats scales, minima;
      for (int c = 0; c < NEON_ROWS; c++) scales[c] = F::scale(blocks[c]), minima[c] = -F::minimum(blocks[c]);
      [[maybe_unused]] const Minima<F> minimum(blocks);
      for (int r = 0; r < R; r++) {
        const float scale = tokens[r].scale;
        y_lanes[r] = fused(__builtin_convertvector(sums[r], Floats), scales * scale, y_lanes[r]);
        if constexpr (F::MINIMA) {
          const Ints sum = minimum.times(tokens[r].sums);
          y_lanes[r] = fused(__builtin_convertvector(sum, Floats), minima * scale, y_lanes[r]);
        }
      }
      for (int c = 0; c < NEON_ROWS; c++) blocks[c] += F::BYTES;
    }
    for (int r = 0; r < R && r < x.count; r++)
      for (int64_t c = 0; c < NEON_ROWS && n + c * apart < rows; c++) y[r * stride + n + c * apart] = y_lanes[r][c];
  }
}
#endif

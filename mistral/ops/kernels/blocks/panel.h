// The product of weights in blocks with many tokens, in parts that AMX tiles and aarch64 share. For CHUNK columns at a
// time, a strip of rows is decoded into a panel of integers, interleaved so that a lane of a vector belongs to a row. The
// panel stays in the first-level cache while all tokens are multiplied with it (as in Goto and van de Geijn, Anatomy of
// High-Performance Matrix Multiplication, 2008). The definition of the product is in activations.h.
#pragma once
#include "blocks/activations.h"
#include "blocks/dot_neon.h"
#include "blocks/formats.h"
#include "processor.h"
#include "scratch.h"
#include "transpose.h"

#if defined(HAVE_AMX) || defined(HAVE_NEON_DOT)
constexpr int64_t CHUNK = 256;                     // columns
constexpr int VECTORS = 2;                         // across a strip
constexpr int64_t STRIP = VECTORS * LANES;         // rows
constexpr int64_t BLOCKS = CHUNK / SMALL_BLOCK;    // that a chunk has at most
constexpr int64_t RANGE = LANES == 16 ? 128 : 64;  // rows whose results are kept in the second-level cache

inline Ints load_integers(const void *p) {
  Ints x;
  memcpy(&x, p, sizeof x);
  return x;
}

inline Ints broadcast_word(const void *p) {
  int32_t word;
  memcpy(&word, p, 4);
  return Ints{} + word;
}

// sum + products of two pairs of 16-bit integers
inline Ints add_products(Ints sum, Ints w, Ints x) {
#ifdef HAVE_AMX
  return (Ints)_mm512_dpwssd_epi32((__m512i)sum, (__m512i)w, (__m512i)x);
#else
  return sum + (w << 16 >> 16) * (x << 16 >> 16) + (w >> 16) * (x >> 16);
#endif
}

// The scales of a chunk of a strip of rows
struct Scales {
  alignas(64) float scales[BLOCKS][STRIP];             // d
  alignas(64) float minima[BLOCKS][STRIP];             // -dmin
  alignas(64) int16_t minimum_factors[4 * STRIP * 2];  // m, [pair of groups of 32][row][2]

  template <class F>
  void pack(const uint8_t *block, int64_t b, int64_t row) {
    scales[b][row] = F::scale(block);
    if constexpr (F::MINIMA) minima[b][row] = -F::minimum(block);
    if constexpr (F::MINIMA && F::FACTORS) {
      const uint64_t m = six_bit_minima(block + 4);
      for (int g = 0; g < 4; g++) {
        const uint32_t pair = uint32_t(m >> 16 * g & 255) | uint32_t(m >> (16 * g + 8) & 255) << 16;
        memcpy(minimum_factors + (g * STRIP + row) * 2, &pair, 4);
      }
    }
  }
};

// What a token contributes to a chunk beside its integers
struct TokenScales {
  float scales[BLOCKS];
  int16_t sums[BLOCKS];        // over every 32
  int16_t sums_of_16[CHUNK / 16];  // of blocks of 256
};

inline void pack_token_scales(const Activations &a, int64_t t, int64_t k, int64_t depth, TokenScales &to) {
  const bool small = a.layout == BLOCKS_32;
  const int16_t *sums = a.sums + t * a.sums_step;
  const float *scales = a.scales + t * a.scale_step;
  if (small) {
    memcpy(to.sums, sums + k / 32, depth / 32 * sizeof *sums);
    memcpy(to.scales, scales + k / SMALL_BLOCK, depth / SMALL_BLOCK * sizeof *scales);
    return;
  }
  memcpy(to.sums_of_16, sums + k / 16, sizeof to.sums_of_16);
  for (int g = 0; g < 8; g++) to.sums[g] = int16_t(to.sums_of_16[2 * g] + to.sums_of_16[2 * g + 1]);
  to.scales[0] = scales[k / LARGE_BLOCK];
}

// y + what block b contributes, given the integer sums of its products, for the rows of vector v
template <class F>
inline Floats add_block(const Scales &panel, const TokenScales &x, int64_t b, int v, Ints sums, Floats y) {
  const float scale = x.scales[b];
  y = fused(__builtin_convertvector(sums, Floats), load(panel.scales[b] + v * LANES) * scale, y);
  if constexpr (F::MINIMA) {
    Ints sum = Ints{} + x.sums[b];
    if constexpr (F::FACTORS) {
      sum = Ints{};
      for (int g = 0; g < 4; g++)
        sum = add_products(sum, load_integers(panel.minimum_factors + (g * STRIP + v * LANES) * 2),
                           broadcast_word(x.sums + 2 * g));
    }
    y = fused(__builtin_convertvector(sum, Floats), load(panel.minima[b] + v * LANES) * scale, y);
  }
  return y;
}

// LANES rows of LANES words, `step` bytes apart -> columns: word j of row i goes to word i of line j
inline void transpose_words(const void *from_words, int64_t from_step, void *to_words, int64_t to_step) {
  const char *from = static_cast<const char *>(from_words);
  char *to = static_cast<char *>(to_words);
#if defined(__AVX512F__)
  __m512i lines[16];
  for (int i = 0; i < 16; i++) lines[i] = _mm512_loadu_si512(from + i * from_step);
  transpose(lines);
  for (int j = 0; j < 16; j++) _mm512_store_si512(to + j * to_step, lines[j]);
#else
  Ints rows[4], pairs[4];
  for (int i = 0; i < 4; i++) rows[i] = load_integers(from + i * from_step);
  for (int i = 0; i < 2; i++) {  // words of rows i and i + 2, by turns
    pairs[i] = __builtin_shuffle(rows[i], rows[i + 2], Ints{0, 4, 1, 5});
    pairs[i + 2] = __builtin_shuffle(rows[i], rows[i + 2], Ints{2, 6, 3, 7});
  }
  for (int j = 0; j < 4; j++) {
    const Ints first = pairs[j / 2 * 2], second = pairs[j / 2 * 2 + 1];
    const Ints column = __builtin_shuffle(first, second, j % 2 ? Ints{2, 6, 3, 7} : Ints{0, 4, 1, 5});
    memcpy(to + j * to_step, &column, sizeof column);
  }
#endif
}

// y[t * stride + i] for at most RANGE rows, by a Panel: Panel::Element of activations, and the members used here
template <class Panel>
void multiply_range(const Activations &a, const uint8_t *weights, int64_t rows, float *y, int64_t stride) {
  using F = typename Panel::Format;
  using Element = typename Panel::Element;
  static thread_local Scratch<float> result_buffer;
  static thread_local Scratch<TokenScales> scale_buffer;
  static thread_local Scratch<Element> integer_buffer;
  static thread_local Panel panel;
  Panel &own = panel;  // found once
  const int64_t tokens = a.tokens, strips = (rows + STRIP - 1) / STRIP, row_bytes = a.in / F::WEIGHTS * F::BYTES;
  Element *integers = integer_buffer.get((tokens + 15) / 16 * 16 * CHUNK);  // [token][CHUNK], for whole tiles
  TokenScales *scales = scale_buffer.get(tokens);
  float *results = result_buffer.get(strips * tokens * STRIP);  // [strip][token][row]
  for (int64_t k = 0; k < a.in; k += CHUNK) {
    const int64_t depth = std::min(CHUNK, a.in - k), chunk_bytes = depth / F::WEIGHTS * F::BYTES;
    for (int64_t t = 0; t < tokens; t++) {
      const int8_t *from = static_cast<const int8_t *>(a.data) + t * a.stride + k;
      for (int64_t i = 0; i < depth; i++) integers[t * CHUNK + i] = from[i];
      pack_token_scales(a, t, k, depth, scales[t]);
    }
    for (int64_t s = 0; s < strips; s++) {
      const uint8_t *strip = weights + s * STRIP * row_bytes + k / F::WEIGHTS * F::BYTES;
      const int64_t ahead = s + 1 < strips ? STRIP * row_bytes : chunk_bytes - s * STRIP * row_bytes;
      for (int64_t i = 0; i < STRIP; i++) {  // the last row is repeated
        const uint8_t *row = strip + std::min(i, rows - s * STRIP - 1) * row_bytes;
        for (int64_t at = 0; at < chunk_bytes; at += 64) __builtin_prefetch(row + ahead + at, 0, 2);
        for (int64_t b = 0; b < depth / F::WEIGHTS; b++) own.pack(row + b * F::BYTES, b, i);
        if (i % LANES == LANES - 1) own.interleave(i / LANES, depth);
      }
      own.multiply(integers, scales, tokens, depth, k > 0, results + s * tokens * STRIP);
    }
  }
  for (int64_t t = 0; t < tokens; t++)
    for (int64_t s = 0; s < strips; s++)
      memcpy(y + t * stride + s * STRIP, results + (s * tokens + t) * STRIP,
             std::min(STRIP, rows - s * STRIP) * sizeof(float));
}

// y[t * stride + i] for any number of rows; see multiply_rows_blocks
template <class Panel>
void multiply_ranges(const Activations &x, Matrix w, int64_t first, int64_t rows, float *y, int64_t stride) {
  using F = typename Panel::Format;
  const uint8_t *weights = static_cast<const uint8_t *>(w.data) + first * (w.in / F::WEIGHTS * F::BYTES);
  for (int64_t n = 0; n < rows; n += RANGE)
    multiply_range<Panel>(x, weights + n * (w.in / F::WEIGHTS * F::BYTES), std::min(RANGE, rows - n), y + n, stride);
}

// results[r * STRIP + row] (+)= what block b contributes, given the integer sums of R tokens
template <class F, int R>
inline void add_blocks(const Scales &panel, const TokenScales *x, int64_t b, const Ints (&sums)[R][VECTORS], bool add,
                       float *results) {
#pragma GCC unroll 8
  for (int r = 0; r < R; r++)
    for (int v = 0; v < VECTORS; v++) {
      float *to = results + r * STRIP + v * LANES;
      store(to, add_block<F>(panel, x[r], b, v, sums[r][v], add || b > 0 ? load(to) : Floats{}));
    }
}

// Calls panel.microkernel<R> for R tokens at a time, at most MR
template <int R, class Panel>
inline void multiply_tokens(const Panel &panel, const typename Panel::Element *x, const TokenScales *scales,
                            int64_t tokens, int64_t depth, bool add, float *results) {
  int64_t t = 0;
  for (; t + R <= tokens; t += R)
    panel.template microkernel<R>(x + t * CHUNK, scales + t, depth, add, results + t * STRIP);
  if constexpr (R > 1)
    if (t < tokens)
      multiply_tokens<R / 2>(panel, x + t * CHUNK, scales + t, tokens - t, depth, add, results + t * STRIP);
}
#endif

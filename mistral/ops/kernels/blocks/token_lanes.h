// The product of weights in blocks with several tokens that lie side by side in lanes. The definition of the product is
// in activations.h.
//
// Rows of the weight are decoded, CHUNK columns at a time, into plain integers in the first-level cache. A microkernel
// then multiplies R rows with a vector of tokens: an integer of a row is broadcast to all lanes, so that a lane sums
// for its own row and token, and nothing has to be added across lanes. The few tokens of a batch take the rows one after
// the other, each read as a sequential stream; for many a range of rows is decoded, and all tokens pass over it (as in
// Goto and van de Geijn, Anatomy of High-Performance Matrix Multiplication, 2008).
#pragma once
#include <algorithm>

#include "blocks/activations.h"
#include "blocks/in_place.h"
#include "blocks/lanes.h"
#include "scratch.h"
#include "transpose.h"

#ifdef HAVE_LANES
inline int lanes_for(int64_t tokens) { return tokens <= 8 ? 8 : LANES; }

// Whether a format is multiplied as bytes without a sign, four to a lane: by vpdpbusd, or by vpmaddubsw, whose sums of
// 16 bits are widened before they could overflow. Else as q * s in 16 bits, by vpmaddwd.
template <class F>
constexpr bool HAS_BYTES = VNNI || (!InPlace<F>::SIGNED && InPlace<F>::BITS < 6);

constexpr int64_t CHUNK = 512;   // columns
constexpr int FEW_GROUPS = 4;    // vectors of tokens that are few
constexpr int64_t RANGE = 64;    // rows that are decoded at a time for many tokens
constexpr int64_t AHEAD = 1024;  // bytes along a row that are fetched ahead

// A chunk of some rows: integers, and the factors that belong to them
template <class F, int64_t ROWS>
struct DecodedRows {
  using Format = F;
  using P = InPlace<F>;
  static constexpr bool BYTES = HAS_BYTES<F>;
  static constexpr int EXCESS = !BYTES ? 0 : P::SIGNED ? 128 : P::EXCESS;  // what has been added to a number
  static constexpr int64_t GROUPS = F::WEIGHTS / F::GROUP, BLOCKS = CHUNK / F::WEIGHTS, SIZE = BYTES ? 1 : 2;

  alignas(64) uint8_t numbers[ROWS][CHUNK * SIZE];
  alignas(64) float scales[ROWS][BLOCKS];                                // d
  alignas(64) float minima[F::MINIMA ? ROWS : 1][BLOCKS];                // dmin, with the sign of what is added
  alignas(64) uint16_t halves[2][ROWS * BLOCKS];                          // of d and dmin
  int32_t factors[F::FACTORS ? ROWS : 1][BLOCKS * GROUPS];               // in both halves of a word without VNNI
  int16_t factor_pairs[F::FACTORS && EXCESS ? ROWS : 1][BLOCKS * GROUPS];
  int16_t minimum_factors[F::FACTORS && F::MINIMA ? ROWS : 1][BLOCKS * 8];

  void decode_block(const uint8_t *block, int64_t row, int64_t b) {
    uint8_t *to = numbers[row] + b * F::WEIGHTS * SIZE;
    if constexpr (BYTES) {
#pragma GCC unroll 8
      for (int g = 0; g < F::WEIGHTS / 32; g++) {
        __m256i bytes = P::load(block, g);
        if constexpr (P::SIGNED) bytes = _mm256_xor_si256(bytes, _mm256_set1_epi8(int8_t(0x80)));
        _mm256_storeu_si256(reinterpret_cast<__m256i *>(to + 32 * g), bytes);
      }
    } else {
      decode_integers<F>(block, reinterpret_cast<int16_t *>(to));
    }
    memcpy(&halves[0][row * BLOCKS + b], block + F::SCALE_AT, 2);
    if constexpr (F::MINIMA) memcpy(&halves[1][row * BLOCKS + b], block + 2, 2);
    if constexpr (F::FACTORS && BYTES) {
      int32_t *s = factors[row] + b * GROUPS;
      if constexpr (F::MINIMA) {
        const __m128i bytes = _mm_cvtsi64_si128(int64_t(six_bit_factors(block + 4)));
        const __m256i words = _mm256_cvtepu8_epi32(bytes);
        _mm256_storeu_si256(reinterpret_cast<__m256i *>(s),
                            VNNI ? words : _mm256_or_si256(words, _mm256_slli_epi32(words, 16)));
      } else {
        int16_t each[GROUPS];
        F::factors(block, each);
        for (int64_t g = 0; g < GROUPS; g++) s[g] = VNNI ? each[g] : int32_t(uint16_t(each[g]) * 0x10001u);
        if constexpr (EXCESS > 0) memcpy(factor_pairs[row] + b * GROUPS, each, sizeof each);
      }
    }
    if constexpr (F::FACTORS && F::MINIMA) {
      const __m128i bytes = _mm_cvtsi64_si128(int64_t(six_bit_minima(block + 4)));
      _mm_storeu_si128(reinterpret_cast<__m128i *>(minimum_factors[row] + b * 8), _mm_cvtepu8_epi16(bytes));
    }
  }

  // `depth` columns of a row; `decode_scales` is to follow when all rows are there
  void decode(const uint8_t *from, int64_t row, int64_t depth) {
    for (int64_t b = 0; b < depth / F::WEIGHTS; b++) decode_block(from + b * F::BYTES, row, b);
  }

  // Not at once with each row: a load that has to wait for the small stores before it would cost more
  void decode_scales(int64_t rows) {
    for (int64_t i = 0; i < rows * BLOCKS; i += 8) {
      const auto floats = [&](int of) {
        return _mm256_cvtph_ps(_mm_load_si128(reinterpret_cast<const __m128i *>(halves[of] + i)));
      };
      _mm256_store_ps(scales[0] + i, floats(0));
      // A minimum of 32 weights is added, of 256 subtracted
      if constexpr (F::MINIMA) _mm256_store_ps(minima[0] + i, F::FACTORS ? -floats(1) : floats(1));
    }
  }
};

// R decoded rows with L tokens
template <class D, int L, int R>
struct TokenLanes {
  using F = typename D::Format;
  using X = Lanes<L>;
  using Ints = typename X::Ints;
  using Floats = typename X::Floats;
  static constexpr int64_t PER_WORD = D::BYTES ? 4 : 2;  // integers
  static constexpr int64_t STEPS = F::WEIGHTS / PER_WORD;
  static constexpr bool GROUPED = D::BYTES && (F::FACTORS || !VNNI);  // sums are multiplied before they are added
  // Words whose products are added before they are multiplied with a factor, or would leave 16 bits
  static constexpr int64_t MOST = VNNI || D::P::BITS < 5 ? 8 : 4;
  static constexpr int64_t SPAN = !GROUPED ? STEPS : F::GROUP / 4 < MOST ? F::GROUP / 4 : MOST;
  static constexpr int64_t SUMS = F::FACTORS ? LARGE_SUMS : 1;

  const char *x;  // of the first of the chunk's columns
  const float *scales;
  const int32_t *sums;

  TokenLanes(const Activations &a, int64_t group, int64_t k)
      : x(static_cast<const char *>(a.data) + (group * a.stride + k * L) * D::SIZE),
        scales(a.scales + group * a.scale_step + k / F::WEIGHTS * L),
        sums(reinterpret_cast<const int32_t *>(a.sums + group * a.sums_step) + k / F::WEIGHTS * SUMS * L) {}

  static int32_t pair_at(const int16_t *p) {
    int32_t pair;
    memcpy(&pair, p, 4);
    return pair;
  }

  // With a minus, the sum of s * EXCESS * x over block b
  Ints excess(const D &rows, int64_t row, int64_t b) const {
    if constexpr (D::EXCESS == 0) return Ints{};
    const int32_t *own = sums + b * SUMS * L;
    if constexpr (!F::FACTORS) return X::load(own) * -D::EXCESS;
    Ints sum{};
    own += F::GROUP == 16 ? 4 * L : 0;
#pragma GCC unroll 8
    for (int64_t g = 0; g < D::GROUPS / 2; g++)
      sum = X::add_pairs(sum, Ints{} + pair_at(rows.factor_pairs[row] + b * D::GROUPS + 2 * g), X::load(own + g * L));
    return sum * -D::EXCESS;
  }

  // The sum of m x over block b
  Ints minimum_sum(const D &rows, int64_t row, int64_t b) const {
    const int32_t *own = sums + b * SUMS * L;
    if constexpr (!F::FACTORS) return X::load(own);
    Ints sum{};
    for (int64_t g = 0; g < 4; g++)
      sum = X::add_pairs(sum, Ints{} + pair_at(rows.minimum_factors[row] + b * 8 + 2 * g), X::load(own + g * L));
    return sum;
  }

  static Ints add(Ints sum, Ints w, Ints x) {
    return D::BYTES ? X::add_bytes(sum, w, x) : X::add_pairs(sum, w, x);
  }

  // to += products of words [from, from + count) of block b
  void add_products(const D &rows, int64_t row, int64_t b, int64_t from, int64_t count, Ints (&to)[R]) const {
#pragma GCC unroll 4
    for (int64_t k = b * STEPS + from; k < b * STEPS + from + count; k++) {
      const Ints token = computed(X::load(x + k * L * 4));
#pragma GCC unroll 8
      for (int r = 0; r < R; r++) to[r] = add(to[r], X::broadcast_word(rows.numbers[row + r] + k * 4), token);
    }
  }

  // results[r * step + lane] (+)= the products over `depth` columns. `next` is what is fetched while this is computed.
  template <class Next>
  void multiply(const D &rows, int64_t row, int64_t depth, bool further, float *results, int64_t step,
                const Next &next) const {
    Floats y[R];
#pragma GCC unroll 8
    for (int r = 0; r < R; r++) y[r] = further ? X::load_floats(results + r * step) : Floats{};
    for (int64_t b = 0; b < depth / F::WEIGHTS; b++) {
      next.fetch(b);
      Ints totals[R];
#pragma GCC unroll 8
      for (int r = 0; r < R; r++) totals[r] = excess(rows, row + r, b);
      if constexpr (!GROUPED) {
        add_products(rows, row, b, 0, STEPS, totals);
      } else {
        for (int64_t span = 0; span < STEPS; span += SPAN) {
          Ints products[R] = {};
          add_products(rows, row, b, span, SPAN, products);
#pragma GCC unroll 8
          for (int r = 0; r < R; r++) {
            const Ints factor =
                Ints{} + (F::FACTORS ? rows.factors[row + r][b * D::GROUPS + span * 4 / F::GROUP] : 0x10001);
            totals[r] = VNNI ? totals[r] + products[r] * factor : X::add_pairs(totals[r], products[r], factor);
          }
        }
      }
      const Floats scale = X::load_floats(scales + b * L);
#pragma GCC unroll 8
      for (int r = 0; r < R; r++) {
        y[r] = X::fused(X::to_floats(totals[r]), scale * rows.scales[row + r][b], y[r]);
        if constexpr (F::MINIMA)
          y[r] = X::fused(X::to_floats(minimum_sum(rows, row + r, b)), scale * rows.minima[row + r][b], y[r]);
      }
    }
#pragma GCC unroll 8
    for (int r = 0; r < R; r++) memcpy(results + r * step, &y[r], sizeof y[r]);
  }
};

// Rows that are multiplied at a time: as many as leave registers for what else is needed
template <class F>
constexpr int ROWS = LANES == 16 || !HAS_BYTES<F> ? 8 : 4;

// What is not in a cache yet: R rows, `step` bytes apart
template <class F, int R>
struct NextRows {
  const uint8_t *first;
  int64_t step;
  void fetch(int64_t block) const {
    if (F::BYTES < 32 && block % 2) return;
#pragma GCC unroll 8
    for (int r = 0; r < R; r++)
      for (int64_t i = 0; i < F::BYTES; i += 64) __builtin_prefetch(first + r * step + block * F::BYTES + i, 0, 3);
  }
};
struct Nothing {
  void fetch(int64_t) const {}
};

// Rows that were decoded, with all tokens: results[row * step + token]
template <int L, int R, class D, class Next>
inline void multiply_decoded(const D &decoded, int64_t rows, const Activations &a, int64_t k, int64_t depth,
                             float *results, int64_t step, const Next &next) {
  for (int64_t n = 0; n < rows; n += R)
    TokenLanes<D, L, R>(a, 0, k).multiply(decoded, n, depth, k > 0, results + n * step, step, next);
  for (int64_t g = 1; g * L < step; g++)
    for (int64_t n = 0; n < rows; n += R)
      TokenLanes<D, L, R>(a, g, k).multiply(decoded, n, depth, k > 0, results + n * step + g * L, step, Nothing());
}

// Few tokens: some rows at a time, far apart, so that each is a sequential stream that hardware prefetchers follow from
// row to row
template <class F, int L>
void multiply_few(const Activations &a, const uint8_t *weights, int64_t row_bytes, int64_t rows, float *y,
                  int64_t stride) {
  constexpr int R = ROWS<F>;
  DecodedRows<F, R> decoded;
  alignas(64) float results[R * FEW_GROUPS * L];  // [row][token]
  const int64_t apart = (rows + R - 1) / R, step = (a.tokens + L - 1) / L * L;
  for (int64_t n = 0; n < apart; n++) {
    for (int64_t k = 0; k < a.in; k += CHUNK) {
      const int64_t depth = std::min(CHUNK, a.in - k);
      for (int64_t r = 0; r < R; r++) {
        const uint8_t *row = weights + std::min(n + r * apart, rows - 1) * row_bytes;
        decoded.decode(row + k / F::WEIGHTS * F::BYTES, r, depth);
      }
      decoded.decode_scales(R);
      const uint8_t *first = weights + n * row_bytes + k / F::WEIGHTS * F::BYTES;
      multiply_decoded<L, R>(decoded, R, a, k, depth, results, step, NextRows<F, R>{first + AHEAD, apart * row_bytes});
    }
    for (int64_t r = 0; r < R && n + r * apart < rows; r++)
      for (int64_t t = 0; t < a.tokens; t++) y[t * stride + n + r * apart] = results[r * step + t];
  }
}

// from[n * step + t] -> to[t * stride + n]
inline void transpose_results(const float *from, int64_t step, int64_t rows, int64_t tokens, float *to,
                              int64_t stride) {
  for (int64_t n = 0; n < rows; n += LANES)
    for (int64_t t = 0; t < tokens; t += LANES) {
      const int64_t height = std::min<int64_t>(LANES, rows - n), width = std::min<int64_t>(LANES, tokens - t);
      Floats block[LANES];
      for (int i = 0; i < LANES; i++) block[i] = load(from + std::min(n + i, rows - 1) * step + t);
      transpose(reinterpret_cast<VectorOfIntegers *>(block));
      for (int i = 0; i < width; i++) memcpy(to + (t + i) * stride + n, &block[i], height * sizeof(float));
    }
}

// Many tokens, with at most RANGE rows
template <class F>
void multiply_many(const Activations &a, const uint8_t *weights, int64_t row_bytes, int64_t rows, float *y,
                   int64_t stride) {
  constexpr int L = LANES, R = ROWS<F>;
  static thread_local Scratch<DecodedRows<F, RANGE>> decoded_buffer;
  static thread_local Scratch<float> result_buffer;
  DecodedRows<F, RANGE> &decoded = *decoded_buffer.get(1);
  const int64_t step = (a.tokens + LANES - 1) / LANES * LANES, padded = (rows + R - 1) / R * R;
  float *results = result_buffer.get(padded * step);  // [row][token]
  for (int64_t k = 0; k < a.in; k += CHUNK) {
    const int64_t depth = std::min(CHUNK, a.in - k), bytes = depth / F::WEIGHTS * F::BYTES;
    for (int64_t n = 0; n < padded; n++) {  // the last row is repeated
      const uint8_t *from = weights + std::min(n, rows - 1) * row_bytes + k / F::WEIGHTS * F::BYTES;
      for (int64_t at = 0; at < bytes; at += 64) __builtin_prefetch(from + bytes + at, 0, 2);
      decoded.decode(from, n, depth);
    }
    decoded.decode_scales(padded);
    multiply_decoded<L, R>(decoded, padded, a, k, depth, results, step, Nothing());
  }
  transpose_results(results, step, rows, a.tokens, y, stride);
}

// y[t * stride + i], see multiply_rows_blocks
template <class F>
void multiply_lanes(const Activations &a, Matrix w, int64_t first, int64_t rows, float *y, int64_t stride) {
  const int64_t row_bytes = w.in / F::WEIGHTS * F::BYTES;
  const uint8_t *from = static_cast<const uint8_t *>(w.data) + first * row_bytes;
  if constexpr (LANES == 16)
    if (a.lanes == 8) return multiply_few<F, 8>(a, from, row_bytes, rows, y, stride);
  if (a.tokens <= FEW_GROUPS * LANES) return multiply_few<F, LANES>(a, from, row_bytes, rows, y, stride);
  for (int64_t n = 0; n < rows; n += RANGE)
    multiply_many<F>(a, from + n * row_bytes, row_bytes, std::min(RANGE, rows - n), y + n, stride);
}
#endif

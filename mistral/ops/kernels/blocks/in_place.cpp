// The product of weights in blocks with few tokens, decoded where they lie. Several rows that are far
// apart are read side by side, so that each is a sequential stream that hardware prefetchers follow. The definition is
// in activations.h.
#include "blocks/in_place.h"

#include "blocks/activations.h"
#include "blocks/in_place_neon.h"
#include "blocks/lanes.h"
#include "scratch.h"

namespace {

// What a token multiplies a block with: 8-bit integers, their sums, and their scale
struct Block {
  const int8_t *x;
  const int16_t *sums;
  float scale;
};

struct Tokens {
  const Activations &a;
  int64_t first, count;  // which they are
  int64_t size;          // of a block
  Tokens(const Activations &a, int64_t first)
      : a(a), first(first), count(a.tokens - first), size(a.layout == BLOCKS_32 ? SMALL_BLOCK : LARGE_BLOCK) {}
  Block at(int64_t r, int64_t b) const {
    const int64_t t = first + r;
    return {static_cast<const int8_t *>(a.data) + t * a.stride + b * size,
            a.sums + t * a.sums_step + b * (size == SMALL_BLOCK ? 1 : 16), a.scales[t * a.scale_step + b]};
  }
};

// y + what a block of a row contributes: the definition itself
template <class F>
float add_block(const int16_t *integers, const int16_t *minima, float scale, float minimum, Block x, float y) {
  int32_t sum = 0;
  for (int64_t i = 0; i < F::WEIGHTS; i++) sum += integers[i] * x.x[i];
  y = fused(float(sum), scale * x.scale, y);
  if constexpr (F::MINIMA) {
    sum = x.sums[0];
    if constexpr (F::FACTORS) {
      sum = 0;
      for (int g = 0; g < 8; g++) sum += minima[g] * (x.sums[2 * g] + x.sums[2 * g + 1]);
    }
    y = fused(float(sum), -(minimum * x.scale), y);
  }
  return y;
}

template <class F>
void multiply_plain(const Tokens &x, const uint8_t *weights, int64_t row_bytes, int64_t rows, float *y,
                    int64_t stride) {
  for (int64_t n = 0; n < rows; n++) {
    float sums[MAX_TOKENS] = {};
    for (int64_t b = 0; b < row_bytes / F::BYTES; b++) {
      const uint8_t *block = weights + n * row_bytes + b * F::BYTES;
      int16_t integers[F::WEIGHTS], minima[8] = {};
      block_integers<F>(block, integers);
      F::minima(block, minima);
      const float scale = F::scale(block), minimum = F::minimum(block);
      for (int64_t t = 0; t < x.count; t++)
        sums[t] = add_block<F>(integers, minima, scale, minimum, x.at(t, b), sums[t]);
    }
    for (int64_t t = 0; t < x.count; t++) y[t * stride + n] = sums[t];
  }
}

#ifdef HAVE_LANES
constexpr int64_t AHEAD = 1024;  // bytes along a row that are fetched ahead

// What numbers are too large by: with VNNI, 128 is added to those that have a sign, in formats without factors
template <class F>
constexpr int EXCESS = InPlace<F>::SIGNED ? (VNNI && !F::FACTORS ? 128 : 0) : InPlace<F>::EXCESS;

// sum + products of 32 weights of a format without factors
template <class F>
inline __m256i add_dots(__m256i sum, __m256i w, const int8_t *x) {
  if constexpr (InPlace<F>::SIGNED && !VNNI)
    return add_fours(sum, _mm256_abs_epi8(w), _mm256_sign_epi8(load_bytes(x), w));
  else if constexpr (InPlace<F>::SIGNED)
    return add_fours(sum, _mm256_xor_si256(w, _mm256_set1_epi8(int8_t(0x80))), load_bytes(x));
  else
    return add_fours(sum, w, load_bytes(x));
}

// The 16-bit sums of two products of 32 weights of a format with factors
template <class F>
inline __m256i dot_pairs(__m256i w, __m256i x) {
  return InPlace<F>::SIGNED ? _mm256_maddubs_epi16(_mm256_abs_epi8(w), _mm256_sign_epi8(x, w))
                            : _mm256_maddubs_epi16(w, x);
}

// Whether lanes of block_lanes() fit into 16 bits, and their sums by two
template <class F>
constexpr bool SMALL_LANES = !F::FACTORS && InPlace<F>::BITS < 6;

// What block_lanes() begins with for a format without factors: with VNNI what is too much, with a minus
template <class F>
inline __m256i first_lanes(const int8_t *x) {
  if constexpr (!VNNI || EXCESS<F> == 0) return _mm256_setzero_si256();
  const __m256i excess = add_fours(_mm256_setzero_si256(), _mm256_set1_epi8(int8_t(EXCESS<F>)), load_bytes(x));
  return computed(_mm256_sub_epi32(_mm256_setzero_si256(), excess));
}

// What the sum of the lanes is too large by
template <class F>
inline int32_t excess_of(const int16_t *sums) {
  return VNNI || F::FACTORS || EXCESS<F> == 0 ? 0 : EXCESS<F> * sums[0];
}

// Eight lanes for each of R tokens, whose sum is that of (q * s) x over a block of a row
template <class F, int R>
inline void block_lanes(const uint8_t *block, const int8_t *const *x, const int16_t *const *sums, const __m256i *first,
                        __m256i *lanes) {
  using P = InPlace<F>;
  if constexpr (!F::FACTORS) {
    const __m256i w = P::load(block, 0);
#pragma GCC unroll 4
    for (int r = 0; r < R; r++) lanes[r] = add_dots<F>(first[r], w, x[r]);
    return;
  }
  const Factors<F> factors(block);
#pragma GCC unroll 4
  for (int r = 0; r < R; r++) {
    lanes[r] = _mm256_setzero_si256();
    if constexpr (P::EXCESS) {  // of groups of 16: those at even places of the sums, then those at odd ones
      const __m256i order = _mm256_setr_epi8(0, 1, 4, 5, 8, 9, 12, 13, 2, 3, 6, 7, 10, 11, 14, 15,  //
                                             0, 1, 4, 5, 8, 9, 12, 13, 2, 3, 6, 7, 10, 11, 14, 15);
      const __m256i apart = _mm256_shuffle_epi8(load_bytes(sums[r]), order);
      const __m256i excess = add_pairs(lanes[r], factors.both, _mm256_permute4x64_epi64(apart, 0xd8));
      lanes[r] = _mm256_sub_epi32(lanes[r], _mm256_slli_epi32(excess, 5));
    }
  }
#pragma GCC unroll 8
  for (int g = 0; g < 8; g++) {
    const __m256i w = P::load(block, g), factor = factors.at(g);
#pragma GCC unroll 4
    for (int r = 0; r < R; r++) lanes[r] = add_pairs(lanes[r], dot_pairs<F>(w, load_bytes(x[r] + 32 * g)), factor);
  }
}

// The minima of a block of 256, one for every 16 weights
inline __m256i minima_twice(const uint8_t *block) {
  const __m128i m = _mm_cvtsi64_si128(int64_t(six_bit_minima(block + 4)));
  return _mm256_cvtepu8_epi16(_mm_unpacklo_epi8(m, m));
}

// The float16 at a byte of each of N blocks, `step` bytes apart
template <int AT, int N>
inline auto halves_at(const uint8_t *block, int64_t step) {
  uint16_t h[8] = {};
#pragma GCC unroll 8
  for (int c = 0; c < N; c++) memcpy(h + c, block + c * step + AT, 2);
  const __m128i halves = _mm_setr_epi16(int16_t(h[0]), int16_t(h[1]), int16_t(h[2]), int16_t(h[3]), int16_t(h[4]),
                                        int16_t(h[5]), int16_t(h[6]), int16_t(h[7]));
  if constexpr (N == 8)
    return _mm256_cvtph_ps(halves);
  else
    return _mm_cvtph_ps(halves);
}

// Rows that are read side by side, each `step` bytes after the one before
template <class F, int C>
struct Streams {
  const uint8_t *block;  // of the first row
  int64_t step;
  const uint8_t *at(int c) const { return block + c * step; }
  void fetch_ahead(int64_t b) const {
    if (F::BYTES < 32 && b % 2) return;
#pragma GCC unroll 8
    for (int c = 0; c < C; c++)
      for (int64_t i = 0; i < F::BYTES; i += 64) __builtin_prefetch(at(c) + AHEAD + i, 0, 3);
  }
  void next() {
    block += F::BYTES;
    asm("" : "+r"(block));  // one pointer, not one for each row
  }
};

// Lanes: for each of eight or four rows, the sum of `lanes`
template <bool SMALL>
inline __m256i sum_rows(const __m256i (&lanes)[8]) {
  const __m256i a = sum_halves<SMALL>(lanes[0], lanes[1], lanes[2], lanes[3]);
  const __m256i b = sum_halves<SMALL>(lanes[4], lanes[5], lanes[6], lanes[7]);
  return _mm256_add_epi32(_mm256_permute2x128_si256(a, b, 0x20), _mm256_permute2x128_si256(a, b, 0x31));
}
template <bool SMALL>
inline __m128i sum_rows(const __m256i (&lanes)[4]) {
  return sum_four<SMALL>(lanes[0], lanes[1], lanes[2], lanes[3]);
}

// C rows with R tokens: a lane of the sums belongs to a row. y[r * stride + c * y_step]
template <class F, int R, int C>
void multiply_streams(const Tokens &tokens, Streams<F, C> rows, int64_t blocks, float *y, int64_t stride,
                      int64_t y_step, int64_t stored) {
  using X = Lanes<C>;
  using Ints = typename X::Ints;
  using Floats = typename X::Floats;
  Floats sums[R] = {};
  for (int64_t b = 0; b < blocks; b++) {
    const int8_t *x[R];
    const int16_t *x_sums[R];
    float by[R];
    __m256i first[R], lanes[C][R];
#pragma GCC unroll 4
    for (int r = 0; r < R; r++) {
      const Block token = tokens.at(r, b);
      x[r] = token.x, x_sums[r] = token.sums, by[r] = token.scale, first[r] = first_lanes<F>(token.x);
    }
    rows.fetch_ahead(b);
#pragma GCC unroll 8
    for (int c = 0; c < C; c++) block_lanes<F, R>(rows.at(c), x, x_sums, first, lanes[c]);
    const Floats scale = (Floats)halves_at<F::SCALE_AT, C>(rows.block, rows.step);
#pragma GCC unroll 4
    for (int r = 0; r < R; r++) {
      __m256i own[C];
#pragma GCC unroll 8
      for (int c = 0; c < C; c++) own[c] = lanes[c][r];
      const Ints sum = (Ints)sum_rows<SMALL_LANES<F>>(own) - excess_of<F>(x_sums[r]);
      sums[r] = X::fused(X::to_floats(sum), scale * by[r], sums[r]);
    }
    if constexpr (F::MINIMA) {  // a minimum of 32 weights is added, of 256 subtracted
      const Floats minimum = (Floats)halves_at<2, C>(rows.block, rows.step);
#pragma GCC unroll 4
      for (int r = 0; r < R; r++) {
        if constexpr (!F::FACTORS) {
          sums[r] = X::fused(Floats{} + float(x_sums[r][0]), minimum * by[r], sums[r]);
        } else {
          __m256i own[C];
#pragma GCC unroll 8
          for (int c = 0; c < C; c++) own[c] = _mm256_madd_epi16(minima_twice(rows.at(c)), load_bytes(x_sums[r]));
          sums[r] = X::fused(X::to_floats((Ints)sum_rows<false>(own)), minimum * -by[r], sums[r]);
        }
      }
    }
    rows.next();
  }
  for (int r = 0; r < R && r < tokens.count; r++) {
    float out[C];
    memcpy(out, &sums[r], sizeof out);
    for (int64_t c = 0; c < stored; c++) y[r * stride + c * y_step] = out[c];
  }
}

// All rows, C side by side, which are far apart; what is left over is taken row by row
template <class F, int C, class Multiply>
inline void for_all_rows(const uint8_t *weights, int64_t row_bytes, int64_t rows, float *y, Multiply multiply) {
  const int64_t apart = rows / C;
  for (int64_t n = 0; n < apart; n++)
    multiply(Streams<F, C>{weights + n * row_bytes, apart * row_bytes}, y + n, apart, C);
  for (int64_t n = apart * C; n < rows; n++) multiply(Streams<F, C>{weights + n * row_bytes, 0}, y + n, 1, 1);
}

template <class F, int R>
void multiply_tokens(const Tokens &x, const uint8_t *weights, int64_t row_bytes, int64_t rows, float *y,
                         int64_t stride) {
  constexpr int C = R == 1 && !F::FACTORS ? 8 : 4;
  const auto multiply = [&](Streams<F, C> streams, float *to, int64_t y_step, int64_t stored) {
    multiply_streams<F, R, C>(x, streams, row_bytes / F::BYTES, to, stride, y_step, stored);
  };
  for_all_rows<F, C>(weights, row_bytes, rows, y, multiply);
}

template <class F>
void multiply_vectors(const Activations &a, const uint8_t *weights, int64_t row_bytes, int64_t rows, float *y,
                      int64_t stride) {
  const Tokens x(a, 0);
  if (a.tokens == 1) return multiply_tokens<F, 1>(x, weights, row_bytes, rows, y, stride);
  if (a.tokens == 2) return multiply_tokens<F, 2>(x, weights, row_bytes, rows, y, stride);
  multiply_tokens<F, IN_PLACE_TOKENS>(x, weights, row_bytes, rows, y, stride);  // those beyond the last are zeros
}
#elif defined(HAVE_NEON_DOT)
template <class F>
void multiply_vectors(const Activations &a, const uint8_t *weights, int64_t row_bytes, int64_t rows, float *y,
                      int64_t stride) {
  const Tokens x(a, 0);
  if (a.tokens == 1) return multiply_neon<F, 1>(x, weights, row_bytes, rows, y, stride);
  if (a.tokens == 2) return multiply_neon<F, 2>(x, weights, row_bytes, rows, y, stride);
  multiply_neon<F, IN_PLACE_TOKENS>(x, weights, row_bytes, rows, y, stride);  // those beyond the last are zeros
}
#endif

template <class F>
void multiply(const Activations &a, Matrix w, int64_t first, int64_t rows, float *y, int64_t stride) {
  const int64_t row_bytes = w.in / F::WEIGHTS * F::BYTES;
  const uint8_t *weights = static_cast<const uint8_t *>(w.data) + first * row_bytes;
#if defined(HAVE_LANES) || defined(HAVE_NEON_DOT)
  multiply_vectors<F>(a, weights, row_bytes, rows, y, stride);
#else
  multiply_plain<F>(Tokens(a, 0), weights, row_bytes, rows, y, stride);
#endif
}

}  // namespace

void multiply_blocks_in_place(const Activations &x, Matrix w, int64_t first, int64_t rows, float *y, int64_t stride) {
  with_format(w.type, [&](auto *format) {
    multiply<std::remove_pointer_t<decltype(format)>>(x, w, first, rows, y, stride);
  });
}

// The product of weights in blocks with few tokens, decoded where they lie. Several rows that are far
// apart are read side by side, so that each is a sequential stream that hardware prefetchers follow. The definition is
// in activations.h.
#include "blocks/in_place.h"

#include "blocks/activations.h"

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

#if defined(__AVX2__) && defined(__FMA__) && defined(__F16C__) && !defined(PLAIN_BLOCKS)
constexpr int ROWS = 4;               // side by side
constexpr int64_t AHEAD = 1024;       // bytes along a row that are fetched ahead
constexpr int64_t ROWS_AT_ONCE = 32;

inline __m256i dot(__m256i sum, bool is_signed, __m256i w, __m256i x) {
  return is_signed ? add_fours(sum, _mm256_abs_epi8(w), _mm256_sign_epi8(x, w)) : add_fours(sum, w, x);
}
inline __m256i dot_pairs(bool is_signed, __m256i w, __m256i x) {
  return is_signed ? _mm256_maddubs_epi16(_mm256_abs_epi8(w), _mm256_sign_epi8(x, w)) : _mm256_maddubs_epi16(w, x);
}

// Lanes: for each of ROWS rows the sum of (q * s) x over a block, for R tokens
template <class F, int R>
inline void block_sums(const uint8_t *const *blocks, const Block *x, __m128i *sums) {
  using P = InPlace<F>;
  __m256i lanes[R][ROWS];
#pragma GCC unroll 4
  for (int c = 0; c < ROWS; c++) {
    if constexpr (!F::FACTORS) {
      const __m256i w = P::load(blocks[c], 0);
#pragma GCC unroll 4
      for (int r = 0; r < R; r++) lanes[r][c] = dot(_mm256_setzero_si256(), P::SIGNED, w, load_bytes(x[r].x));
    } else {
      const Factors<F> factors(blocks[c]);
#pragma GCC unroll 4
      for (int r = 0; r < R; r++) {
        lanes[r][c] = _mm256_setzero_si256();
        if constexpr (P::EXCESS) {  // of groups of 16: those at even places of the sums, then those at odd ones
          const __m256i order = _mm256_setr_epi8(0, 1, 4, 5, 8, 9, 12, 13, 2, 3, 6, 7, 10, 11, 14, 15,  //
                                                 0, 1, 4, 5, 8, 9, 12, 13, 2, 3, 6, 7, 10, 11, 14, 15);
          const __m256i apart = _mm256_shuffle_epi8(load_bytes(x[r].sums), order);
          const __m256i excess = add_pairs(lanes[r][c], factors.both, _mm256_permute4x64_epi64(apart, 0xd8));
          lanes[r][c] = _mm256_sub_epi32(lanes[r][c], _mm256_slli_epi32(excess, 5));
        }
      }
#pragma GCC unroll 8
      for (int g = 0; g < 8; g++) {
        const __m256i w = P::load(blocks[c], g), factor = factors.at(g);
#pragma GCC unroll 4
        for (int r = 0; r < R; r++)
          lanes[r][c] = add_pairs(lanes[r][c], dot_pairs(P::SIGNED, w, load_bytes(x[r].x + 32 * g)), factor);
      }
    }
  }
#pragma GCC unroll 4
  for (int r = 0; r < R; r++) {
    sums[r] = sum_four<!F::FACTORS && (P::BITS < 6)>(lanes[r][0], lanes[r][1], lanes[r][2], lanes[r][3]);
    if constexpr (!F::FACTORS && P::EXCESS)
      sums[r] = _mm_sub_epi32(sums[r], _mm_set1_epi32(P::EXCESS * x[r].sums[0]));
  }
}

// Lanes: for each of ROWS rows the sum of m x over a block
template <class F>
inline __m128i minimum_sums(const uint8_t *const *blocks, Block x) {
  if constexpr (!F::FACTORS) return _mm_set1_epi32(x.sums[0]);
  __m256i lanes[ROWS];
#pragma GCC unroll 4
  for (int c = 0; c < ROWS; c++) {
    const __m128i m = _mm_cvtsi64_si128(int64_t(six_bit_minima(blocks[c] + 4)));
    const __m256i twice = _mm256_cvtepu8_epi16(_mm_unpacklo_epi8(m, m));  // one for every 16
    lanes[c] = _mm256_madd_epi16(twice, load_bytes(x.sums));
  }
  return sum_four<false>(lanes[0], lanes[1], lanes[2], lanes[3]);
}

template <int AT>
inline __m128 halves_at(const uint8_t *const *blocks) {  // float16 at a byte of each block
  uint16_t h[ROWS];
  for (int c = 0; c < ROWS; c++) memcpy(h + c, blocks[c] + AT, 2);
  return _mm_cvtph_ps(_mm_setr_epi16(int16_t(h[0]), int16_t(h[1]), int16_t(h[2]), int16_t(h[3]), 0, 0, 0, 0));
}

template <class F, int R>
void multiply_vectors(const Tokens &x, const uint8_t *weights, int64_t row_bytes, int64_t rows, float *y,
                      int64_t stride) {
  constexpr int SCALE_AT = std::is_same_v<F, Q6_K> ? 208 : 0;
  const int64_t apart = (rows + ROWS - 1) / ROWS, count = row_bytes / F::BYTES;
  for (int64_t n = 0; n < apart; n++) {
    const uint8_t *blocks[ROWS];
    for (int c = 0; c < ROWS; c++) blocks[c] = weights + std::min(n + c * apart, rows - 1) * row_bytes;
    __m128 y_lanes[R] = {};
    for (int64_t b = 0; b < count; b++) {
      Block token[R];
      __m128i sums[R];
      for (int r = 0; r < R; r++) token[r] = x.at(r, b);
      if (F::BYTES >= 64 || b % std::max<int64_t>(1, 64 / F::BYTES) == 0)
        for (int c = 0; c < ROWS; c++)
          for (int64_t i = 0; i < F::BYTES; i += 64) __builtin_prefetch(blocks[c] + AHEAD + i, 0, 3);
      block_sums<F, R>(blocks, token, sums);
      const __m128 scale = halves_at<SCALE_AT>(blocks);
#pragma GCC unroll 4
      for (int r = 0; r < R; r++) {
        const __m128 by = _mm_mul_ps(scale, _mm_set1_ps(token[r].scale));
        y_lanes[r] = _mm_fmadd_ps(_mm_cvtepi32_ps(sums[r]), by, y_lanes[r]);
      }
      if constexpr (F::MINIMA) {  // a minimum of 32 weights is added, of 256 subtracted
        const __m128 minimum = halves_at<2>(blocks);
#pragma GCC unroll 4
        for (int r = 0; r < R; r++) {
          const __m128 by = _mm_mul_ps(minimum, _mm_set1_ps(F::FACTORS ? -token[r].scale : token[r].scale));
          y_lanes[r] = _mm_fmadd_ps(_mm_cvtepi32_ps(minimum_sums<F>(blocks, token[r])), by, y_lanes[r]);
        }
      }
      for (int c = 0; c < ROWS; c++) blocks[c] += F::BYTES;
    }
    for (int r = 0; r < R && r < x.count; r++)
      for (int64_t c = 0; c < ROWS && n + c * apart < rows; c++) y[r * stride + n + c * apart] = y_lanes[r][c];
  }
}
#define HAVE_BLOCK_VECTORS 1
#endif

template <class F>
void multiply(const Activations &a, Matrix w, int64_t first, int64_t rows, float *y, int64_t stride) {
  const int64_t row_bytes = w.in / F::WEIGHTS * F::BYTES;
  const uint8_t *weights = static_cast<const uint8_t *>(w.data) + first * row_bytes;
#ifdef HAVE_BLOCK_VECTORS
  for (int64_t n = 0; n < rows; n += ROWS_AT_ONCE) {  // few enough for the second-level cache, if they are read again
    const int64_t count = a.tokens > 4 ? std::min(ROWS_AT_ONCE, rows - n) : rows - n;
    const uint8_t *from = weights + n * row_bytes;
    for (int64_t t = 0; t < a.tokens; t += 4) {
      const Tokens x(a, t);
      float *to = y + t * stride + n;
      if (a.tokens - t == 1)
        multiply_vectors<F, 1>(x, from, row_bytes, count, to, stride);
      else if (a.tokens - t == 2)
        multiply_vectors<F, 2>(x, from, row_bytes, count, to, stride);
      else  // tokens beyond the last are zeros
        multiply_vectors<F, 4>(x, from, row_bytes, count, to, stride);
    }
    if (a.tokens <= 4) break;
  }
  return;
#endif
  const Tokens x(a, 0);
  multiply_plain<F>(x, weights, row_bytes, rows, y, stride);
}

}  // namespace

void multiply_blocks_in_place(const Activations &x, Matrix w, int64_t first, int64_t rows, float *y, int64_t stride) {
  with_format(w.type, [&](auto *format) {
    multiply<std::remove_pointer_t<decltype(format)>>(x, w, first, rows, y, stride);
  });
}

// The product of weights in blocks with tokens in rows: the definition (activations.h) as a plain loop, for processors
// that have no other, and the loop for few tokens on aarch64.
#include "blocks/activations.h"
#include "blocks/in_place_neon.h"
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

#ifdef HAVE_NEON_DOT
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
#ifdef HAVE_NEON_DOT
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

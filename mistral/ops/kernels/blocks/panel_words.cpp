// Panels of q * s in 16 bits: see panel.h. The product of pairs is vpmaddwd, or vpdpwssd.
#include "blocks/panel.h"

#ifdef HAVE_PANELS
namespace {

template <class F>
struct WordPanel {
  using Format = F;
  using Element = int16_t;
  static constexpr int MR = LANES == 16 ? 8 : 4;  // tokens at a time: MR * VECTORS vectors of sums in registers

  alignas(64) int16_t lines[LANES][CHUNK];            // rows as they lie
  alignas(64) int16_t words[CHUNK / 2 * STRIP * 2];  // [pair of columns][row][2]
  Scales scales;

  void pack(const uint8_t *block, int64_t b, int64_t row) {
    decode_integers<F>(block, lines[row % LANES] + b * F::WEIGHTS);
    scales.pack<F>(block, b, row);
  }

  void interleave(int64_t v, int64_t depth) {
    for (int64_t k = 0; k < depth / 2; k += LANES)
      transpose_words(lines[0] + 2 * k, sizeof lines[0], words + (k * STRIP + v * LANES) * 2, STRIP * 4);
  }

  void multiply(const int16_t *x, const TokenScales *x_scales, int64_t tokens, int64_t depth, bool add,
                float *results) const {
    multiply_tokens<MR>(*this, x, x_scales, tokens, depth, add, results);
  }

  // results[r * STRIP + row] (+)= the products with R tokens
  template <int R>
  void microkernel(const int16_t *x, const TokenScales *x_scales, int64_t depth, bool add, float *results) const {
    constexpr int64_t STEPS = F::WEIGHTS / 2;
    for (int64_t b = 0; b < depth / F::WEIGHTS; b++) {
      Ints sums[R][VECTORS];
#pragma GCC unroll 16
      for (int i = 0; i < R * VECTORS; i++) sums[i / VECTORS][i % VECTORS] = Ints{};
      const int16_t *weights = words + b * STEPS * STRIP * 2;
#pragma GCC unroll 4
      for (int64_t k = 0; k < STEPS; k++) {
        Ints w[VECTORS];
        for (int v = 0; v < VECTORS; v++) w[v] = load_integers(weights + (k * STRIP + v * LANES) * 2);
#pragma GCC unroll 8
        for (int r = 0; r < R; r++) {
          const Ints token = broadcast_word(x + r * CHUNK + b * F::WEIGHTS + 2 * k);
          for (int v = 0; v < VECTORS; v++) sums[r][v] = add_products(sums[r][v], w[v], token);
        }
      }
      add_blocks<F, R>(scales, x_scales, b, sums, add, results);
    }
  }
};

}  // namespace

void multiply_blocks_words(const Activations &x, Matrix w, int64_t first, int64_t rows, float *y, int64_t stride) {
  with_format(w.type, [&](auto *format) {
    using F = std::remove_pointer_t<decltype(format)>;
    if constexpr (!HAS_BYTE_PANEL<F>) multiply_ranges<WordPanel<F>>(x, w, first, rows, y, stride);
  });
}
#endif

// Panels of bytes without a sign, four to a lane: see panel.h. Their products are vpdpbusd, or vpmaddubsw, whose sums of
// 16 bits are widened before they could overflow.
#include "blocks/panel.h"

#ifdef HAVE_PANELS
namespace {

// sum + products of bytes: of four in 32 bits by VNNI, else of pairs in 16 bits
inline Ints add_bytes(Ints sum, Ints w, Ints x) {
#if defined(__AVX512VNNI__)
  return (Ints)_mm512_dpbusd_epi32((__m512i)sum, (__m512i)w, (__m512i)x);
#elif defined(__AVX512BW__)
  return (Ints)computed(_mm512_add_epi16((__m512i)sum, _mm512_maddubs_epi16((__m512i)w, (__m512i)x)));
#elif defined(__AVXVNNI__)
  return (Ints)_mm256_dpbusd_avx_epi32((__m256i)sum, (__m256i)w, (__m256i)x);
#else
  return (Ints)computed(_mm256_add_epi16((__m256i)sum, _mm256_maddubs_epi16((__m256i)w, (__m256i)x)));
#endif
}

// total + sum * factor. Where sums are pairs of 16 bits, a factor lies in both halves of a word.
inline Ints add_group(Ints total, Ints sum, Ints factor) {
  return VNNI ? total + sum * factor : add_products(total, sum, factor);
}
constexpr uint32_t FACTOR_FORM = VNNI ? 1 : 0x10001;

template <class F>
struct BytePanel {
  using Format = F;
  using Element = int8_t;
  using P = InPlace<F>;
  static constexpr int EXCESS = P::SIGNED ? 128 : P::EXCESS;  // what has been added to a number
  static constexpr int64_t GROUPS = F::WEIGHTS / F::GROUP;
  // Words whose products are added before they are multiplied with a factor, or would leave 16 bits
  static constexpr int64_t MOST = VNNI || P::BITS < 5 ? 8 : 4;
  static constexpr int64_t SPAN = F::GROUP / 4 < MOST ? F::GROUP / 4 : MOST;
  static constexpr int MR = LANES == 16 ? (F::FACTORS ? 6 : 8) : (F::FACTORS ? 3 : 4);  // tokens at a time

  alignas(64) uint8_t lines[LANES][CHUNK];           // rows as they lie
  alignas(64) uint8_t words[CHUNK / 4 * STRIP * 4];  // [four columns][row][4]
  alignas(64) int32_t factors[GROUPS][STRIP];
  alignas(64) int16_t factor_pairs[GROUPS * STRIP];  // [pair of groups][row][2]
  Scales scales;

  void pack(const uint8_t *block, int64_t b, int64_t row) {
    for (int g = 0; g < F::WEIGHTS / 32; g++) {
      __m256i bytes = P::load(block, g);
      if constexpr (P::SIGNED) bytes = _mm256_xor_si256(bytes, _mm256_set1_epi8(int8_t(0x80)));
      _mm256_store_si256(reinterpret_cast<__m256i *>(lines[row % LANES] + b * F::WEIGHTS + 32 * g), bytes);
    }
    scales.pack<F>(block, b, row);
    if constexpr (F::FACTORS) {
      int16_t s[GROUPS];
      F::factors(block, s);
      for (int64_t g = 0; g < GROUPS; g++) {
        factors[g][row] = VNNI ? s[g] : int32_t(uint16_t(s[g]) * FACTOR_FORM);
        if constexpr (EXCESS > 0) factor_pairs[(g / 2 * STRIP + row) * 2 + g % 2] = s[g];
      }
    }
  }

  void interleave(int64_t v, int64_t depth) {
    for (int64_t k = 0; k < depth / 4; k += LANES)
      transpose_words(lines[0] + 4 * k, sizeof lines[0], words + (k * STRIP + v * LANES) * 4, STRIP * 4);
  }

  void multiply(const int8_t *x, const TokenScales *x_scales, int64_t tokens, int64_t depth, bool add,
                float *results) const {
    multiply_tokens<MR>(*this, x, x_scales, tokens, depth, add, results);
  }

  // The sum of s * EXCESS * x over a block of a token, with a minus
  Ints excess(const TokenScales &x, int64_t b, int v) const {
    if constexpr (EXCESS == 0) return Ints{};
    if constexpr (!F::FACTORS) return Ints{} - EXCESS * x.sums[b];
    Ints sum{};
    const int16_t *sums = F::GROUP == 16 ? x.sums_of_16 : x.sums;
    for (int64_t g = 0; g < GROUPS / 2; g++)
      sum = add_products(sum, load_integers(factor_pairs + (g * STRIP + v * LANES) * 2), broadcast_word(sums + 2 * g));
    return sum * -EXCESS;
  }

  // results[r * STRIP + row] (+)= the products with R tokens
  template <int R>
  void microkernel(const int8_t *x, const TokenScales *x_scales, int64_t depth, bool add, float *results) const {
    constexpr int64_t STEPS = F::WEIGHTS / 4;
    for (int64_t b = 0; b < depth / F::WEIGHTS; b++) {
      Ints totals[R][VECTORS];
#pragma GCC unroll 16
      for (int i = 0; i < R * VECTORS; i++)
        totals[i / VECTORS][i % VECTORS] = excess(x_scales[i / VECTORS], b, i % VECTORS);
      for (int64_t span = 0; span < STEPS; span += SPAN) {
        Ints sums[R][VECTORS];
#pragma GCC unroll 16
        for (int i = 0; i < R * VECTORS; i++) sums[i / VECTORS][i % VECTORS] = Ints{};
#pragma GCC unroll 8
        for (int64_t k = span; k < span + SPAN; k++) {
          Ints w[VECTORS];
          for (int v = 0; v < VECTORS; v++)
            w[v] = load_integers(words + ((b * STEPS + k) * STRIP + v * LANES) * 4);
#pragma GCC unroll 8
          for (int r = 0; r < R; r++) {
            const Ints token = broadcast_word(x + r * CHUNK + b * F::WEIGHTS + 4 * k);
            for (int v = 0; v < VECTORS; v++) sums[r][v] = add_bytes(sums[r][v], w[v], token);
          }
        }
        Ints factor[VECTORS];
        for (int v = 0; v < VECTORS; v++)
          factor[v] = F::FACTORS ? load_integers(factors[span * 4 / F::GROUP] + v * LANES) : Ints{} + int32_t(FACTOR_FORM);
#pragma GCC unroll 16
        for (int i = 0; i < R * VECTORS; i++) {
          Ints &total = totals[i / VECTORS][i % VECTORS];
          const Ints sum = sums[i / VECTORS][i % VECTORS];
          total = F::FACTORS || !VNNI ? add_group(total, sum, factor[i % VECTORS]) : total + sum;
        }
      }
      add_blocks<F, R>(scales, x_scales, b, totals, add, results);
    }
  }
};

}  // namespace

void multiply_blocks_bytes(const Activations &x, Matrix w, int64_t first, int64_t rows, float *y, int64_t stride) {
  with_format(w.type, [&](auto *format) {
    using F = std::remove_pointer_t<decltype(format)>;
    if constexpr (HAS_BYTE_PANEL<F>) multiply_ranges<BytePanel<F>>(x, w, first, rows, y, stride);
  });
}
#endif

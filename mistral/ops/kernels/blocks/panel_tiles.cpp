// Panels of bytes for AMX: see panel.h. A tile of 16 tokens is multiplied with tiles of 16 rows each, two side by side;
// their sums of integers are exact, and are then added as floats in the order of the definition.
//
// A product of tiles takes 64 columns. In formats with blocks of 32, whose scales differ, tiles are half as deep, and
// each block has sums of its own. In blocks of 256 a weight is q * s, of 14 bits: 128 * high + low, each a byte. So
// groups of 16 or 32 need no sums of their own, and four products of each half make a block.
#include "processor.h"

#if defined(HAVE_AMX) && !defined(PLAIN_BLOCKS)
#include "amx.h"
#include "blocks/panel.h"

namespace {

constexpr int64_t TILE_TOKENS = 16, LINE = STRIP * 4;  // bytes of four columns of a strip
static_assert(STRIP == 32 && CHUNK % LARGE_BLOCK == 0, "two tiles across a strip");

// The bytes of a block: q, or the low halves of q * s, and their high halves `apart` bytes further on
template <class F>
inline void decode_bytes(const uint8_t *block, int8_t *to, [[maybe_unused]] int64_t apart) {
  if constexpr (F::FACTORS) {
    alignas(64) int16_t integers[F::WEIGHTS];
    block_integers<F>(block, integers);
    for (int64_t i = 0; i < F::WEIGHTS; i += 32) {
      const __m512i w = _mm512_load_si512(integers + i);
      const __m512i high = _mm512_srai_epi16(_mm512_add_epi16(w, _mm512_set1_epi16(64)), 7);
      const __m512i low = _mm512_sub_epi16(w, _mm512_slli_epi16(high, 7));
      _mm256_store_si256(reinterpret_cast<__m256i *>(to + i), _mm512_cvtepi16_epi8(low));
      _mm256_store_si256(reinterpret_cast<__m256i *>(to + apart + i), _mm512_cvtepi16_epi8(high));
    }
  } else {
    F::numbers(block, to);
  }
}

template <class F>
struct TilePanel {
  using Format = F;
  using Element = int8_t;
  static constexpr int64_t HALVES = F::FACTORS ? 2 : 1;         // low and high, or the byte itself
  static constexpr int64_t DEPTH = F::FACTORS ? 64 : F::WEIGHTS;  // columns of a tile
  static constexpr int64_t COUNT = CHUNK / F::WEIGHTS;          // blocks of a chunk

  alignas(64) int8_t lines[HALVES][LANES][CHUNK];        // rows as they lie
  alignas(64) int8_t words[HALVES][CHUNK / 4][LINE];     // [four columns][row][4]
  alignas(64) int32_t sums[COUNT][HALVES][TILE_TOKENS][STRIP];
  Scales scales;

  void pack(const uint8_t *block, int64_t b, int64_t row) {
    decode_bytes<F>(block, lines[0][row % LANES] + b * F::WEIGHTS, LANES * CHUNK);
    scales.pack<F>(block, b, row);
  }

  void interleave(int64_t v, int64_t depth) {
    for (int64_t half = 0; half < HALVES; half++)
      for (int64_t k = 0; k < depth / 4; k += LANES)
        transpose_words(lines[half][0] + 4 * k, CHUNK, words[half][k] + v * LANES * 4, LINE);
  }

  void multiply(const int8_t *x, const TokenScales *x_scales, int64_t tokens, int64_t depth, bool add, float *results) {
    for (int64_t t = 0; t < tokens; t += TILE_TOKENS) {
      for (int64_t b = 0; b < depth / F::WEIGHTS; b++) multiply_block(x + t * CHUNK, b);
      for (int64_t i = t; i < std::min(t + TILE_TOKENS, tokens); i++)
        add_token(x_scales[i], i - t, depth / F::WEIGHTS, add, results + i * STRIP);
    }
  }

  // The sums of block b of 16 tokens with all rows
  void multiply_block(const int8_t *x, int64_t b) {
    compiler_barrier();
    zero_sums();
    for (int64_t k = b * F::WEIGHTS; k < (b + 1) * F::WEIGHTS; k += DEPTH) {
      tile_load(4, x + k, CHUNK);
      tile_load(5, words[0][k / 4], LINE);
      tile_load(6, words[0][k / 4] + LINE / 2, LINE);
      tile_multiply_bytes(0, 4, 5);
      tile_multiply_bytes(1, 4, 6);
      if constexpr (HALVES == 2) {
        tile_load(5, words[1][k / 4], LINE);
        tile_load(6, words[1][k / 4] + LINE / 2, LINE);
        tile_multiply_bytes(2, 4, 5);
        tile_multiply_bytes(3, 4, 6);
      }
    }
    tile_store(0, sums[b][0][0], LINE);
    tile_store(1, sums[b][0][0] + LANES, LINE);
    if constexpr (HALVES == 2) {
      tile_store(2, sums[b][1][0], LINE);
      tile_store(3, sums[b][1][0] + LANES, LINE);
    }
  }

  // results[row] (+)= the sums of one of the 16 tokens over `count` blocks
  void add_token(const TokenScales &x, int64_t token, int64_t count, bool add, float *results) const {
    Floats y[VECTORS] = {};
    for (int v = 0; v < VECTORS && add; v++) y[v] = load(results + v * LANES);
    for (int64_t b = 0; b < count; b++)
#pragma GCC unroll 2
      for (int v = 0; v < VECTORS; v++) {
        Ints sum = load_integers(sums[b][0][token] + v * LANES);
        if constexpr (HALVES == 2) sum += load_integers(sums[b][1][token] + v * LANES) << 7;
        y[v] = add_block<F>(scales, x, b, v, sum, y[v]);
      }
    for (int v = 0; v < VECTORS; v++) store(results + v * LANES, y[v]);
  }
};

}  // namespace

void multiply_blocks_tiles(const Activations &x, Matrix w, int64_t first, int64_t rows, float *y, int64_t stride) {
  with_format(w.type, [&](auto *format) {
    using Panel = TilePanel<std::remove_pointer_t<decltype(format)>>;
    const TileConfig config(shapes_for_bytes(Panel::DEPTH));
    multiply_ranges<Panel>(x, w, first, rows, y, stride);
  });
}
#endif

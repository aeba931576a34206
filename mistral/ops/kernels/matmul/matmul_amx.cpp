// Sixteen weight rows make one tile as they lie in the file; sixteen tokens make the other, their pairs of elements
// side by side. A product of two is 16 x 16 sums, a weight row in each line. Many tokens meet a panel of weights, laid out
// tile by tile in the second-level cache; few meet weights of bfloat16 where they lie. Either way a sum is formed in the
// same order.
#include "matmul/matmul_amx.h"

#ifdef HAVE_TILES
#include <algorithm>

#include "amx.h"
#include "matmul/weight_rows.h"

namespace {

constexpr int64_t DEPTH = 16;  // tiles along a panel: 512 elements
constexpr int64_t EARLY = 8;   // tiles along a row that are fetched before they are needed

struct Sums {  // of a pair of weight tiles (lines 0 and 1) with a pair of token tiles
  alignas(64) float at[2][2][256];
};

// Activations, tile by tile: [token tile][depth][1, or 2 where split][pair of elements][token][2]
struct Packed {
  const uint16_t *data;
  int64_t tokens, across, deep, parts;

  explicit Packed(const Activations &a)
      : data(static_cast<const uint16_t *>(a.data)), tokens(a.tokens), across(tiles_for(a.tokens)),
        deep(depth_for(a.in)), parts(a.layout == SPLIT ? 2 : 1) {}
  const uint16_t *at(int64_t m, int64_t k) const { return data + (m * deep + k) * parts * TILE; }
};

// 16 rows of a weight from `first` on, `deep` tiles of them -> tiles `step` apart, zeros beyond the end
template <class Row>
void lay_out(Matrix w, int64_t first, int64_t end, int64_t k, int64_t deep, uint16_t *tiles, int64_t step) {
  for (int64_t r = 0; r < 16; r++) {
    if (first + r >= end) {
      for (int64_t i = 0; i < deep; i++) _mm512_store_si512(tiles + i * step + 32 * r, _mm512_setzero_si512());
      continue;
    }
    const Row row(w, first + r);
    row.fetch(32 * (k + deep), 32 * deep);  // what the next panel takes of it
    for (int64_t i = 0; i < deep; i++)
      _mm512_store_si512(tiles + i * step + 32 * r, (__m512i)row.part_pairs(32 * (k + i)));
  }
}

// Two tiles of weights and `here` along them with two of tokens
void multiply_along(const uint16_t *weights, const uint16_t *others, int64_t step, int64_t stride, const Packed &x,
                    int64_t m, int64_t k, int64_t here) {
  const int64_t next = std::min(m + 1, x.across - 1);
  for (int64_t i = 0; i < here; i++) {
    load_weights(weights + i * step, others + i * step, stride);
    for (int64_t part = 0; part < x.parts; part++)
      multiply_two(x.at(m, k + i) + part * TILE, x.at(next, k + i) + part * TILE);
  }
}

void begin_sums(Sums &s, bool first) {
  if (first) return zero_sums();
  load_sums(s.at[0][0], s.at[1][0], s.at[0][1], s.at[1][1]);
}

void end_sums(Sums &s) { store_sums(s.at[0][0], s.at[1][0], s.at[0][1], s.at[1][1]); }

// A panel of pairs of tiles with all tokens: sums[token tile / 2][pair]
template <class Row>
void multiply_panel(Matrix w, int64_t first, int64_t end, const Packed &x, Sums *sums) {
  static thread_local Scratch<uint16_t> kept;
  const int64_t pairs = (end - first + 31) / 32;
  uint16_t *tiles = kept.get(pairs * DEPTH * 2 * TILE);
  for (int64_t k = 0; k < x.deep; k += DEPTH) {
    const int64_t here = std::min(DEPTH, x.deep - k);
    for (int64_t p = 0; p < 2 * pairs; p++)
      lay_out<Row>(w, first + 16 * p, end, k, here, tiles + (p / 2 * DEPTH * 2 + p % 2) * TILE, 2 * TILE);
    written();
    for (int64_t m = 0; m < x.across; m += 2)
      for (int64_t p = 0; p < pairs; p++) {
        Sums &s = sums[m / 2 * pairs + p];
        const uint16_t *both = tiles + p * DEPTH * 2 * TILE;
        begin_sums(s, k == 0);
        multiply_along(both, both + TILE, 2 * TILE, 64, x, m, k, here);
        end_sums(s);
      }
  }
}

// Up to 32 tokens with a pair of tiles of bfloat16 rows where they lie; what comes after them is fetched on the way
void multiply_in_place(const uint16_t *rows, int64_t in, const Packed &x, Sums &sums) {
  zero_sums();
  for (int64_t k = 0; k < x.deep; k++) {
    const int64_t early = k + EARLY < x.deep ? 32 * (k + EARLY) : 32 * in + 32 * (k + EARLY - x.deep);
    for (int64_t r = 0; r < 32; r++) __builtin_prefetch(rows + r * in + early);
    multiply_along(rows + 32 * k, rows + 16 * in + 32 * k, 0, 2 * in, x, 0, k, 1);
  }
  end_sums(sums);
}

// Up to 32 tokens: a pair of tiles after the other, so that what is laid out stays in the first-level cache
template <class Row>
void multiply_few(Matrix w, int64_t first, int64_t end, const Packed &x, Sums *sums) {
  for (int64_t p = 0; first + 32 * p < end; p++) {
    const int64_t from = first + 32 * p;
    if (std::is_same_v<Row, DenseRow<Bf16>> && from + 32 <= end && w.in % 32 == 0)
      multiply_in_place(static_cast<const uint16_t *>(w.data) + from * w.in, w.in, x, sums[p]);
    else
      multiply_panel<Row>(w, from, std::min(from + 32, end), x, sums + p);
  }
}

template <class Row>
void multiply(Matrix w, int64_t first, int64_t rows, const Packed &x, float *y, int64_t stride) {
  static thread_local Scratch<Sums> kept;
  const int64_t pairs = (rows + 31) / 32, end = first + rows;
  Sums *sums = kept.get(pairs * ((x.across + 1) / 2));
  if (x.across <= 2)
    multiply_few<Row>(w, first, end, x, sums);
  else
    multiply_panel<Row>(w, first, end, x, sums);
  for (int64_t n = 0; n < rows; n += 16) {
    const int64_t left = std::min<int64_t>(16, rows - n);
    alignas(64) float factors[16] = {};
    for (int64_t i = 0; i < left; i++) factors[i] = Row(w, first + n + i).factor();
    for (int64_t m = 0; m < x.across; m++)
      store_transposed(sums[m / 2 * pairs + n / 32].at[n / 16 % 2][m % 2], factors, y + 16 * m * stride + n, stride,
                       std::min<int64_t>(16, x.tokens - 16 * m), left);
  }
}

}  // namespace

bool tiles_available() {
  static const bool granted = request_tiles();
  return granted;
}

int64_t tiled_bytes(Layout layout, int64_t tokens, int64_t in) {
  return tiles_for(tokens) * depth_for(in) * TILE * (layout == SPLIT ? 4 : 2);
}

void fill_tiles(const Activations &a, int64_t k, const float *x, int64_t x_stride, int64_t count) {
  const Packed packed(a);
  for (int64_t m = 0; m < packed.across; m++)
    for (int64_t i = 0; i < count; i += 32) {
      alignas(64) float rows[16][32];
      const int64_t left = std::min<int64_t>(32, count - i), tokens = std::min<int64_t>(16, a.tokens - 16 * m);
      if (left < 32 || tokens < 16) memset(rows, 0, sizeof rows);
      for (int64_t t = 0; t < tokens; t++) memcpy(rows[t], x + (16 * m + t) * x_stride + i, left * 4);
      for (int64_t part = 0; part < packed.parts; part++) {
        __m512i lines[16];
        for (int64_t t = 0; t < 16; t++) {
          lines[t] = narrow(rows[t], 32);
          for (int64_t j = 0; j < 32 && part + 1 < packed.parts; j += LANES)  // what rounding has left over
            store(rows[t] + j, load(rows[t] + j) - round_bf16(load(rows[t] + j)));
        }
        transpose(lines);
        uint16_t *to = const_cast<uint16_t *>(packed.at(m, (k + i) / 32)) + part * TILE;
        for (int64_t line = 0; line < 16; line++) _mm512_store_si512(to + 32 * line, lines[line]);
      }
    }
}

void tile_product(const Activations &x, Matrix w, int64_t first, int64_t rows, float *y, int64_t stride) {
  const TileConfig config;
  const Packed packed(x);
  if (w.type == BITS4) return multiply<Row4>(w, first, rows, packed, y, stride);
  if (w.type == BITS8) return multiply<Row8>(w, first, rows, packed, y, stride);
  multiply<DenseRow<Bf16>>(w, first, rows, packed, y, stride);
}

#else

bool tiles_available() { return false; }
int64_t tiled_bytes(Layout, int64_t, int64_t) { return 0; }
void fill_tiles(const Activations &, int64_t, const float *, int64_t, int64_t) {}
void tile_product(const Activations &, Matrix, int64_t, int64_t, float *, int64_t) {}

#endif
